"""The baselines' experiment and its figure, cut down to seconds."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from benchmarks.learning import curves, permuted_mnist_baselines
from benchmarks.learning.baselines import BASELINES

from .digits import write_digits


def test_the_baselines_experiment_runs_cut_down_and_its_results_are_drawn(tmp_path, capsys):
    mnist = write_digits(tmp_path / "mnist.npz")
    flags = f"--mnist {mnist} --out {tmp_path} --tasks 2 --epochs 2 --train-images 60 --val-images 18 --arch mlp-24"
    permuted_mnist_baselines.main([*flags.split(), "--batch-size", "4", "--choose"])
    for method in BASELINES:
        found = json.loads((tmp_path / f"permuted_mnist_{method}.json").read_text())
        (run,) = found["seeds"]
        assert [len(row) for row in run["accuracies"]] == [1, 2], method
        assert run["accuracies"][0][0] > 0.5, f"{method} learned its first task: chance is 0.33"
        assert run["mean"] == sum(run["accuracies"][1]) / 2
        assert run["cpu_seconds"] > 0
        tried = found["val_top1_by_strength"]
        if tried:
            assert tried[f"{found['settings']['strength']:g}"] == max(tried.values())
    (tmp_path / "training_cost.json").write_text('{"ratios": {"sgd": 1.0, "lwf": 1.25}}')
    drawn = curves.main(["--out", str(tmp_path)])
    assert set(drawn) == set(BASELINES)
    assert {name: of["cost"] for name, of in drawn.items() if of["cost"]} == {"sgd": 1.0, "lwf": 1.25}
    with Image.open(tmp_path / "permuted_mnist.png") as figure:
        assert figure.width > 1000
    assert "LwF" in capsys.readouterr().out


def test_a_curve_is_a_mean_over_finished_seeds():
    runs = [
        {"accuracies": [[0.8], [0.4, 0.6]], "cpu_seconds": 2.0},
        {"accuracies": [[1.0], [0.6, 0.8]], "cpu_seconds": 4.0},
        {"accuracies": [[0.1]], "cpu_seconds": 1.0},
    ]
    curve = curves.curve_of({"cut": {"tasks": 2}, "seeds": runs})
    assert curve is not None
    assert curve.first == pytest.approx((0.9, 0.5))
    assert curve.mean == pytest.approx((0.9, 0.6))
    assert curve.final == pytest.approx((0.5, 0.7))
    assert curve.cpu_seconds == (2.0, 4.0)


def test_a_packed_task_keeps_its_accuracy_all_the_way():
    run = {"after": [0.9, 0.7], "tasks": [{"cpu_seconds": 1.0}, {"cpu_seconds": 2.0}]}
    curve = curves.curve_of({"cut": {"tasks": 2}, "seeds": [run]})
    assert curve is not None
    assert curve.first == (0.9, 0.9)
    assert curve.mean == pytest.approx((0.9, 0.8))
    assert curve.cpu_seconds == (3.0,)
    assert curves.curve_of({"cut": {"tasks": 2}, "seeds": [{"tasks": []}]}) is None


def test_a_strength_needs_one_method(capsys):
    with pytest.raises(SystemExit):
        permuted_mnist_baselines.main(["--strength", "1"])
    assert "--strength goes with one method" in capsys.readouterr().err


@pytest.mark.parametrize(("best", "tried"), [(1.0, 3), (0.1, 4), (0.01, 5), (100.0, 5)])
def test_a_strength_is_sought_beyond_an_end_of_its_grid_as_long_as_that_is_the_best(best, tried):
    found = permuted_mnist_baselines.climb((0.1, 1.0, 10.0), lambda value: -abs(math.log10(value / best)))
    assert max(found, key=found.__getitem__) == pytest.approx(best)
    assert len(found) == tried
    assert min(found) < best < max(found)
