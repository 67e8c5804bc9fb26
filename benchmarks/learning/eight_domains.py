"""Eight domains on one pretrained ResNet-18: what each method gives up against fine-tuning a network per task.

    TASKPACK_DATA=DIR python -m benchmarks.learning.eight_domains --work WORK [--variants clr …] [--choose] [--joint]

time        about an hour a variant of one thread with `--precision bf16-mixed`; variants may run in processes of their
            own over the same WORK, and a last call with all of them puts together what is there
hardware    two cores of an Intel Xeon with AVX-512, no GPU
expected    packnet within 2.0 points of finetune on average, with pick or auto within 1.0; piggyback within 1.5; clr
            within 2.0 and ahead of linear with an interval above 0

flowers89, gtsrb, pacs_art_painting, pacs_sketch, clothing, caltech101, omniglot28, pacs_photo. packnet (auto, equal:8,
pick) on a store that keeps half of the weights, the others on a whole one; finetune starts from the dense weights, and
so does `--joint`: one network with a head per task that sees all sets at once, the bound (joint.py). The same split,
size, augmentation and number of image presentations for all; auto's trials come on top and are counted in `shown`.
With several `--seeds` packnet equal, clr, bn and finetune run with all of them, the others with the first.
`--choose` takes each variant's learning rate from three, by the mean validation accuracy with seed 0 on three of the
sets, each trained alone (joint: on all; auto takes that of equal:8); without it the middle one is used. `--reverse`
packs in the other order, which PackNet's results depend on and the others' must not: it compares their digests with the
forward result beside it.
Cut to fit two cores, alike for every method: 64 pixels, 15 epochs over all phases; `--pictures 1000` cuts every set
to at most so many training pictures, and a variant to half an hour in fp32. `--frozen` adds what the backbone's own
features tell without training: a nearest class mean and a linear probe (frozen.py).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .contest import choose_rate, first_runs, mean_difference, same_seed, slug
from .frozen import WAYS, frozen
from .joint import train_jointly
from .ledger import Ledger, differing
from .packing import Found
from .photographs import (
    add_pictures,
    add_rates,
    parse,
    photograph_parser,
    protocol_of,
    rates_of,
    run_experiment,
    sources_of,
)
from .record import interval, mean_sd, read, table, write
from .speed import time_all
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
PAIRS = (("clr", "linear"), ("clr", "bn"))
"""Compared with one another, beside every variant with the reference."""
REPEATED = ("packnet equal", "clr", "bn", "finetune")
CHOICE_SEED = 0
MS = "ms an image (× plain)"


def rate_of(
    name: str, sources: Mapping[str, Path], protocol: Protocol, work: Path, tasks: int, known: Mapping[str, Any]
) -> dict[str, Any]:
    """The learning rate of a variant (`rate`), chosen on validation pictures of these sources (`tried`) by their mean.

    Args:
        name, sources, protocol, tasks: see `contest.choose_rate`.
        work: for ledgers.
        known: `choices` of an earlier result, by variant: one made the same way is taken over.
    """
    variant = VARIANTS[name]
    setting: dict[str, Any] = {"protocol": protocol.as_json(), "sources": sorted(sources), "tasks": tasks}
    setting |= {"settings": dataclasses.asdict(variant.settings), "rates": list(variant.rates)}
    if name in known and not differing(known[name]["setting"], setting):
        return known[name]
    ledger = Ledger(work / "rates" / slug(name), setting)

    def step() -> dict[str, Any]:
        rate, tried = choose_rate(name, sources, protocol, CHOICE_SEED, ledger.folder, tasks)
        return {"rate": rate, "tried": tried}

    return {"setting": setting, **ledger.once("rate", step)}


def joint_setting(sources: Iterable[str], protocol: Protocol) -> dict[str, Any]:
    """What joint training depends on, besides its rate and seed; not on the order."""
    return {"protocol": protocol.as_json(), "sources": sorted(sources)}


def in_order(tasks: Iterable[Found], sources: Iterable[str]) -> list[Found]:
    """Tasks in the order of the sources."""
    by_name = {task["task"]: task for task in tasks}
    return [by_name[name] for name in sources]


def joint_of(
    sources: Mapping[str, Path],
    protocol: Protocol,
    seeds: Sequence[int],
    work: Path,
    *,
    choose: bool,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Joint training as a variant of a result; a seed and a rate that were trained before are not trained again.

    Args:
        sources, protocol, seeds: see `contest.compete`.
        work: for the ledger.
        choose: whether to choose the learning rate.
        known: the same of an earlier result: what was trained the same way is taken over.
    """
    setting = joint_setting(sources, protocol)
    ledger = Ledger(work / "joint", setting)
    ordered = {name: sources[name] for name in sorted(sources)}
    all_: dict[str, Any] = dict(known["trained"]) if known is not None and known["setting"] == setting else {}

    def trained(rate: float, seed: int) -> list[Found]:
        step = f"{rate:g} {seed}"
        if step not in all_:
            all_[step] = ledger.once(step, lambda: {"tasks": train_jointly(ordered, protocol, rate, seed)})
        return in_order(all_[step]["tasks"], sources)

    rates = VARIANTS[REFERENCE].rates
    means = {
        rate: statistics.mean(task["val_top1"] for task in trained(rate, CHOICE_SEED))
        for rate in (rates if choose else ())
    }
    rate = max(means, key=means.__getitem__) if means else rates[1]
    runs = [{"seed": seed, "tasks": trained(rate, seed)} for seed in seeds]
    return {
        "setting": setting,
        "trained": all_,
        "lr": rate,
        "val_top1_by_lr": {f"{rate:g}": mean for rate, mean in means.items()},
        "seeds": runs,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print tables, write the JSON; returns what was written."""
    parser = photograph_parser(__doc__, SETS)
    add_pictures(parser)
    add_rates(parser)
    parser.add_argument("--choose", action="store_true", help="choose learning rates on validation pictures")
    parser.add_argument("--joint", action="store_true", help="all sets at once, too")
    parser.add_argument("--frozen", action="store_true", help="the backbone's own features, too")
    parser.add_argument("--reverse", action="store_true", help="the other order")
    arguments = parse(parser, argv)
    if arguments.choose and arguments.rates:
        parser.error("--choose chooses learning rates, --rates takes those of a file: give one of them")
    protocol, work = protocol_of(arguments, pictures=arguments.pictures), arguments.work
    names = arguments.sets[::-1] if arguments.reverse else arguments.sets
    sources = sources_of(arguments.data, names, work / "sources", arguments.per_class, arguments.pictures)
    few: dict[str, Path] = {}
    if arguments.choose:  # without a test split, which nothing may be chosen by
        on = [name for name in CHOOSE_ON if name in names]
        few = sources_of(arguments.data, on, work / "sources", arguments.per_class, arguments.pictures, test=False)
    suffix = "_reversed" if arguments.reverse else ""
    earlier = read(arguments.out / f"eight_domains{suffix}.json")
    joint = earlier.get("joint") or earlier.get("variants", {}).get("joint")
    choices = dict[str, Any](earlier.get("choices", {}))
    for name in arguments.variants:
        choices.pop(name, None)  # what is asked for is run without one, or with this
        if few:
            known = earlier.get("choices", {})
            choices[name] = rate_of(VARIANTS[name].chosen_as or name, few, protocol, work, len(sources), known)
    rates = {name: choices[name]["rate"] for name in arguments.variants} if few else rates_of(arguments)
    result = run_experiment(
        "eight_domains",
        arguments,
        protocol,
        sources,
        rates,
        seeds=lambda name: arguments.seeds if name in REPEATED else arguments.seeds[:1],
        suffix=suffix,
        order=names,
        choices=choices,
        joint=joint,  # among the variants once they are run
    )
    seed = arguments.seeds[0]
    time_all(result["variants"], seed, {name: work / f"{slug(name)}-{seed}{suffix}" for name in rates})
    joint = result.pop("joint")
    if arguments.joint:
        joint = joint_of(sources, protocol, arguments.seeds[:1], work, choose=arguments.choose, known=joint)
    if joint is not None and joint.get("setting") == joint_setting(sources, protocol):
        runs = [run | {"tasks": in_order(run["tasks"], names)} for run in joint["seeds"]]
        result["variants"]["joint"] = joint | {"seeds": runs}
    result["frozen"] = earlier.get("frozen")
    if arguments.frozen:
        result["frozen"] = frozen(sources, protocol, seed, work)
    result["differences"] = differences(result)
    forward = read(arguments.out / "eight_domains.json")
    if arguments.reverse and forward:
        result["same_versions"] = same_versions(forward, result)
    write(arguments.out / f"eight_domains{suffix}.json", result)
    print(f"{shown(result)}\n\n{by_task(result)}")
    return result


def same_versions(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, bool]:
    """By variant and seeds that both have: whether it made the same artifacts in both orders; not of networks alone."""
    found: dict[str, bool] = {}
    for name in one["variants"]:
        if name in other["variants"]:
            here, there = _versions(one["variants"][name]), _versions(other["variants"][name])
            both = here.keys() & there.keys()
            if both and None not in here.values():
                found[name] = all(here[task] == there[task] for task in both)
    return found


def _versions(variant: Mapping[str, Any]) -> dict[str, str | None]:
    return {f"{run['seed']} {task['task']}": task["version"] for run in variant["seeds"] for task in run["tasks"]}


def differences(result: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Pair of variants -> task, and `mean`, -> difference in test accuracy and its 95 % interval.

    Of the lowest seed that both were run with; pairs without one are left out.
    """
    variants = result["variants"]
    pairs = [(name, REFERENCE) for name in variants if name != REFERENCE and REFERENCE in variants]
    pairs += [(one, other) for one, other in PAIRS if one in variants and other in variants]
    found: dict[str, dict[str, list[float]]] = {}
    for one, other in pairs:
        runs = same_seed(variants[one], variants[other])
        if runs is not None:
            of_tasks = {mine["task"]: list(mean_difference([mine], [its])) for mine, its in zip(*runs, strict=True)}
            found[f"{one} - {other}"] = of_tasks | {"mean": list(mean_difference(*runs))}
    return found


def shown(result: dict[str, Any]) -> str:
    """Test accuracy by task, mean and deviation over the seeds; what each gives up, and the pairs' differences."""
    rows: list[list[str]] = []
    for name, variant in result["variants"].items():
        runs = [run["tasks"] for run in variant["seeds"]]
        tasks = runs[0]
        lost = result["differences"].get(f"{name} - {REFERENCE}")
        rows.append(
            [
                name,
                *(mean_sd([run[i]["test_top1"] for run in runs], digits=1) for i in range(len(tasks))),
                mean_sd([statistics.mean(task["test_top1"] for task in run) for run in runs], digits=1),
                interval(lost["mean"]) if lost else "",
                f"{100 * statistics.mean(task['macro_f1'] for task in tasks):.1f}",
                f"{100 * statistics.mean(task['calibration_error'] for task in tasks):.1f}",
                f"{statistics.mean(task['bytes'] for task in tasks):,.0f}",
                _time(tasks),
                f"{sum(task['presentations'] for task in tasks):,}",
                f"{variant['lr']:g}{', chosen' if name in result.get('choices', {}) else ''}",
            ]
        )
    for name in WAYS if result.get("frozen") else ():
        of_tasks = [result["frozen"][name].get(task) for task in result["order"]]
        if None not in of_tasks:
            shown = [f"{100 * top1:.1f}" for top1 in (*of_tasks, statistics.mean(of_tasks))]
            rows.append([name, *shown, *[""] * (len(rows[0]) - len(shown) - 1)])
    head = [
        "",
        *result["order"],
        "mean",
        "less finetune (95 %)",
        "macro-F1",
        "calibration error",
        "bytes a task",
        MS,
        "shown",
        "learning rate",
    ]
    lines = [table(head, rows), ""]
    if any(len(variant["seeds"]) > 1 for variant in result["variants"].values()):
        lines += ["Accuracies are means over the seeds; all else is of the first seed alone.", ""]
    lines += [f"{pair}: {interval(found['mean'])} points" for pair, found in result["differences"].items()]
    lines += [f"{name}: {'the same' if same else 'other'} artifacts in the other order"
              for name, same in result.get("same_versions", {}).items()]  # fmt: skip
    return "\n".join(lines)


def by_task(result: Mapping[str, Any]) -> str:
    """A row per task and variant of the lowest seed: what the JSON has of each."""
    rows: list[list[str]] = []
    for task in result["order"]:
        for name, tasks in first_runs(result).items():
            own = next((one for one in tasks if one["task"] == task), None)
            if own is not None:
                lost = result["differences"].get(f"{name} - {REFERENCE}")
                rows.append(
                    [
                        task,
                        name,
                        f"{100 * own['test_top1']:.1f}",
                        interval(lost[task]) if lost else "",
                        f"{100 * own['macro_f1']:.1f}",
                        f"{100 * own['calibration_error']:.1f}",
                        f"{own['bytes']:,}",
                        _time([own]),
                        f"{own['presentations']:,}",
                    ]
                )
    head = ["task", "", "test %", "less finetune (95 %)", "macro-F1", "calibration error", "bytes", MS, "shown"]
    return table(head, rows)


def _time(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Mean over the tasks that were timed, and how many times as long as the plain network took beside them."""
    taken = [task["milliseconds"] for task in tasks if "milliseconds" in task]
    if not taken:
        return ""
    own, plain = (statistics.mean(one[which] for one in taken) for which in ("own", "plain"))
    return f"{own:.2f} ({own / plain:.2f})"


if __name__ == "__main__":
    main()
