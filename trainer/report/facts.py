"""All that a report says, as plain data: what report.json holds, and what page and figures are drawn from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from typing import Any

from torch import Tensor

from masks_store import Backbone, Store, Version, shown_version, units_of

from ..results import Row
from ..sparsify import Candidate, kept_of
from ..unit_use import UnitUse
from .confusion import Confusion, confusion_of
from .history import History, Run, read_history
from .room import Room, room_of, told_left
from .weights import count_used, examine, sharing


@dataclass(frozen=True)
class Layer:
    """One layer's weights; `claimed` is owner's version -> weights."""

    name: str
    weights: int
    kept: int
    free: int
    claimed: dict[str, int]


@dataclass(frozen=True)
class Owner:
    """A version that took free weights, in the order of registration; `units` that these make, in a store of units."""

    version: str
    task: str
    state: str
    weights: int
    units: int | None


@dataclass(frozen=True)
class Baseline:
    """Another method on the same data and split; `source` is the folder in `runs/` that tells."""

    method: str
    val_top1: float
    test_top1: float | None
    source: str


@dataclass(frozen=True)
class PruneCurve:
    """Validation accuracy before pruning, right after, and after retraining.

    Attributes:
        share: of the weights that the task took, given back; of clnp, of the units that there were for it, gated.
        before, pruned, retrained: accuracies; `retrained` is None where nothing was.
        trials: (share, accuracy) of what was tried.
        judged_from: accuracy before pruning that the trials were compared with; None: `before`, or there were none.
        scan: of clnp, the thresholds that were tried.
    """

    share: float
    before: float
    pruned: float
    retrained: float | None
    trials: tuple[tuple[float, float], ...]
    judged_from: float | None
    scan: tuple[Candidate, ...]


@dataclass(frozen=True)
class TaskFacts:
    """One task, as its stable (or newest) version has it.

    Attributes:
        task, version, method, state, labels, classes: of that version.
        on: task that it is built on; None for the backbone.
        val_top1, test_top1: of its manifest.
        images: pictures in each split.
        bytes: of its artifact.
        network_bytes: of a network of its own in float32, head included.
        used: shared weights that it computes with; None for a retired version, which computes nothing.
        baselines: other methods on the same data.
        run: folder of its run; None where that is not in `runs/`.
        rows: the run's epochs.
        prune: None where nothing was pruned or the run is not there.
        confusion: None where no predictions were kept.
    """

    task: str
    version: str
    method: str
    state: str
    labels: tuple[str, ...]
    on: str | None
    classes: tuple[str, ...]
    val_top1: float | None
    test_top1: float | None
    images: dict[str, int]
    bytes: int
    network_bytes: int
    used: int | None
    baselines: tuple[Baseline, ...]
    run: str | None
    rows: tuple[Row, ...]
    prune: PruneCurve | None
    confusion: Confusion | None


@dataclass(frozen=True)
class Facts:
    """A store at one moment.

    Attributes:
        schema, kind: of report.json.
        store: name of its folder.
        made: when, UTC.
        taskpack: version of the program.
        verdict: one line.
        arch, image_size, keep, backbone: see the backbone's manifest; `backbone` is its digest.
        backbone_bytes: of its file.
        free, total: shared weights.
        capacity: what tasks take: `weights` or `units`.
        tasks_left, rate, turn, taker, units: see `Room`.
        layers, owners, tasks: see there; tasks by name.
        sharing: see `weights.sharing`; its rows and columns are the tasks of `shared`, in the order of registration.
        compared: versions whose digest was computed anew.
        changed: those of them that no longer compute what they did, `task version`.
        changed_bits: 0; None where something changed, as a digest does not tell how much.
        unfinished: runs without an artifact, `folder: task`.
        orphans: finished runs of tasks or versions that the store does not hold, `folder: task`.
        faults: what in `runs/` could not be read.
    """

    schema: int
    kind: str
    store: str
    made: str
    taskpack: str
    verdict: str
    arch: str
    image_size: int
    keep: float
    backbone: str
    backbone_bytes: int
    free: int
    total: int
    capacity: str
    tasks_left: int | None
    rate: float | None
    turn: tuple[int, int] | None
    taker: str | None
    units: tuple[UnitUse, ...]
    layers: tuple[Layer, ...]
    owners: tuple[Owner, ...]
    tasks: tuple[TaskFacts, ...]
    shared: tuple[str, ...]
    sharing: list[list[float]]
    compared: int
    changed: tuple[str, ...]
    changed_bits: int | None
    unfinished: tuple[str, ...]
    orphans: tuple[str, ...]
    faults: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The facts as JSON types."""
        return dataclasses.asdict(self)


KIND = "taskpack-report"


def gather(store: Store) -> Facts:
    """Read a store, its runs, and compute again what every version that answers computes.

    Raises:
        StoreCorrupt: a file of the store is damaged; `taskpack verify` tells more.
    """
    history = read_history(store.runs)
    versions = store.versions()
    ready = [version for version in versions if version.state == "ready"]
    examined = examine(store, ready)
    changed = tuple(f"{v.task} {v.version}" for v in ready if not examined[v.version].unchanged)
    named = sorted(store.tasks(), key=lambda task: _natural(task.name))
    shown = [shown_version(task, [v for v in versions if v.task == task.name]) for task in named]
    drawn = {v.version for v in shown}
    used = {v.version: examined[v.version].used for v in ready if v.version in drawn}  # in the order of registration
    tasks = tuple(
        _task(store, v, versions, history, count_used(used[v.version]) if v.version in used else None) for v in shown
    )
    room, layers = room_of(store, versions, history), _layers(store)
    manifest = store.backbone.manifest
    return Facts(
        schema=1,
        kind=KIND,
        store=store.path.resolve().name,
        made=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        taskpack=library_version("taskpack"),
        verdict=_verdict(ready, changed, room),
        arch=manifest.arch,
        image_size=manifest.image_size,
        keep=manifest.keep,
        backbone=store.backbone_digest,
        backbone_bytes=len(store.artifact_bytes(store.backbone_digest)),
        free=sum(layer.free for layer in layers),
        total=sum(layer.weights for layer in layers),
        capacity=room.of,
        tasks_left=room.tasks_left,
        rate=room.rate,
        turn=room.turn,
        taker=room.taker,
        units=room.units,
        layers=layers,
        owners=_owners(store, versions),
        tasks=tasks,
        shared=tuple(v.task for v in ready if v.version in used),
        sharing=sharing(list(used.values())),
        compared=len(ready),
        changed=changed,
        changed_bits=None if changed else 0,
        unfinished=tuple(f"{run.name}: {run.task}" for run in history.runs if not run.finished),
        orphans=tuple(f"{run.name}: {run.task}" for run in history.runs if run.version and not _kept(run, versions)),
        faults=history.faults,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A name's place among others, its numbers as numbers: `task-2` before `task-10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name, flags=re.ASCII)]


def _verdict(ready: Sequence[Version], changed: Sequence[str], room: Room) -> str:
    """The newest task's accuracy, what became of the others, and the room that is left."""
    if not ready:
        return f"no tasks yet, {percent(room.share)} of the {'units' if room.of == 'units' else 'shared weights'} free"
    newest = ready[-1]
    metrics = newest.manifest.metrics
    parts: list[str] = []
    if metrics.test_top1 is not None:
        parts.append(f"{percent(metrics.test_top1)} test")
    elif metrics.val_top1 is not None:
        parts.append(f"{percent(metrics.val_top1)} validation")
    parts.append(_forgotten(ready, changed))
    if f"{newest.task} {newest.version}" in changed:
        parts.append("it is itself not what it was when it was made")
    units = f" ({room.free:,} of {room.total:,} units)" if room.of == "units" else ""
    parts.append(f"{percent(room.share)} capacity left{units}")
    parts += [told] if (told := told_left(room)) else []
    return f"{newest.task}: {', '.join(parts)}"


def _forgotten(ready: Sequence[Version], changed: Sequence[str]) -> str:
    """How many tasks of before the newest version changed; how many versions, where tasks have several."""
    newest = ready[-1]
    earlier = [version for version in ready if version.version != newest.version]
    lost = [version for version in earlier if f"{version.task} {version.version}" in changed]
    tasks, lost_tasks = ({version.task for version in some} - {newest.task} for some in (earlier, lost))
    text = f"{len(lost_tasks)} of {len(tasks)} earlier tasks changed"
    return text if len(tasks) == len(earlier) else f"{text} ({len(lost)} of {len(earlier)} earlier versions)"


def _layers(store: Store) -> tuple[Layer, ...]:
    """In the order in which the network has them."""
    counts: dict[str, dict[str, int]] = {}
    for version, claim in store.claims().items():
        for name, mask in claim.items():
            counts.setdefault(name, {})[version] = int(mask.sum())
    left = store.capacity_left()
    return tuple(
        Layer(name, kept.numel(), int(kept.sum()), left[name][0], counts.get(name, {}))
        for name, kept in store.backbone.kept.items()
    )


def _owners(store: Store, versions: Sequence[Version]) -> tuple[Owner, ...]:
    return tuple(_owner(store, version) for version in versions if version.holds_claim)


def _owner(store: Store, version: Version) -> Owner:
    claim = store.claim(version.version)
    units = _count(units_of(store.backbone.units, claim)) if store.capacity == "units" else None
    return Owner(version.version, version.task, version.state, _count(claim), units)


def _count(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _task(store: Store, version: Version, versions: Sequence[Version], history: History, used: int | None) -> TaskFacts:
    manifest = version.manifest
    run = next((run for run in reversed(history.runs) if run.version == version.version), None)
    return TaskFacts(
        task=version.task,
        version=version.version,
        method=version.method,
        state=version.state,
        labels=version.labels,
        on=next((v.task for v in versions if v.version == version.parent), None),
        classes=manifest.classes,
        val_top1=manifest.metrics.val_top1,
        test_top1=manifest.metrics.test_top1,
        images=manifest.metrics.images,
        bytes=version.size,
        network_bytes=_network_bytes(store.backbone, len(manifest.classes)),
        used=used,
        baselines=_baselines(version, history),
        run=run.name if run else None,
        rows=run.rows if run else (),
        prune=_prune_curve(run) if run else None,
        confusion=confusion_of(run.predictions, run.split or "", len(manifest.classes))
        if run and run.predictions
        else None,
    )


def _network_bytes(backbone: Backbone, classes: int) -> int:
    body = sum(tensor.numel() * 4 for tensor in backbone.tensors.values())
    return body + 4 * classes * (backbone.features + 1)


def _baselines(version: Version, history: History) -> tuple[Baseline, ...]:
    """Other methods on the very pictures and split of a version, the newest result of each."""
    data = version.manifest.provenance.data
    found = [
        (one.name, Baseline(one.method, one.val_top1, one.test_top1, one.name))
        for one in history.compared
        if one.task == version.task and one.data == data
    ]
    found += [
        (run.name, Baseline(run.method, run.val_top1, run.test_top1, run.name))
        for run in history.runs
        if run.task == version.task and run.data == data and run.val_top1 is not None
    ]
    newest = {baseline.method: baseline for _, baseline in sorted(found, key=lambda pair: pair[0])}
    return tuple(newest[method] for method in sorted(newest) if method != version.method)


def _prune_curve(run: Run) -> PruneCurve | None:
    """From a run whose last phase began with what was pruned, its epoch 0, after a first that trained it."""
    start = max((n for n, row in enumerate(run.rows) if n and row.epoch == 0), default=None)
    share = 1 - kept_of(run.scan).units / run.scan[0].units if run.scan else run.prune
    if start is None or share is None:
        return None
    return PruneCurve(
        share=share,
        before=max(row.val_top1 for row in run.rows if row.phase == run.rows[0].phase),
        pruned=run.rows[start].val_top1,
        retrained=max(row.val_top1 for row in run.rows[start:]) if run.rows[start + 1 :] else None,
        trials=run.trials,
        judged_from=run.judged_from,
        scan=run.scan,
    )


def _kept(run: Run, versions: Sequence[Version]) -> bool:
    return any(run.version == version.version for version in versions)


def percent(share: float) -> str:
    """A share in percent, with one decimal."""
    return f"{100 * share:.1f} %"
