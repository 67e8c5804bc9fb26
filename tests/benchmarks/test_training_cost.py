"""What training costs beside SGD's, cut down to seconds."""

from __future__ import annotations

import json

import pytest

from benchmarks.learning import training_cost

from .digits import write_digits


def test_every_method_takes_its_turn_and_is_told_as_a_part_of_sgds_time(tmp_path, capsys):
    mnist = write_digits(tmp_path / "mnist.npz")
    flags = f"--mnist {mnist} --out {tmp_path} --epochs 2 --train-images 40 --val-images 18 --arch mlp-8 --rounds 2"
    training_cost.main(flags.split())
    found = json.loads((tmp_path / "training_cost.json").read_text())
    assert {"command", "versions", "machine"} <= found.keys()
    for name in ("sgd", "sgd-shared-head", "ewc", "si", "lwf", "packnet"):
        both = [one[name] / one["sgd"] for one in found["cpu_seconds"]]
        assert found["ratios"][name] == pytest.approx(sum(both) / 2)
        assert min(both) > 0
    assert found["ratios"]["sgd"] == 1.0
    assert list(found["cpu_seconds"][0])[:2] == ["sgd", "sgd-shared-head"]
    assert list(found["cpu_seconds"][1])[:2] == ["sgd-shared-head", "ewc"], "another begins"
    assert "| packnet |" in capsys.readouterr().out
