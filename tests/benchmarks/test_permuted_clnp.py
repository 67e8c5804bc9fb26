"""The CLNP experiment, cut down to seconds."""

from __future__ import annotations

import json

from benchmarks.learning import permuted_mnist_clnp

from .digits import write_digits


def test_the_clnp_experiment_runs_cut_down_and_tells_units_and_the_single_task_reference(tmp_path, capsys):
    mnist = write_digits(tmp_path / "mnist.npz")
    flags = f"--mnist {mnist} --out {tmp_path} --tasks 2 --epochs 4 --train-images 60 --val-images 18 --arch mlp-24-24"
    flags += f" --alone 1 --work {tmp_path}/work"
    permuted_mnist_clnp.main([*flags.split(), "--batch-size", "4", "--margin", "3", "--grid", "1e-6", "1e-5"])
    found = json.loads((tmp_path / "permuted_mnist_clnp.json").read_text())
    assert {"command", "versions", "machine", "cut", "settings"} <= found.keys()
    tried = {float(l1): top1 for l1, top1 in found["val_top1_of_task_1_by_l1"].items()}
    assert found["settings"]["l1"] == permuted_mnist_clnp.choose(tried)
    (run,) = found["seeds"]
    reports = [json.loads(path.read_text()) for path in (tmp_path / "work").glob("*-l1-*/store/runs/*/report.json")]
    assert [report["test_top1"] for report in reports] == [None, None], "L1 is chosen on validation"
    assert run["size"]["shared"] > sum(task["bytes"] for task in run["tasks"])
    assert run["after"] == [task["test_top1"] for task in run["tasks"]], "nothing was forgotten"
    assert run["mean"] > 0.5, "learned: chance is 0.33"
    first, second = run["tasks"]
    assert run["mean_alone"] == first["alone"]["test_top1"] > 0.5
    assert "alone" not in second, "one was asked for"
    assert [unit["reused"] for unit in first["units"]] == [0, 0]
    for before, after in zip(first["units"], second["units"], strict=True):
        assert after["free"] == before["free"] - after["new"]
    assert first["alone"]["presentations"] == first["presentations"] == 4 * 60
    printed = capsys.readouterr().out
    assert "98.42" in printed
    assert "about 25 tasks" in printed


def test_the_largest_l1_that_costs_a_tenth_of_a_point_at_most_is_chosen():
    assert permuted_mnist_clnp.choose({1e-5: 0.980, 3e-5: 0.981, 1e-4: 0.980}) == 1e-4
    assert permuted_mnist_clnp.choose({1e-5: 0.983, 3e-5: 0.981, 1e-4: 0.980}) == 1e-5
