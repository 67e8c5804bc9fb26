"""Pack a sequence of tasks into a real store with `trainer`'s own pipeline, and measure them all at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masks_store import BackboneFile, Store
from trainer import Report, Settings
from trainer.evaluate import evaluate
from trainer.phase import Phase
from trainer.pipeline import train
from trainer.runs import REPORT

from .ledger import Ledger
from .permuted import Cut, grey_backbone, picture_side, write_tasks
from .sizes import size_of

Found = dict[str, Any]
"""One task after its run, as a result keeps it (`found`)."""


@dataclass(frozen=True)
class PackedAll:
    """All tasks of one seed.

    Attributes:
        packed: in the order in which they were trained.
        after: test accuracy of each, measured on the store when all are in it; empty of a cut without test pictures.
        size: what the store took in the end (`sizes.size_of`).
    """

    packed: tuple[Found, ...]
    after: tuple[float, ...]
    size: Found | None


def pack(
    mnist: Path,
    arch: str,
    settings: Settings,
    seed: int,
    cut: Cut,
    folder: Path,
    *,
    capacity: str = "weights",
    beside: Settings | None = None,
    beside_first: int | None = None,
    done: Callable[[Found, Found | None], None] = lambda _task, _beside: None,
) -> PackedAll:
    """Train the tasks one after another into a store, then measure every one of them again.

    Args:
        mnist: the digits.
        arch: an `mlp-…`.
        settings: of every task.
        seed: of everything: pictures, permutations, backbone.
        cut: how much of the benchmark.
        folder: for sources, store and ledger; what was begun there goes on.
        capacity: what tasks take of the store.
        beside: train each task so, too, outside of the store: fine-tuning of a network of its own.
        beside_first: only so many of them; None: all.
        done: told of each task, and of what was trained beside it.
    """
    asked = [dataclasses.asdict(one) if one is not None else None for one in (settings, beside)]
    setting = {"arch": arch, "settings": asked, "seed": seed, "cut": dataclasses.asdict(cut), "capacity": capacity}
    ledger = Ledger(folder, setting)
    sources = write_tasks(mnist, folder, seed, cut)
    where = folder / "store"
    with Store.open(where) if where.exists() else _new_store(where, mnist, arch, seed, capacity) as store:
        packed: list[Found] = []
        for number, source in enumerate(sources):
            packed.append(train_once(ledger, store, source.stem, source, settings))
            both = beside is not None and (beside_first is None or number < beside_first)
            done(packed[-1], train_once(ledger, store, source.stem, source, beside) if both else None)
        after = () if cut.test_images == 0 else tuple(_measure(store, sources))
    return PackedAll(tuple(packed), after, size_of(where))


def train_once(
    ledger: Ledger,
    store: Store,
    task: str,
    source: Path,
    settings: Settings,
    more: Callable[[Report], Found] = lambda _: {},
) -> Found:
    """Train a task unless the ledger has it; a run that was stopped goes on, one that had only to be noted is noted.

    Args:
        ledger, store: of one experiment.
        task, source, settings: see `trainer.pipeline.train`.
        more: what else is kept of the run.

    Raises:
        SystemExit: the store has the task, but its run was killed in the moment before its report.
    """
    name = f"{settings.method} {task}"

    def step() -> Found:
        report = finished_run(store.runs, task, settings.method)
        if report is None:
            if settings.method != "finetune" and any(known.name == task for known in store.tasks()):
                raise SystemExit(f"{ledger.folder}: {name!r} was killed before its report; begin anew elsewhere")
            report = train(store, task, str(source), dataclasses.replace(settings, resume=True))
        return found(report) | more(report)

    return ledger.once(name, step)


def finished_run(runs: Path, task: str, method: str) -> Report | None:
    """The newest finished run of a task by a method in a store's `runs`; None where there is none."""
    for path in sorted(runs.glob(f"*/{REPORT}"), reverse=True):
        fields = json.loads(path.read_text(encoding="utf-8"))
        if (fields["task"], fields["method"]) == (task, method):
            return dataclasses.replace(Report.from_json(fields), run=str(path.parent))
    return None


def found(report: Report) -> Found:
    """What a result keeps of a run."""
    return {
        "task": report.task,
        "test_top1": report.test_top1,
        "val_top1": report.val_top1,
        "pruning_loss": report.pruning_loss,
        "prune": report.prune,
        "claimed": report.claimed,
        "hidden": report.hidden,
        "free": report.free,
        "total": report.total,
        "tasks_left": report.tasks_left,
        "bytes": report.bytes,
        "presentations": report.presentations,
        "phases": [told_of(phase) for phase in report.plan["phases"]],
        "cpu_seconds": round(report.cpu_seconds, 3),
        "units": [
            {"layer": u.layer, "units": u.units, "new": u.new, "reused": u.reused, "free": u.free} for u in report.units
        ],
    }


def told_of(phase: Mapping[str, Any]) -> Found:
    """A phase of a report's plan, without what is as `Phase` has it where nothing else is said."""
    usual = {field.name: field.default for field in dataclasses.fields(Phase)}
    return {name: value for name, value in phase.items() if value != usual[name] and value not in ([], ())}


def _new_store(where: Path, mnist: Path, arch: str, seed: int, capacity: str) -> Store:
    backbone = BackboneFile(grey_backbone(arch, picture_side(mnist), keep=0.0, seed=seed))
    return Store.create(where, backbone, capacity=capacity)


def _measure(store: Store, sources: Sequence[Path]) -> list[float]:
    """Test accuracy of each task as the store gives it now."""
    return [evaluate(store, path.stem, str(path), split="test", threads=1)[0].score.top1 for path in sources]
