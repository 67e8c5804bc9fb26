"""What the PackNet paper found about pruning, as one small table: shares, retraining, last layers, whole filters.

    TASKPACK_DATA=DIR python -m benchmarks.learning.findings --work WORK

time        about 15 minutes a variant of one thread
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    retraining matters after a large share; 50 and 75 % cost an added task little even without it, 90 % is fine
            with it; training only the last layers loses much; whole filters free less for the same loss

One added task (flowers89) on a pretrained ResNet-18 that keeps half of its weights, 64 pixels, 15 epochs over all
phases, each way in a store of its own. Everything has a norm of its own except `linear pruned`, the head alone over
the pruned network: `packnet head` is head and norm, `packnet last layer` these and the free weights of one layer.
`before retraining` is validation accuracy of the pruned network, `after` that of the artifact. That later tasks do
worse, so that hardest goes first, is in eight_domains.py and its `--reverse`; that biases per task bring nothing is
not shown: no method here has them without a norm of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contest import first_runs, mean_difference
from .photographs import add_pictures, parse, photograph_parser, protocol_of, run_experiment, sources_of
from .record import interval, table

SETS = ("flowers89",)
METHODS = (
    "packnet 50",
    "packnet 75",
    "packnet 90",
    "packnet 50 filters",
    "packnet 75 filters",
    "packnet 90 filters",
    "packnet last layer",
    "packnet head",
    "linear pruned",
    "finetune",
)
REFERENCE = "finetune"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = photograph_parser(__doc__, SETS, variants=METHODS)
    add_pictures(parser)
    arguments = parse(parser, argv)
    few = arguments.pictures
    sources = sources_of(arguments.data, arguments.sets, arguments.work / "sources", arguments.per_class, few)
    result = run_experiment("findings", arguments, protocol_of(arguments, pictures=few), sources)
    print(shown(result))
    return result


def shown(result: dict[str, Any]) -> str:
    """A row per variant; the first seed's first task."""
    rows: list[list[str]] = []
    alone = first_runs(result).get(REFERENCE, [])
    for name, (task, *_) in first_runs(result).items():
        before = [row for row in task["epochs"] if row["phase"] == "retrain" and row["epoch"] == 0]
        best = max(row["val_top1"] for row in task["epochs"] if row["phase"] != "retrain")
        rows.append(
            [
                name,
                f"{100 * best:.1f}",
                f"{100 * before[0]['val_top1']:.1f}" if before else "",
                f"{100 * task['val_top1']:.1f}",
                f"{100 * task['test_top1']:.1f}",
                interval(mean_difference([task], alone[:1])) if alone and name != REFERENCE else "",
                f"{100 * task['claimed'] / task['total']:.1f} %" if task["claimed"] else "",
            ]
        )
    head = ["", "best before pruning, val %", "before retraining", "after", "test %"]
    return table([*head, "less finetune (95 %)", "of the weights"], rows)


if __name__ == "__main__":
    main()
