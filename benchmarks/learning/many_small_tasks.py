"""Fifty-three small tasks in one store, as the CLR paper has 53: bytes, seconds, and that none changes another.

    TASKPACK_DATA=DIR python -m benchmarks.learning.many_small_tasks --work WORK

time        about 50 minutes of one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    53 tasks; after each, 0 bits of the earlier ones changed; each adds under 1 % of the network's bytes

Every task is five classes of a shared set, in the classes' order: 20 of caltech101, 17 of flowers89, 8 of gtsrb, 8 of
omniglot28, at most 40 training pictures a class. CLR on a whole pretrained ResNet-18 at 64 pixels, 15 epochs, the
method's defaults otherwise. The paper's own 53 sets are not at hand; class subsets stand in for them, so that the
accuracies are not comparable with its table.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .contest import first_runs
from .packing import Found
from .photographs import parse, photograph_parser, protocol_of, run_experiment, source_of
from .record import table
from .subsets import classes_of, subset

COUNTS = {"caltech101": 20, "flowers89": 17, "gtsrb": 8, "omniglot28": 8}
CLASSES, PER_CLASS = 5, 40


def write_sources(data: Path, folder: Path, counts: Mapping[str, int], per_class: int) -> dict[str, Path]:
    """Task name -> its source; the sets take turns."""
    made: dict[str, list[tuple[str, Path]]] = {}
    for name, count in counts.items():
        source = source_of(data, name)
        classes, made[name] = classes_of(source), []
        for number in range(count):
            task, own = f"{name}-{number + 1:02d}", classes[CLASSES * number :][:CLASSES]
            made[name].append((task, subset(source, folder, own, per_class=per_class)))
    turns = range(max(counts.values()))
    return dict(tasks[turn] for turn in turns for tasks in made.values() if turn < len(tasks))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = photograph_parser(__doc__, tuple(COUNTS), variants=("clr",), per_class=PER_CLASS)
    parser.add_argument("--tasks", type=int, help="of each set, at most")
    arguments = parse(parser, argv)
    counts = {name: min(COUNTS[name], arguments.tasks or COUNTS[name]) for name in arguments.sets}
    sources = write_sources(arguments.data, arguments.work / "sources", counts, arguments.per_class)
    result = run_experiment("many_small_tasks", arguments, protocol_of(arguments), sources, counts=counts)
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """A row per set, and all of them; of the first seed."""
    rows: list[list[str]] = []
    for variant, tasks in first_runs(result).items():
        for name in result["counts"]:
            rows.append([variant, *_row(name, [one for one in tasks if one["task"].startswith(f"{name}-")])])
        rows.append([variant, *_row("all", tasks)])
    head = ["", "set", "tasks", "test accuracy, % (least to most)", "bytes a task", "seconds a task", "bits changed"]
    return table(head, rows)


def _row(name: str, tasks: Sequence[Found]) -> list[str]:
    tops = sorted(100 * one["test_top1"] for one in tasks)
    return [
        name,
        str(len(tasks)),
        f"{statistics.mean(tops):.1f} ({tops[0]:.1f} to {tops[-1]:.1f})",
        f"{statistics.mean(one['bytes'] for one in tasks):,.0f}",
        f"{statistics.mean(one['seconds'] for one in tasks):.0f}",
        f"{sum(one['changed_bits'] for one in tasks)}, {max(one['compared'] for one in tasks)} versions compared",
    ]


if __name__ == "__main__":
    main()
