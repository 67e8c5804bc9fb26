"""Exhaustion: twenty tasks of five classes into one network from scratch, until nothing is left to learn with.

    TASKPACK_DATA=DIR python -m benchmarks.learning.exhaustion --work WORK

time        not known: more than a day a variant of one thread is expected; run it on a GPU or with --per-class
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    at a fixed 60 % later tasks starve (.6^20 of the weights is nothing); pick or auto stay within 3 points of
            separate networks over all 20. Published for CIFAR-100 in 20 tasks, VGG16-BN: 67.5 % against 78.8 %

VGG16-BN from a random start on 20 x 5 classes of tiny_imagenet32_100, which stands in for CIFAR-100, 32 pixels, 30
epochs over all phases. PackNet in a store that keeps nothing: a fixed 60 %, auto, equal:20, pick; `finetune` is a
network per task, each from a random start of its own. One learning rate for all, `--lr` (pick, which trains with Adam,
and Piggyback at their defaults). A task that finds nothing free trains a head over what is there and is marked
`starved`. Piggyback needs a network that has learned something to select from: its first task takes the whole network,
the other nineteen stand on that.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .contest import first_runs
from .figure import Panel, draw
from .photographs import parse, photograph_parser, protocol_of, run_experiment, source_of
from .record import table
from .subsets import classes_of, subset
from .variants import VARIANTS

SET, TASKS, CLASSES, EPOCHS = "tiny_imagenet32_100", 20, 5, 30
LR = 0.05
METHODS = ("finetune", "packnet 60", "packnet equal", "packnet auto", "packnet pick", "piggyback on the first")
PUBLISHED = {"PackNet, CIFAR-100": 0.675, "separate networks, CIFAR-100": 0.788}


def write_sources(source: Path, folder: Path, tasks: int, per_class: int | None, classes: int) -> dict[str, Path]:
    """Task name -> its source: so many classes each, in their order."""
    names = classes_of(source)
    groups = [names[classes * number :][:classes] for number in range(tasks)]
    return {
        f"classes{number:02d}": subset(source, folder, group, per_class=per_class)
        for number, group in enumerate(groups, 1)
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON and `exhaustion.png`; returns what was written."""
    parser = photograph_parser(
        __doc__, (SET,), variants=METHODS, epochs=EPOCHS, size=32, arch="vgg16_bn", weights="none"
    )
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--lr", type=float, default=LR)
    arguments = parse(parser, argv)
    folder, few = arguments.work / "sources", arguments.per_class
    sources = write_sources(source_of(arguments.data, SET), folder, arguments.tasks, few, CLASSES)
    adam = {
        name for name, variant in VARIANTS.items() if variant.settings.pick or variant.settings.method == "piggyback"
    }
    rates = {name: None if name in adam else arguments.lr for name in arguments.variants}
    result = run_experiment(
        "exhaustion", arguments, protocol_of(arguments, keep=0.0), sources, rates, published=PUBLISHED
    )
    print(shown(result))
    draw(panels_of(result), arguments.out / "exhaustion.png")
    return result


def panels_of(result: dict[str, Any]) -> list[Panel]:
    """Mean accuracy of the tasks so far, and what they leave free of the network's weights; the first seed."""
    first = first_runs(result)
    so_far = {
        name: [(k, 100 * statistics.mean(task["test_top1"] for task in tasks[:k])) for k in range(1, len(tasks) + 1)]
        for name, tasks in first.items()
    }
    free = {
        name: [(k, 100 * task["free"] / task["total"]) for k, task in enumerate(tasks, 1) if task["version"]]
        for name, tasks in first.items()
    }
    return [
        Panel("mean of the tasks so far", "tasks trained", "test accuracy, %", so_far),
        Panel("left of the network", "tasks trained", "weights free, %", free),
    ]


def shown(result: dict[str, Any]) -> str:
    """Mean accuracy of each quarter of the tasks, and of all; the first seed."""
    rows: list[list[str]] = []
    first = first_runs(result)
    count = min(4, max(len(tasks) for tasks in first.values()))
    for name, tasks in first.items():
        tops = [100 * task["test_top1"] for task in tasks]
        parts = [part.tolist() for part in np.array_split(np.array(tops), count)]
        starved = sum(bool(task.get("starved")) for task in tasks)
        means = [f"{statistics.mean(part):.1f}" if part else "" for part in (*parts, tops)]
        rows.append([name, *means, str(starved)])
    return table(["test %", *(f"part {i} of {count}" for i in range(1, count + 1)), "all", "starved"], rows)


if __name__ == "__main__":
    main()
