"""Exhaustion: twenty tasks of five classes into one network from scratch, until nothing is left to learn with.

    TASKPACK_DATA=DIR python -m benchmarks.learning.exhaustion --work WORK

time        see results/exhaustion.json, `cpu_seconds`; one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    at a fixed 60 % later tasks starve (.6^20 of the weights is nothing); pick or auto stay within 3 points of
            separate networks over all 20. Published for CIFAR-100 in 20 tasks, VGG16-BN: 67.5 % against 78.8 %

VGG16-BN from a random start on 20 x 5 classes of tiny_imagenet32_100, which stands in for CIFAR-100, 32 pixels.
PackNet in a store that keeps nothing: a fixed 60 %, auto, equal:20, pick; `finetune` is a network per task, from the
same random start. Every method at its own default learning rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .photographs import contest, parse, photograph_parser, protocol_of, source_of
from .record import table
from .subsets import classes_of, subset

SET, TASKS, CLASSES, EPOCHS = "tiny_imagenet32_100", 20, 5, 30
METHODS = ("finetune", "packnet 60", "packnet equal", "packnet auto", "packnet pick")
PUBLISHED = {"PackNet, CIFAR-100": 0.675, "separate networks, CIFAR-100": 0.788}


def write_sources(source: Path, folder: Path, tasks: int, per_class: int | None, classes: int) -> dict[str, Path]:
    """Task name -> its source: so many classes each, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = classes_of(source)
    groups = [names[classes * number :][:classes] for number in range(tasks)]
    return {
        f"classes{number:02d}": subset(source, folder / f"classes{number:02d}.npz", group, per_class=per_class)
        for number, group in enumerate(groups, 1)
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = photograph_parser(
        __doc__, (SET,), variants=METHODS, epochs=EPOCHS, size=32, arch="vgg16_bn", weights="none"
    )
    parser.add_argument("--tasks", type=int, default=TASKS)
    arguments = parse(parser, argv)
    folder, few = arguments.work / "sources", arguments.per_class
    sources = write_sources(source_of(arguments.data, SET), folder, arguments.tasks, few, CLASSES)
    own = dict.fromkeys(arguments.variants)
    result = contest("exhaustion", arguments, protocol_of(arguments, keep=0.0), sources, own, published=PUBLISHED)
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """Mean accuracy of every fourth of the tasks, and of all; the first seed."""
    rows: list[list[str]] = []
    for name, mine in result["variants"].items():
        tops = [100 * task["test_top1"] for task in mine["seeds"][0]["tasks"]]
        quarter = max(1, len(tops) // 4)
        parts = [tops[i : i + quarter] for i in range(0, 4 * quarter, quarter)]
        rows.append([name, *(f"{statistics.mean(part):.1f}" for part in parts if part), f"{statistics.mean(tops):.1f}"])
    count = max(len(row) for row in rows) - 2
    return table(["test accuracy, %", *(f"part {i} of {count}" for i in range(1, count + 1)), "all"], rows)


if __name__ == "__main__":
    main()
