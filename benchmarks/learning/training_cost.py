"""What each method's training costs beside plain SGD's, on permuted MNIST, in turns within one run.

    TASKPACK_DATA=DIR python -m benchmarks.learning.training_cost [--rounds 5] [--train-images 3000]

time        about three minutes; one thread
hardware    two cores of an AMD EPYC without AVX-512, no GPU
expected    SI's and EWC's penalties cost a little of every step, LwF a forward more of the old network; PackNet's masks
            next to nothing

CPU time of training the second task, validation and what the method remembers for the next one included, reading and
exporting not: the first task has nothing to keep. The protocol of permuted_mnist_packnet.py and _baselines.py (MLP
2x100, batch 10, Adam, 5 epochs; PackNet 3 and 2 after pruning), with fewer pictures. The methods take turns, and who
begins changes from round to round; a ratio is of one round, their median counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import permuted_mnist_baselines, permuted_mnist_packnet
from .baselines import BASELINES, STRENGTHS
from .options import RESULTS, mnist_of
from .packing import pack
from .permuted import Cut
from .record import environment, table, write
from .sequence import learn

PLAIN = "sgd"


def contestants(mnist: Path, arch: str, cut: Cut, epochs: int) -> dict[str, Callable[[], float]]:
    """Method -> what trains two tasks and returns the CPU seconds of the second."""
    settings = dataclasses.replace(permuted_mnist_baselines.SETTINGS, epochs=epochs)
    packed = dataclasses.replace(
        permuted_mnist_packnet.SETTINGS, epochs=max(1, round(epochs * 3 / 5)), prune=f"equal:{cut.tasks + 1}"
    )

    def baseline(name: str) -> float:
        return learn(BASELINES[name](STRENGTHS[name]), mnist, arch, settings, 0, cut)[-1].cpu_seconds

    def packnet() -> float:
        with tempfile.TemporaryDirectory(prefix="taskpack-learning-") as folder:
            return pack(mnist, arch, packed, 0, cut, Path(folder)).packed[-1]["cpu_seconds"]

    found: dict[str, Callable[[], float]] = {name: lambda name=name: baseline(name) for name in BASELINES}
    return found | {"packnet": packnet}


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Seconds of each in each round; who begins changes."""
    names, found = list(runs), list[dict[str, float]]()
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        found.append({name: runs[name]() for name in order})
        print("  ".join(f"{name} {found[-1][name]:.2f}" for name in names), flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-images", type=int, default=3000)
    parser.add_argument("--val-images", type=int, default=600)
    parser.add_argument("--mnist", type=Path, help="the .npz (default: mnist.npz in $TASKPACK_DATA)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result's JSON")
    parser.add_argument("--arch", default=permuted_mnist_packnet.ARCH)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cut = Cut(2, arguments.train_images, arguments.val_images, test_images=0)
    seconds = in_turns(contestants(mnist_of(arguments), arguments.arch, cut, arguments.epochs), arguments.rounds)
    ratios = {name: sorted(one[name] / one[PLAIN] for one in seconds) for name in seconds[0]}
    result: dict[str, Any] = {
        "experiment": "training cost on permuted MNIST",
        **environment(),
        "arch": arguments.arch,
        "epochs": arguments.epochs,
        "cut": dataclasses.asdict(cut),
        "cpu_seconds": seconds,
        "ratios": {name: statistics.median(own) for name, own in ratios.items()},
    }
    write(arguments.out / "training_cost.json", result)
    rows = [[name, f"{statistics.median(own):.2f}", f"{own[0]:.2f} to {own[-1]:.2f}"] for name, own in ratios.items()]
    print(table(["", "CPU time of training, x SGD's", "rounds"], rows))
    return result


if __name__ == "__main__":
    main()
