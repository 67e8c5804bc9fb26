"""Methods side by side on photographs: each packs the same sources into a store of its own, by one protocol."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masks_store import OutOfCapacity, Store
from trainer import Diverged, Report, Settings, init
from trainer.methods.packnet import PICK_FACTOR
from trainer.metrics import calibration_error, macro_f1
from trainer.predictions import Predictions, from_csv
from trainer.runs import RESULTS, predictions_file

from .ledger import Ledger, differing
from .packing import Found, train_once
from .record import environment
from .sizes import size_of
from .variants import VARIANTS, Protocol, Variant, settings_of

ROUNDS = 2000
"""Of the bootstrap."""


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_variant(
    name: str,
    sources: Mapping[str, Path],
    protocol: Protocol,
    rate: float | None,
    seed: int,
    folder: Path,
    *,
    tasks: int | None = None,
    done: Callable[[Found], None] = lambda _: None,
) -> list[Found]:
    """Pack the sources one after another; what was begun in the folder goes on.

    A PackNet task that finds no free weight any more trains a head and a norm alone over what is there, and says so
    (`starved`); a CLNP task ends its variant's sequence.

    Args:
        name: of `VARIANTS`.
        sources: by the tasks' names, in their order.
        protocol, rate, seed: see `settings_of`.
        folder: for store and ledger.
        tasks: that the store is for; None: as many as there are sources.
        done: told of each task.
    """
    variant, count = VARIANTS[name], len(sources) if tasks is None else tasks
    first = next(iter(sources))
    ledger = Ledger(folder, setting_of(name, sources, protocol, rate, seed, tasks))
    with _store(folder / "store", variant, protocol, seed) as store:
        results: list[Found] = []
        for number, (task, source) in enumerate(sources.items(), 1):
            where = {"last": number == count, "first": first if number > 1 else None}
            own = settings_of(variant, protocol, count, rate, seed, **where)
            more = functools.partial(_more, own.train_layers)
            try:
                results.append(train_once(ledger, store, task, source, own, more))
            except OutOfCapacity:
                if own.method != "packnet":
                    print(f"{name}, seed {seed}: nothing is free for {task} and those after it", flush=True)
                    break
                starved = dataclasses.replace(own, train_layers="head", prune=None, pick=False, epochs=protocol.epochs)
                results.append(train_once(ledger, store, task, source, starved, more))
            done(results[-1])
    return results


def setting_of(
    name: str, sources: Iterable[str], protocol: Protocol, rate: float | None, seed: int, tasks: int | None = None
) -> dict[str, Any]:
    """All that a run of `run_variant` depends on, as JSON has it."""
    variant, names = VARIANTS[name], list(sources)
    count = len(names) if tasks is None else tasks
    setting: dict[str, Any] = {
        "variant": name,
        "protocol": protocol.as_json(),
        "settings": dataclasses.asdict(settings_of(variant, protocol, count, rate, seed)),
        "sources": names,
    }
    if variant.settings.pick:
        setting["mask_factor"] = PICK_FACTOR  # a default that the settings do not name, and that was another once
    if variant.first is not None:
        later = settings_of(variant, protocol, count, rate, seed, first=names[0])
        setting["later"] = dataclasses.asdict(later)
    return json.loads(json.dumps(setting))


def _store(where: Path, variant: Variant, protocol: Protocol, seed: int) -> Store:
    if where.exists():
        return Store.open(where)
    return init(
        where,
        protocol.arch,
        weights=protocol.weights,
        image_size=protocol.size,
        keep=variant.keep if protocol.keep is None else protocol.keep,
        capacity=variant.capacity,
        settings=Settings(seed=seed),
    )


def _more(asked: str, report: Report) -> Found:
    """What is kept beside `found`; `starved` of a task that was asked to train `asked` layers and found none free."""
    said = predictions(report)
    starved = {"starved": True} if report.plan["train_layers"] != asked else {}
    return starved | {
        "version": report.version,
        "images": report.images,
        "macro_f1": macro_f1(said.labels, said.predicted),
        "calibration_error": calibration_error(said.correct, said.confidence),
        "hits": "".join("01"[int(hit)] for hit in said.correct),
        "epochs": epochs_of(Path(report.run or "")),
        "compared": report.compared,
        "changed_bits": report.changed_bits,
        "parts": report.parts,
        "trials": [dataclasses.asdict(trial) for trial in report.trials],
        "warnings": list(report.warnings),
        "seconds": report.seconds,
        "ran": environment(),
    }


def predictions(report: Report) -> Predictions:
    """What the artifact says of the test pictures; of validation's where there are none."""
    assert report.run is not None
    split = "test" if report.test_top1 is not None else "val"
    path = Path(report.run) / predictions_file(split)
    return from_csv(path.read_text(), path.name)


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """Phase, epoch and validation accuracy of every epoch, those of earlier sittings included."""
    with (run / RESULTS).open(newline="") as lines:
        return [
            {"phase": row["phase"], "epoch": int(row["epoch"]), "val_top1": float(row["val_top1"])}
            for row in csv.DictReader(lines)
        ]


def choose_rate(
    name: str, sources: Mapping[str, Path], protocol: Protocol, seed: int, folder: Path, tasks: int
) -> tuple[float, dict[str, dict[str, float]]]:
    """The learning rate with the best mean validation accuracy, each source trained alone; and the accuracies.

    A rate under which the loss stops being a number counts as 0.

    Returns:
        The rate; rate -> task -> validation accuracy.

    Raises:
        SystemExit: the variant's first task is of another method, and nothing else would be trained here.
    """
    if VARIANTS[name].first is not None:
        raise SystemExit(f"{name}: no learning rate can be chosen on tasks that are each the first")

    def top1(rate: float, task: str) -> float:
        where = folder / f"{rate:g}-{task}"
        try:
            (found,) = run_variant(name, {task: sources[task]}, protocol, rate, seed, where, tasks=tasks)
        except Diverged:
            return 0.0
        return found["val_top1"]

    found = {rate: {task: top1(rate, task) for task in sources} for rate in VARIANTS[name].rates}
    best = max(found, key=lambda rate: sum(found[rate].values()))
    return best, {f"{rate:g}": tasks for rate, tasks in found.items()}


def compete(
    result: dict[str, Any],
    save: Callable[[], None],
    rates: Mapping[str, float | None],
    sources: Mapping[str, Path],
    protocol: Protocol,
    seeds: Callable[[str], Sequence[int]],
    folder: Callable[[str, int], Path],
    tasks: int | None = None,
    known: Mapping[str, Any] | None = None,
) -> None:
    """Run variants one after another.

    Args:
        result: gets `variants`: name -> `lr` and `seeds`, each with its `tasks`, what it was run by (`setting`), and
            whether it is `whole`, and then what its store took (`size`). Each task says where it was trained (`ran`).
        save: called after every task.
        rates: the variants' names with their learning rates; None: the method's default.
        sources, protocol, tasks: see `run_variant`.
        seeds: of a variant; each in a store of its own.
        folder: of a variant and a seed.
        known: `variants` of an earlier result. What is whole there is taken over, of variants and seeds that are not
            asked for, too: so a result grows over several machines.

    Raises:
        SystemExit: `known` has whole runs of another setting, which would be lost; or a task was cut otherwise for one
            variant than for another, which could not be compared.
    """
    variants: dict[str, Any] = {}
    for name in VARIANTS:
        runs = [run for run in (known or {}).get(name, {}).get("seeds", []) if run.get("whole", True)]
        rate = rates[name] if name in rates else (known or {}).get(name, {}).get("lr")
        for run in runs:
            _require_same(run.get("setting", {}), setting_of(name, sources, protocol, rate, run["seed"], tasks))
        if runs:
            variants[name] = {"lr": rate, "seeds": runs}
    require_same_pictures(variants)
    result["variants"] = variants
    for name, rate in rates.items():
        runs = variants.setdefault(name, {"lr": rate, "seeds": []})["seeds"]
        for seed in seeds(name):
            if any(run["seed"] == seed for run in runs):
                continue
            run: dict[str, Any] = {
                "seed": seed,
                "setting": setting_of(name, sources, protocol, rate, seed, tasks),
                "whole": False,
                "tasks": [],
            }
            runs.append(run)
            runs.sort(key=operator.itemgetter("seed"))

            def done(task: Found, name: str = name, run: dict[str, Any] = run) -> None:
                run["tasks"].append(task)
                require_same_pictures(variants)
                save()
                print(f"{name}, seed {run['seed']}, {task['task']}: test {task['test_top1']:.4f}", flush=True)

            where = folder(name, seed)
            run_variant(name, sources, protocol, rate, seed, where, tasks=tasks, done=done)
            run |= {"whole": True, "size": size_of(where / "store")}
            save()


def require_same_pictures(variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise unless every task has as many pictures in each of its splits under every variant and seed."""
    counts: dict[str, tuple[str, Mapping[str, int]]] = {}
    for name, variant in variants.items():
        for task in (task for run in variant["seeds"] for task in run["tasks"]):
            first, images = counts.setdefault(task["task"], (name, task["images"]))
            if images != task["images"]:
                raise SystemExit(
                    f"{task['task']} has {images} pictures for {first!r} and {task['images']} for {name!r}: its "
                    "sources were cut by different versions of this program; give --work and --out other folders"
                )


def _require_same(held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise unless a run that a result holds was made as it would be now."""
    told = differing(held, asked)
    if not told:
        return
    raise SystemExit(
        f"the result holds {asked['variant']!r} run with another {', '.join(told)}; give --out another folder"
    )


def hits_of(result: Found) -> np.ndarray:
    """Bool [N]: which test pictures were right."""
    return np.frombuffer(result["hits"].encode(), np.uint8) == ord("1")


def first_runs(result: Mapping[str, Any]) -> dict[str, list[Found]]:
    """Variant -> the tasks of its lowest seed."""
    return {name: variant["seeds"][0]["tasks"] for name, variant in result["variants"].items()}


def same_seed(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[list[Found], list[Found]] | None:
    """The tasks of two variants' runs with the lowest seed that both have; None where they have none."""
    runs = [{run["seed"]: run["tasks"] for run in variant["seeds"]} for variant in (one, other)]
    both = sorted(runs[0].keys() & runs[1].keys())
    return (runs[0][both[0]], runs[1][both[0]]) if both else None


def mean_difference(ours: Sequence[Found], theirs: Sequence[Found], seed: int = 0) -> tuple[float, float, float]:
    """Mean over tasks of the paired difference in accuracy, with its 95 % bootstrap interval.

    Pictures are drawn with replacement within each task (stratified bootstrap), `ROUNDS` times.

    Returns:
        Mean, lower and upper end, fractions of 1.
    """
    random = np.random.default_rng(seed)
    means, drawn = list[float](), np.zeros(ROUNDS)
    for own, other in zip(ours, theirs, strict=True):
        paired = hits_of(own).astype(np.float64) - hits_of(other)
        means.append(float(paired.mean()))
        drawn += [paired[random.integers(0, len(paired), len(paired))].mean() for _ in range(ROUNDS)]
    low, high = np.quantile(drawn / len(means), (0.025, 0.975))
    return sum(means) / len(means), float(low), float(high)
