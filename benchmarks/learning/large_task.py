"""One large task after three small ones, as the PackNet paper adds Places365: the small ones must not change.

    TASKPACK_DATA=DIR python -m benchmarks.learning.large_task --work WORK

time        about four hours a variant of one thread, by its number of pictures; nearly all of it for the large task;
            with `--size 32 --epochs 5` 50 minutes beside other work
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    cifar10's 50,000 pictures learn within a few points of fine-tuning; 0 bits of the small tasks changed

flowers89, gtsrb, pacs_photo, then cifar10, on a pretrained ResNet-18 at 64 pixels: PackNet that gives back 75 % each
time, and Piggyback; fine-tuning beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contest import first_runs
from .photographs import add_rates, parse, photograph_parser, protocol_of, rates_of, run_experiment, sources_of
from .record import table

SETS = ("flowers89", "gtsrb", "pacs_photo", "cifar10")
METHODS = ("packnet 75", "piggyback", "finetune")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = photograph_parser(__doc__, SETS, variants=METHODS)
    add_rates(parser)
    arguments = parse(parser, argv)
    sources = sources_of(arguments.data, arguments.sets, arguments.work / "sources", arguments.per_class)
    result = run_experiment("large_task", arguments, protocol_of(arguments), sources, rates_of(arguments))
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """A row per variant; the first seed."""
    first = first_runs(result)
    tasks = [task["task"] for task in next(iter(first.values()))]
    rows: list[list[str]] = []
    for name, found in first.items():
        last = found[-1]
        changed = f"{last['changed_bits']}, {last['compared']} versions compared"
        tops = [f"{100 * task['test_top1']:.1f}" for task in found]
        rows.append([name, *tops, f"{last['bytes']:,}", changed if last["version"] else "in no store"])
    return table(["", *(f"{task}, test %" for task in tasks), "bytes of the last", "bits changed by it"], rows)


if __name__ == "__main__":
    main()
