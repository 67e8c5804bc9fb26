"""Draw what the permuted-MNIST experiments found: the first task after each task, and the mean over the tasks so far.

    python -m benchmarks.learning.curves [--out FOLDER]

Reads `permuted_mnist_*.json` in the folder, prints a table with each method's training cost beside SGD's, and writes
`permuted_mnist.png` and `permuted_mnist.json` there. PackNet's tasks cannot change, which the trainer proves bit by bit
after every run; their accuracies are those of the end, all the way.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figure import Panel, draw
from .options import RESULTS
from .record import mean_sd, read, table, write

NAMES = {
    "packnet": "PackNet",
    "ewc": "EWC",
    "si": "SI",
    "lwf": "LwF",
    "sgd": "SGD, a head per task",
    "sgd-shared-head": "SGD, one head",
}


@dataclass(frozen=True)
class Curve:
    """One method, a mean over its seeds.

    Attributes:
        first: test accuracy of the first task after each task.
        mean: of all tasks so far after each task.
        final: the last of `mean`, per seed.
        cpu_seconds: of training, per seed.
    """

    first: tuple[float, ...]
    mean: tuple[float, ...]
    final: tuple[float, ...]
    cpu_seconds: tuple[float, ...]


def curve_of(result: Mapping[str, Any]) -> Curve | None:
    """The curve of a result; None where no seed is done, because a run is still going on."""
    wanted = result["cut"]["tasks"]
    matrices = [(_matrix(run), _cost(run)) for run in result["seeds"]]
    whole = [(matrix, cost) for matrix, cost in matrices if len(matrix) == wanted]
    if not whole:
        return None
    return Curve(
        first=tuple(statistics.mean(matrix[k][0] for matrix, _ in whole) for k in range(wanted)),
        mean=tuple(statistics.mean(statistics.mean(matrix[k]) for matrix, _ in whole) for k in range(wanted)),
        final=tuple(statistics.mean(matrix[-1]) for matrix, _ in whole),
        cpu_seconds=tuple(cost for _, cost in whole),
    )


def _matrix(run: Mapping[str, Any]) -> list[list[float]]:
    """Row k: test accuracies of tasks 0 to k after task k."""
    if "accuracies" in run:
        return run["accuracies"]
    after: list[float] = run.get("after", [])
    return [after[: k + 1] for k in range(len(after))]


def _cost(run: Mapping[str, Any]) -> float:
    if "accuracies" in run:
        return run["cpu_seconds"]
    return sum(task["cpu_seconds"] for task in run["tasks"])


def panels_of(curves: Mapping[str, Curve]) -> list[Panel]:
    """The first task and the mean over the tasks so far."""
    titles = {"first": "the first task", "mean": "mean of the tasks so far"}
    return [
        Panel(
            title,
            "tasks trained",
            "test accuracy, %" if field == "first" else "",
            {
                NAMES[name]: [(k, 100 * value) for k, value in enumerate(getattr(curve, field), 1)]
                for name, curve in curves.items()
            },
        )
        for field, title in titles.items()
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw, print a table, write the JSON; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder with the results")
    folder: Path = parser.parse_args(argv).out
    curves: dict[str, Curve] = {}
    for name in NAMES:
        path = folder / f"permuted_mnist_{name}.json"
        curve = curve_of(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
        if curve is not None:
            curves[name] = curve
    if not curves:
        raise SystemExit(f"{folder} holds no finished permuted_mnist_*.json; run the experiments first")
    costs: dict[str, float] = read(folder / "training_cost.json").get("ratios", {})
    result: dict[str, Any] = {name: vars(curve) | {"cost": costs.get(name)} for name, curve in curves.items()}
    draw(panels_of(curves), folder / "permuted_mnist.png")
    write(folder / "permuted_mnist.json", result)
    print(shown(curves, costs))
    return result


def shown(curves: Mapping[str, Curve], costs: Mapping[str, float]) -> str:
    """The curves' ends as a table."""
    rows = [
        [NAMES[name], mean_sd(curve.final), mean_sd([curve.first[-1]]), f"{costs[name]:.2f}" if name in costs else ""]
        for name, curve in curves.items()
    ]
    return table(["", "mean after all tasks, %", "first task after all, %", "CPU time, x SGD's"], rows)


if __name__ == "__main__":
    main()
