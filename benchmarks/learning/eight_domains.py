"""Eight domains on one pretrained ResNet-18: what each method gives up against fine-tuning a network per task.

    TASKPACK_DATA=DIR python -m benchmarks.learning.eight_domains --work WORK [--variants clr …] [--choose]

time        see results/eight_domains.json, `cpu_seconds`; one thread; variants may run in processes of their own over
            the same WORK and are put together by a last call with all of them
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    packnet within 2.0 points of finetune on average, with pick or auto within 1.0; piggyback within 1.5; clr
            within 2.0 and ahead of linear with an interval above 0

flowers89, gtsrb, pacs_art_painting, pacs_sketch, clothing, caltech101, omniglot28, pacs_photo. packnet (auto, equal:8,
pick) on a store that keeps half of the weights, the others on a whole one; finetune starts from the dense weights, and
so does `--joint`: one network with a head per task that sees all sets at once, the bound (joint.py). The
same split, size, augmentation and number of image presentations for all; auto's trials come on top and are counted.
`--choose` takes each variant's learning rate from three, by the mean validation accuracy on three of the sets, each
trained alone; without it the middle one is used. `--reverse` packs in the other order: PackNet's results depend on it,
the other methods' must not (`same_versions` says whether the digests are equal).
Cut to fit two cores, alike for every method: 64 pixels, 15 epochs over all phases.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .contest import choose_rate, mean_difference, slug
from .joint import train_jointly
from .ledger import Ledger
from .photographs import contest, parse, photograph_parser, protocol_of, sources_of
from .record import table, write
from .variants import VARIANTS, Protocol

SETS = (
    "flowers89",
    "gtsrb",
    "pacs_art_painting",
    "pacs_sketch",
    "clothing",
    "caltech101",
    "omniglot28",
    "pacs_photo",
)
CHOOSE_ON = ("pacs_art_painting", "clothing", "flowers89")
REFERENCE = "finetune"


def rate_of(
    name: str, sources: Mapping[str, Path], protocol: Protocol, seed: int, work: Path, choose: bool
) -> tuple[float, dict[str, float]]:
    """The learning rate of a variant, and what it was chosen by."""
    own = {task: sources[task] for task in CHOOSE_ON if task in sources}
    if not choose or not own:
        return VARIANTS[name].rates[1], {}
    ledger = Ledger(work / "rates" / slug(name), {"protocol": protocol.as_json(), "sources": list(own), "seed": seed})

    def step() -> dict[str, Any]:
        rate, means = choose_rate(name, own, protocol, seed, ledger.folder, len(sources))
        return {"rate": rate, "means": means}

    chosen = ledger.once("rate", step)
    return chosen["rate"], chosen["means"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print a table, write the JSON; returns what was written."""
    parser = photograph_parser(__doc__, SETS)
    parser.add_argument("--choose", action="store_true", help="choose learning rates on validation pictures")
    parser.add_argument("--joint", action="store_true", help="all sets at once, too")
    parser.add_argument("--reverse", action="store_true", help="the other order")
    arguments = parse(parser, argv)
    protocol, work = protocol_of(arguments), arguments.work
    names = arguments.sets[::-1] if arguments.reverse else arguments.sets
    sources = sources_of(arguments.data, names, work / "sources", arguments.per_class)
    chosen = {
        name: rate_of(name, sources, protocol, arguments.seeds[0], work, arguments.choose)
        for name in arguments.variants
    }
    result = contest(
        "eight_domains",
        arguments,
        protocol,
        sources,
        {name: rate for name, (rate, _) in chosen.items()},
        suffix="_reversed" if arguments.reverse else "",
        order=names,
        val_top1_by_lr={name: means for name, (_, means) in chosen.items()},
    )
    if arguments.joint:
        ledger = Ledger(work / "joint", {"protocol": protocol.as_json(), "sources": names, "seeds": arguments.seeds})
        rate = VARIANTS[REFERENCE].rates[1]
        runs = [
            ledger.once(str(seed), lambda s=seed: {"seed": s, "tasks": train_jointly(sources, protocol, rate, s)})
            for seed in arguments.seeds
        ]
        result["variants"]["joint"] = {"lr": rate, "seeds": runs}
        write(arguments.out / "eight_domains.json", result)
    print(shown(result))
    return result


def same_versions(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    """Whether a variant made the same artifacts in two orders, seed by seed."""
    digests = [
        [{task["task"]: task["version"] for task in run["tasks"]} for run in result["variants"][name]["seeds"]]
        for result in (one, other)
    ]
    return digests[0] == digests[1]


def shown(result: dict[str, Any]) -> str:
    """Test accuracy a task, and what each variant gives up against fine-tuning; the first seed."""
    first = {name: mine["seeds"][0]["tasks"] for name, mine in result["variants"].items()}
    reference = first.get(REFERENCE)
    rows: list[list[str]] = []
    for name, tasks in first.items():
        low = high = mean = None
        if reference is not None and name != REFERENCE:
            mean, low, high = (100 * value for value in mean_difference(tasks, reference))
        tops = [100 * task["test_top1"] for task in tasks]
        rows.append(
            [
                name,
                *(f"{top:.1f}" for top in tops),
                f"{statistics.mean(tops):.1f}",
                "" if mean is None else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{100 * statistics.mean(task['macro_f1'] for task in tasks):.1f}",
                f"{100 * statistics.mean(task['calibration_error'] for task in tasks):.1f}",
                f"{statistics.mean(task['bytes'] for task in tasks):,.0f}",
                f"{sum(task['presentations'] for task in tasks):,}",
            ]
        )
    head = [
        "",
        *result["order"],
        "mean",
        "less finetune (95 %)",
        "macro-F1",
        "calibration error",
        "bytes a task",
        "shown",
    ]
    return table(head, rows)


if __name__ == "__main__":
    main()
