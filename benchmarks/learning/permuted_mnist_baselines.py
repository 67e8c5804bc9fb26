"""What forgets on permuted MNIST, and what keeping costs: SGD, EWC, SI and LwF beside PackNet.

    TASKPACK_DATA=DIR python -m benchmarks.learning.permuted_mnist_baselines --seeds 0 --choose

time        see results/permuted_mnist_<method>.json, `cpu_seconds`; one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    SGD with one head forgets most, then SGD with a head per task; EWC, SI and LwF less; PackNet nothing

The protocol of permuted_mnist_packnet.py: MLP 2x100, batch 10, Adam 1e-3 along a cosine, clipped at 5, 5 epochs, the
same validation pictures, permutations and test set, every phase back to its best validation accuracy. `--choose` takes
the strengths of EWC, SI and LwF from three values each, and from further ones beyond an end as long as that is the
best, by the mean validation accuracy of the first seed's tasks, all of them, after one epoch of each; without it they
are those of `STRENGTHS`. One JSON per method; `python -m benchmarks.learning.curves` draws them together with
PackNet's.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer import Settings

from .baselines import BASELINES, STRENGTHS
from .options import cut_of, mnist_of, parser_of
from .record import environment, mean_sd, table, write
from .sequence import Learned, learn

ARCH = "mlp-100-100"
GRIDS = {"ewc": (100.0, 1000.0, 10000.0), "si": (0.1, 1.0, 10.0), "lwf": (0.3, 1.0, 3.0)}
GRID_EPOCHS = 1
SETTINGS = Settings(
    method="finetune", optimizer="adam", lr=1e-3, batch_size=10, augment="none", threads=1, device="cpu"
)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run each method, print a table, write one JSON per method; returns what was written."""
    parser = parser_of(__doc__, epochs=5)
    parser.add_argument("--methods", nargs="+", choices=list(BASELINES), default=list(BASELINES))
    parser.add_argument("--strength", type=float, help="of the regulariser, for a method given alone")
    parser.add_argument("--choose", action="store_true", help="choose the strengths on validation pictures first")
    parser.add_argument("--arch", default=ARCH)
    parser.add_argument("--batch-size", type=int, default=SETTINGS.batch_size)
    arguments = parser.parse_args(argv)
    if arguments.strength is not None and len(arguments.methods) > 1:
        parser.error("--strength goes with one method: name it with --methods")
    torch.set_num_threads(1)
    cut = cut_of(arguments)
    settings = dataclasses.replace(SETTINGS, epochs=arguments.epochs, batch_size=arguments.batch_size)
    results: list[dict[str, Any]] = []
    for method in arguments.methods:
        strength = STRENGTHS[method] if arguments.strength is None else arguments.strength
        tried: dict[float, float] = {}
        if arguments.choose and method in GRIDS:
            tried = climb(GRIDS[method], functools.partial(_short_run, arguments, settings, method))
            strength = max(tried, key=tried.__getitem__)
            print(f"{method}: mean validation accuracy by strength {tried}; {strength:g} from here on", flush=True)
        result: dict[str, Any] = {
            "experiment": f"permuted MNIST, {method}",
            **environment(),
            "arch": arguments.arch,
            "cut": dataclasses.asdict(cut),
            "settings": dataclasses.asdict(settings) | {"method": method, "strength": strength},
            "val_top1_by_strength": {f"{value:g}": top1 for value, top1 in tried.items()},
            "seeds": [],
        }
        results.append(result)
        path = arguments.out / f"permuted_mnist_{method}.json"
        for seed in arguments.seeds:
            run: dict[str, Any] = {"seed": seed, "accuracies": [], "val_accuracies": [], "cpu_seconds": 0.0}
            result["seeds"].append(run)

            def done(
                learned: Learned, run: dict[str, Any] = run, result: dict[str, Any] = result, path: Path = path
            ) -> None:
                run["accuracies"].append(list(learned.accuracies))
                run["val_accuracies"].append(list(learned.val_accuracies))
                run["cpu_seconds"] = round(run["cpu_seconds"] + learned.cpu_seconds, 3)
                run["mean"] = sum(learned.accuracies) / len(learned.accuracies)
                write(path, result)
                first = learned.accuracies[0]
                print(f"{result['experiment']}: first task {first:.4f}, mean {run['mean']:.4f}", flush=True)

            mine = dataclasses.replace(settings, seed=seed)
            learn(BASELINES[method](strength), mnist_of(arguments), arguments.arch, mine, seed, cut, done)
    print(shown(results))
    return results


def climb(grid: tuple[float, float, float], score: Callable[[float], float]) -> dict[float, float]:
    """What each value scores: those of a grid, and more at the same spacing while the best lies at an end of them."""
    tried = {value: score(value) for value in grid}
    while True:
        values = sorted(tried)
        best = max(tried, key=tried.__getitem__)
        if best not in (values[0], values[-1]):
            return tried
        beyond = values[0] ** 2 / values[1] if best == values[0] else values[-1] ** 2 / values[-2]
        beyond = float(f"{beyond:.3g}")
        tried[beyond] = score(beyond)


def _short_run(arguments: argparse.Namespace, settings: Settings, method: str, strength: float) -> float:
    """Mean validation accuracy of the first seed's tasks after the last of them; no test split is read."""
    seed, cut = arguments.seeds[0], dataclasses.replace(cut_of(arguments), test_images=0)
    mine = dataclasses.replace(settings, seed=seed, epochs=GRID_EPOCHS)
    last = learn(BASELINES[method](strength), mnist_of(arguments), arguments.arch, mine, seed, cut)[-1]
    return sum(last.val_accuracies) / len(last.val_accuracies)


def shown(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table."""
    rows = [
        [
            result["settings"]["method"],
            mean_sd([run["mean"] for run in result["seeds"]]),
            mean_sd([run["accuracies"][-1][0] for run in result["seeds"]]),
            mean_sd([run["cpu_seconds"] for run in result["seeds"]], scale=1.0, digits=0),
        ]
        for result in results
    ]
    return table(["", "mean test accuracy after all tasks, %", "first task, %", "CPU seconds"], rows)


if __name__ == "__main__":
    main()
