"""The PackNet experiment, cut down to seconds."""

from __future__ import annotations

import json

import pytest

from benchmarks.learning import packing, permuted_mnist_packnet, sizes
from trainer.progress import Silent

from .digits import write_digits


def test_the_packnet_experiment_runs_cut_down_and_its_json_says_how(tmp_path, capsys):
    mnist = write_digits(tmp_path / "mnist.npz")
    flags = f"--mnist {mnist} --out {tmp_path} --tasks 2 --epochs 3 --train-images 60 --val-images 18 --arch mlp-32-32"
    flags += " --batch-size 2"
    permuted_mnist_packnet.main(flags.split())
    found = json.loads((tmp_path / "permuted_mnist_packnet.json").read_text())
    assert found["cut"] == {"tasks": 2, "train_images": 60, "val_images": 18, "test_images": None}
    assert {"command", "versions", "machine"} <= found.keys()
    (run,) = found["seeds"]
    first, last = run["tasks"]
    assert run["after"] == [first["test_top1"], last["test_top1"]], "nothing was forgotten"
    assert run["after"][0] > 0.6, "learned: chance is 0.33"
    assert (first["prune"], last["prune"]) == (0.5, 0.0)
    assert (first["presentations"], last["presentations"]) == (5 * 60, 3 * 60), "two of five epochs after pruning"
    assert last["free"] == 0
    (row,) = sizes.main(["--out", str(tmp_path)])
    assert (row["experiment"], row["variant"], row["tasks"]) == ("permuted_mnist_packnet", "packnet", 2)
    assert row["shared"] > first["bytes"] + last["bytes"] > row["masks"] > 0
    assert "96.37" in capsys.readouterr().out


class Killed(Exception):
    """Stands for a machine that went away."""


def test_a_stopped_experiment_goes_on_where_it_was_and_finds_the_same(tmp_path, monkeypatch):
    mnist, work = write_digits(tmp_path / "mnist.npz"), tmp_path / "work"
    flags = f"--mnist {mnist} --tasks 3 --epochs 2 --train-images 40 --val-images 18 --arch mlp-8".split()
    whole = permuted_mnist_packnet.main([*flags, "--out", str(tmp_path / "whole")])
    train, trained = packing.train, list[str]()

    def killed_in_the_second(store, task, source, settings):
        reporter = Silent()
        if task == "task02" and not trained.count("task02"):
            trained.append(task)

            class Stops(Silent):
                def epoch(self, row):
                    super().epoch(row)
                    if row.epoch == 1:
                        raise Killed

            reporter = Stops()
        trained.append(task)
        return train(store, task, source, settings, reporter)

    monkeypatch.setattr(packing, "train", killed_in_the_second)
    again = [*flags, "--out", str(tmp_path / "again"), "--work", str(work)]
    with pytest.raises(Killed):
        permuted_mnist_packnet.main(again)
    found = permuted_mnist_packnet.main(again)
    assert trained == ["task01", "task02", "task02", "task02", "task03"], "the first was not trained twice"
    assert found["seeds"][0]["after"] == whole["seeds"][0]["after"]
    ledger = work / "packnet-0" / "ledger.json"
    kept = json.loads(ledger.read_text())
    noted = kept["found"].pop("packnet task03")
    ledger.write_text(json.dumps(kept))  # as if killed after the run and before noting it
    permuted_mnist_packnet.main(again)
    assert trained[5:] == [], "what had only to be noted was trained again"
    assert json.loads(ledger.read_text())["found"]["packnet task03"] == noted
    with pytest.raises(SystemExit, match=r"another cut\.val_images; give --work another folder"):
        permuted_mnist_packnet.main([*again, "--val-images", "17"])
