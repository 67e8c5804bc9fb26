"""CLNP on pictures: CIFAR-10, then ten tasks of ten classes, from scratch: what each margin costs and what it frees.

    TASKPACK_DATA=DIR python -m benchmarks.learning.cifar_then_tiny --work WORK

time        not known; one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    a larger margin loses more once, when a task is sparsified, and leaves more units free; fine-tuning regains
            part of the loss; nothing is lost later (arXiv 1903.04476, §5.2, with CIFAR-100's place taken by
            tiny_imagenet32_100)

`widecnn` (convolutions of 64, 64, 128 and 128 filters and a layer of 1024 units) at 32 pixels, a head per task, margins
of 1, 2 and 4 points, with and without fine-tuning, 30 epochs over all phases; `finetune adam` is a network per task,
with the same optimiser and rate, each from a random start of its own: what a task would have alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .contest import first_runs
from .exhaustion import write_sources
from .figure import Panel, draw
from .packing import Found
from .photographs import parse, photograph_parser, protocol_of, run_experiment, source_of, sources_of
from .record import table
from .variants import VARIANTS

FIRST, THEN, TASKS, CLASSES, EPOCHS = "cifar10", "tiny_imagenet32_100", 10, 10, 30
MARGINS, REFERENCE = (1.0, 2.0, 4.0), "finetune adam"
METHODS = (
    *(f"clnp {margin:g}" for margin in MARGINS),
    *(f"clnp {margin:g} finetuned" for margin in MARGINS),
    REFERENCE,
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON and `cifar_then_tiny.png`; returns what was written."""
    parser = photograph_parser(
        __doc__, (FIRST, THEN), variants=METHODS, epochs=EPOCHS, size=32, arch="widecnn", weights="none"
    )
    parser.add_argument("--tasks", type=int, default=TASKS, help="after the first")
    arguments = parse(parser, argv)
    folder, few = arguments.work / "sources", arguments.per_class
    sources = sources_of(arguments.data, [FIRST], folder, few)
    sources |= write_sources(source_of(arguments.data, THEN), folder, arguments.tasks, few, CLASSES)
    result = run_experiment("cifar_then_tiny", arguments, protocol_of(arguments, keep=0.0), sources)
    print(shown(result))
    draw(panels_of(result), arguments.out / "cifar_then_tiny.png")
    return result


def panels_of(result: dict[str, Any]) -> list[Panel]:
    """What each margin takes beside a network per task, mean over the tasks, and what it leaves free; the first seed.

    Without `finetune adam` the first is empty. A variant that ended early is compared over the tasks that it has.
    """
    first = first_runs(result)
    alone = {task["task"]: task["test_top1"] for task in first.get(REFERENCE, ())}
    lost: dict[str, list[tuple[float, float]]] = {"sparsified": [], "and fine-tuned": []}
    free: dict[str, list[tuple[float, float]]] = {}
    for name in sorted(first.keys() - {REFERENCE}):
        margin = VARIANTS[name].settings.margin
        gaps = [100 * (alone[task["task"]] - task["test_top1"]) for task in first[name] if task["task"] in alone]
        if gaps and margin is not None:
            line = lost["and fine-tuned" if VARIANTS[name].settings.finetune else "sparsified"]
            line.append((margin, statistics.mean(gaps)))
        free[name] = [(k, 100 * _free(task)) for k, task in enumerate(first[name], 1)]
    return [
        Panel("what it costs", "margin, points", "behind a network per task, points", lost, MARGINS),
        Panel("what it leaves", "tasks trained", "units free, %", free),
    ]


def _free(task: Found) -> float:
    """Share of the network's units that nobody owns after a task."""
    return sum(layer["free"] for layer in task["units"]) / sum(layer["units"] for layer in task["units"])


def shown(result: dict[str, Any]) -> str:
    """Accuracy, loss taken and capacity left after each task of each variant; the first seed."""
    rows: list[list[str]] = []
    for name, tasks in first_runs(result).items():
        for task in tasks:
            best = max(row["val_top1"] for row in task["epochs"] if row["phase"] == "train")
            sparse = [row["val_top1"] for row in task["epochs"] if (row["phase"], row["epoch"]) == ("finetune", 0)]
            rows.append(
                [
                    name,
                    task["task"],
                    f"{100 * task['test_top1']:.1f}",
                    f"{100 * (best - sparse[0]):.2f}" if sparse else "",
                    "" if task["pruning_loss"] is None else f"{100 * task['pruning_loss']:.2f}",
                    ", ".join(f"{unit['free']} of {unit['units']}" for unit in task["units"]),
                ]
            )
    return table(["", "task", "test %", "lost before fine-tuning", "lost", "units free, layer by layer"], rows)


if __name__ == "__main__":
    main()
