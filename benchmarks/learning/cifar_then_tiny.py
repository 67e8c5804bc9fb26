"""CLNP on pictures: CIFAR-10, then ten tasks of ten classes, from scratch: what each margin costs and what it frees.

    TASKPACK_DATA=DIR python -m benchmarks.learning.cifar_then_tiny --work WORK

time        see results/cifar_then_tiny.json, `cpu_seconds`; one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    a larger margin loses more once, when a task is sparsified, and leaves more units free; fine-tuning regains
            part of the loss; nothing is lost later (arXiv 1903.04476, §5.2, with CIFAR-100's place taken by
            tiny_imagenet32_100)

`widecnn` (convolutions of 64, 64, 128 and 128 filters and a layer of 1024 units) at 32 pixels, a head per task, margins
of 1, 2 and 4 points, with and without fine-tuning; `finetune` is a network per task from the same start, what a task
would have alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .exhaustion import write_sources
from .photographs import contest, parse, photograph_parser, protocol_of, source_of, sources_of
from .record import table

FIRST, THEN, TASKS, CLASSES, EPOCHS = "cifar10", "tiny_imagenet32_100", 10, 10, 30
METHODS = (
    *(f"clnp {margin:g}" for margin in (1.0, 2.0, 4.0)),
    *(f"clnp {margin:g} finetuned" for margin in (1.0, 2.0, 4.0)),
    "finetune",
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = photograph_parser(
        __doc__, (FIRST, THEN), variants=METHODS, epochs=EPOCHS, size=32, arch="widecnn", weights="none"
    )
    parser.add_argument("--tasks", type=int, default=TASKS, help="after the first")
    arguments = parse(parser, argv)
    folder, few = arguments.work / "sources", arguments.per_class
    sources = sources_of(arguments.data, [FIRST], folder, few)
    sources |= write_sources(source_of(arguments.data, THEN), folder, arguments.tasks, few, CLASSES)
    own = dict.fromkeys(arguments.variants)
    result = contest("cifar_then_tiny", arguments, protocol_of(arguments, keep=0.0), sources, own)
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """Loss taken and capacity kept, a row per variant; the first seed."""
    rows: list[list[str]] = []
    for name, mine in result["variants"].items():
        first, *later = mine["seeds"][0]["tasks"]
        losses = [100 * task["pruning_loss"] for task in (first, *later) if task["pruning_loss"] is not None]
        units = (later or [first])[-1]["units"]
        free = sum(unit["free"] for unit in units) / sum(unit["units"] for unit in units) if units else None
        rows.append(
            [
                name,
                f"{100 * first['test_top1']:.1f}",
                f"{100 * statistics.mean(task['test_top1'] for task in later):.1f}" if later else "",
                f"{statistics.mean(losses):.2f}" if losses else "",
                f"{100 * free:.0f} %" if free is not None else "",
            ]
        )
    return table(["", "cifar10, test %", "later tasks, test %", "loss taken, points", "units left free"], rows)


if __name__ == "__main__":
    main()
