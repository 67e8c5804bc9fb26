"""From a request to a registered version: what `taskpack train` and `taskpack.open(store).train(…)` do.

Check the settings, reserve the free weights, choose the parent, read the source, train, export, prove that nothing
earlier changed, register. A fine-tuned network takes the same road up to its file, and never enters the store.

Of several processes that torchrun started, all take this road; the first alone reserves, writes, and registers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from masks_store import Artifact, InvalidInput, Registered, Store, decode_claim, decode_selection, write_file

from .batches import batch_sizes
from .board import Board
from .capacity import Capacity, capacity_of, cost, starving
from .config import Settings, check_settings, resolve_device
from .data import Source, load_source
from .export import Exported, export
from .folds import FOLDS, fold_sources, too_small_for_folds
from .ground import Ground, ground_for
from .interrupt import Interrupted, stop_requests, stopped
from .loop import Diverged, Keeper, Loop, Trained
from .measure import served_network
from .methods import METHODS, Method
from .methods.packnet import by_folds, trials
from .network import Network
from .outcome import Report
from .phase import Phase
from .plan import Plan, make_fabric, make_plan, seeded, slow_precision
from .predictions import Predictions
from .progress import Reporter, Silent
from .proof import Witness, check_unchanged, witnesses
from .prune import DEFAULT_PRUNE, chosen_share, too_small_for_auto
from .ranks import OutOfStep, by_first, jointly, largest, process_count, require_equal, shared_end, told_once
from .results import Row
from .runs import RunFolder, drop_superseded, last_checkpoint, new_run, open_run
from .selecting import too_few_steps
from .sources import open_source
from .sparsify import kept_of
from .standalone import Standalone, standalone
from .unit_use import unit_cost, unit_use, units_left


def train(store: Store, task: str, source: str, settings: Settings, reporter: Reporter | None = None) -> Report:
    """Train a task and register it (or write it to `settings.out`).

    Args:
        store: where it goes.
        task: its name.
        source: its pictures: a folder, `.zip`, `.npz`, `torchvision:<Dataset>` or `sklearn:<set>`.
        settings: the rest; None means the method's default.
        reporter: shows what happens; by default nothing is shown.

    Raises:
        InvalidInput: settings or source are wrong; every fault at once.
        OutOfCapacity: packnet finds no free weights.
        StoreReserved: another run holds the free weights.
        Diverged: the loss was not finite.
        Forgotten: an earlier task would change; nothing was registered.
        Interrupted: Ctrl-C or SIGTERM; the checkpoint was kept, and `resume=True` goes on.
        ProcessLost, OutOfStep, ToldElsewhere: under torchrun, see `ranks.py`.
    """
    with told_once(InvalidInput):
        check_settings(task, settings)
    started = time.monotonic()
    reporter = reporter or Silent()
    method = METHODS[settings.method]
    fabric = make_fabric(settings.precision, resolve_device(settings.device), process_count())
    with contextlib.ExitStack() as stack:
        stack.enter_context(shared_end(fabric))
        stack.enter_context(threads(settings.threads))
        if method.takes_weights and not settings.dry_run:
            by_first(fabric, lambda: stack.enter_context(store.reserve(f"train {task}")))
        job = _prepare_jointly(store, task, source, settings, fabric, reporter)
        if settings.dry_run:
            return _report(job, time.monotonic() - started)
        before = by_first(fabric, lambda: witnesses(store) if method.in_store else {})
        run = open_run(store.runs, job.plan, reporter, resume=settings.resume)
        folder = by_first(fabric, lambda: stack.enter_context(run))
        board = Board(folder.path, job.capacity.free) if folder is not None and settings.tensorboard else None
        if board is not None:
            stack.callback(board.close)
        trained = _train(job, folder, fabric, reporter, board)
        finished = by_first(
            fabric, lambda: _finish(store, job, trained, before, folder, board, settings, started, reporter)
        )
        report = fabric.broadcast(finished)
    assert report is not None
    return report


def _finish(
    store: Store,
    job: Job,
    trained: Trained,
    before: Mapping[str, Witness] | None,
    folder: RunFolder | None,
    board: Board | None,
    settings: Settings,
    started: float,
    reporter: Reporter,
) -> Report:
    """What the first process does alone after the training: export, prove, publish, write down."""
    assert before is not None
    assert folder is not None
    exported = _export(job, trained, reporter)
    compared = 0
    if isinstance(exported, Exported):
        compared = check_unchanged(store, before, exported.artifact, job.ground.claims)
    labels = _publish(store, exported, settings)
    report = _report(
        dataclasses.replace(job, capacity=capacity_of(store.capacity_left().values())),
        time.monotonic() - started,
        exported=exported,
        trained=trained,
        compared=compared,
        labels=labels,
        out=str(settings.out) if settings.out is not None else None,
        run=str(folder.path),
    )
    folder.write_predictions("val", exported.val)
    if exported.test is not None:
        folder.write_predictions("test", exported.test)
    if board is not None:
        board.finish(len(trained.rows), report.free)
    folder.finish(report.as_json())
    drop_superseded(store.runs, folder, job.plan.task)
    return report


@dataclass(frozen=True)
class Rehearsal:
    """A run that left its store alone.

    Attributes:
        report: as of a run with `out`: the capacity that would be left.
        val, test: what the file says of these splits; None without a test split.
        network: what a server computes of the file, on the CPU.
    """

    report: Report
    val: Predictions
    test: Predictions | None
    network: Network


def rehearse(job: Job, out: Path, runs: Path, reporter: Reporter) -> Rehearsal:
    """Train a prepared task as `train` does, and neither register it nor write anything in its store.

    Args:
        job: what `prepare` made.
        out: the file that the artifact is written to.
        runs: a folder for the run's directory.
        reporter: shows what happens.

    Raises:
        Diverged, Interrupted: as `train`.
    """
    started = time.monotonic()
    fabric = make_fabric(job.plan.precision, job.device)
    with contextlib.closing(new_run(runs, job.plan)) as folder:
        trained = _train(job, folder, fabric, reporter)
    exported = _export(job, trained, reporter)
    write_file(out, exported.data)
    report = _report(job, time.monotonic() - started, exported=exported, trained=trained, out=str(out))
    in_store = isinstance(exported, Exported)
    network = served_network(job.ground.backbone, exported.view) if in_store else trained.network.cpu().eval()
    return Rehearsal(report, exported.val, exported.test, network)


def _export(job: Job, trained: Trained, reporter: Reporter) -> Exported | Standalone:
    reporter.say("measuring what the file holds")
    if job.method.in_store:
        return export(job.method, job.ground, job.plan, job.source, trained.network, trained.trainable, job.device)
    return standalone(job.ground, job.plan, job.source, trained.network, job.device)


@dataclass(frozen=True)
class Job:
    """All that is decided before the first step.

    Attributes:
        method, ground, plan, source, device: see `Loop`.
        capacity: of the store, before.
        warnings: for the user.
        folds: sources of the plan's phases in folds.
    """

    method: Method
    ground: Ground
    plan: Plan
    source: Source
    device: torch.device
    capacity: Capacity
    warnings: tuple[str, ...]
    folds: tuple[Source, ...] = ()


def prepare(
    store: Store, task: str, source: str | Source, settings: Settings, reporter: Reporter, processes: int = 1
) -> Job:
    """Resolve everything, and tell the user what is about to happen. Writes nothing.

    Args:
        store, task, settings, reporter: as for `train`.
        source: its pictures, or what `read_source` made of them.
        processes: that will train it together.
    """
    method = METHODS[settings.method]
    ground = ground_for(store, task, settings.method, settings.on)
    choices = method.choose(ground, settings)
    capacity = capacity_of(store.capacity_left().values())
    device = resolve_device(settings.device)
    data = source if isinstance(source, Source) else read_source(store, source, settings, reporter)
    warnings = list(data.warnings)
    small = too_small_for_auto(data) if choices.prune == "auto" else None
    too_few = too_small_for_folds(data) if small is not None else None
    folds: tuple[Source, ...] = ()
    if too_few is not None:
        warnings.append(f"{small}; {too_few}: so the share is {DEFAULT_PRUNE:g}")
        choices = method.choose(ground, dataclasses.replace(settings, prune=None, margin=None))
    elif small is not None:
        folds, choices = fold_sources(data, settings.seed), by_folds(choices)
    if method.takes_weights and settings.train_layers != "head" and capacity.starved:
        warnings.append(starving(capacity, settings.method))
    if lent := ground.lent_norm() if settings.method == "packnet" and not choices.own_norm else None:
        warnings.append(
            f"its BatchNorm is the base's, which task {lent!r} trained for itself; --norm own gives {task!r} its own"
        )
    if slow := slow_precision(settings.precision, device):
        warnings.append(slow)
    plan = make_plan(task, settings, ground, choices, data, device, processes)
    if still := _still_masks(plan, data):
        warnings.append(still)
    _check_shares(plan, (data, *folds))
    _introduce(store, plan, data, _cost(ground, plan, capacity, choices.takes), reporter)
    if folds:
        reporter.say(f"{small}, so {_fold_cost(plan.phases, data, folds)}")
    for warning in warnings:
        reporter.warn(warning)
    return Job(method, ground, plan, data, device, capacity, tuple(warnings), folds)


def _still_masks(plan: Plan, data: Source) -> str | None:
    """What is to be said where bitmasks are to be learned in too few steps."""
    if plan.method != "piggyback" and not plan.pick:
        return None
    return too_few_steps(plan.phases[0], len(batch_sizes(len(data.splits["train"]), plan.batch_size)))


def _fold_cost(phases: Sequence[Phase], data: Source, folds: Sequence[Source]) -> str:
    """What a search by folds does beside the run's own phases, if no trial ends it early."""
    own = sum(phase.epochs for phase in phases if phase.fold is None) * len(data.splits["train"])
    extra = sum(p.epochs * len(folds[p.fold - 1].splits["train"]) for p in phases if p.fold is not None)
    tried = sum(phase.fold is not None and phase.prune is not None for phase in phases)
    pool = sum(len(split) for split in folds[0].splits.values())
    return (
        f"the share is chosen by {FOLDS} folds of the {pool:,} pictures that are not for testing: {FOLDS} trainings "
        f"and up to {tried} trials more, at most {(own + extra) / own:.1f} times the pictures of a given share"
    )


def _prepare_jointly(
    store: Store, task: str, source: str, settings: Settings, fabric: Fabric, reporter: Reporter
) -> Job:
    """`prepare` in every process, for the very same run."""
    if fabric.world_size > 1:
        by_first(fabric, lambda: open_source(source))  # it may have to download the pictures: once
    job = jointly(fabric, lambda: prepare(store, task, source, settings, reporter, fabric.world_size))
    with told_once(OutOfStep):
        require_equal(fabric, "store, pictures and settings", json.dumps(job.plan.as_json(), sort_keys=True))
    return job


def _check_shares(plan: Plan, sources: Sequence[Source]) -> None:
    """Each process gets a picture of every batch."""
    smallest = min(min(batch_sizes(len(source.splits["train"]), plan.batch_size)) for source in sources)
    if smallest < plan.processes:
        raise InvalidInput(
            f"{plan.processes} processes cannot share a batch of {smallest}: --batch-size {plan.batch_size} is for all "
            "processes together; give a larger one, or start fewer processes"
        )


def read_source(store: Store, source: str, settings: Settings, reporter: Reporter) -> Source:
    """Read a source's pictures as a run of these settings sees them."""
    return load_source(
        source,
        seed=settings.seed,
        skip_broken=settings.skip_broken,
        preprocess=store.backbone.manifest.preprocess,
        threads=torch.get_num_threads(),
        progress=reporter.load,
    )


def _introduce(store: Store, plan: Plan, data: Source, taking: str | None, reporter: Reporter) -> None:
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    base = next((f"{v.task} ({v.version[:19]})" for v in store.versions() if v.version == plan.parent), "the backbone")
    reporter.say(f"{plan.task}: {plan.method} on {base}; {len(plan.classes)} classes; pictures: {sizes}")
    if taking is not None:
        known = any(v.task == plan.task for v in store.versions())
        text = f"task {plan.turn[0]} of {plan.turn[1]} equal ones: " if plan.turn else ""
        text += "the versions that are there keep theirs, and this one " if known else ""
        reporter.say(text + taking)


def _cost(ground: Ground, plan: Plan, capacity: Capacity, takes: int) -> str | None:
    """What the run takes of the store, in words; None where it takes nothing."""
    if plan.method == "clnp":
        return unit_cost(ground.backbone, ground.free)
    return cost(capacity, takes, plan.prune) if plan.prune is not None else None


def _train(
    job: Job, folder: RunFolder | None, fabric: Fabric, reporter: Reporter, board: Board | None = None
) -> Trained:
    """Run the loop; `folder` is the first process's, which alone writes there."""
    path = fabric.broadcast(folder.path if folder else None)
    assert path is not None

    def results(rows: list[Row]) -> None:
        if folder is not None:
            folder.write_results(rows)
        if board is not None:
            board.write(rows)

    with (
        seeded(job.plan, job.device),
        stop_requests() as stop,
        shared_end(fabric),
        told_once(Diverged, OutOfStep),
    ):
        save = folder.write if folder else _nothing
        keeper = Keeper(save=save, results=results, stop=lambda: bool(stop()))
        loop = Loop(job.method, job.ground, job.plan, job.source, fabric, reporter, keeper, folds=job.folds)
        checkpoint = last_checkpoint(path)
        fabric.barrier()  # all have read it before the first writes another
        try:
            return loop.run(checkpoint)
        except Interrupted as interrupted:
            raise stopped(path, largest(fabric, stop())) from interrupted


def _nothing(_: object) -> None:
    """Only the first process writes."""


def _publish(store: Store, exported: Exported | Standalone, settings: Settings) -> tuple[str, ...]:
    """Write the file that was asked for, or register the artifact; returns the labels that point at it."""
    if settings.out is not None:
        write_file(Path(settings.out), exported.data)
    if settings.out is not None or isinstance(exported, Standalone):
        return ()
    registered: Registered = store.register(exported.data, label=settings.label)  # pyright: ignore[reportArgumentType]
    return registered.version.labels


def _report(
    job: Job,
    seconds: float,
    *,
    exported: Exported | Standalone | None = None,
    trained: Trained | None = None,
    compared: int = 0,
    labels: tuple[str, ...] = (),
    out: str | None = None,
    run: str | None = None,
) -> Report:
    plan, capacity = job.plan, job.capacity
    rows = trained.rows if trained else ()
    tried = trials(plan, trained.hits) if trained else []
    prune = plan.prune if plan.prune != "auto" else chosen_share(tried) if trained else None
    main = [row.val_top1 for row in trained.rows if row.phase == plan.phases[0].name] if trained else []
    artifact = exported.artifact if isinstance(exported, Exported) else None
    claimed = _claimed(job, artifact) if artifact else 0
    clnp = artifact is not None and artifact.manifest.method == "clnp"
    uses = unit_use(job.ground.backbone, artifact, job.ground.free) if artifact and clnp else ()
    if out is not None:  # not registered, so its claim is not taken off yet
        capacity = Capacity(capacity.free - claimed, capacity.total)
    return Report(
        task=plan.task,
        method=plan.method,
        parent=plan.parent,
        version=artifact.version if artifact else None,
        labels=labels,
        out=out,
        val_top1=exported.val.top1 if exported else None,
        test_top1=exported.test.top1 if exported and exported.test else None,
        pruning_loss=max(main) - exported.val.top1 if exported and trained and _gave_back(prune, trained) else None,
        images={name: len(split) for name, split in job.source.splits.items()},
        bytes=len(exported.data) if exported else None,
        parts=_parts(artifact.tensors) if artifact else {},
        prune=prune,
        trials=tuple(tried),
        presentations=_presentations(job, rows),
        claimed=claimed,
        free=capacity.free,
        total=capacity.total,
        tasks_left=units_left(uses) if clnp else _tasks_left(plan, capacity, prune, taken=claimed > 0),
        changed_bits=0,
        compared=compared,
        seconds=seconds,
        cpu_seconds=trained.cpu_seconds if trained else 0.0,
        run=run,
        dry_run=exported is None,
        plan=plan.as_json(),
        warnings=job.warnings,
        units=uses,
        scan=trained.scan if trained else (),
        hidden=_hidden(job, artifact) if artifact else None,
    )


def _presentations(job: Job, rows: Sequence[Row]) -> int:
    """How many training pictures were shown."""
    folds = {phase.name: phase.fold for phase in job.plan.phases}
    seen = (job.source if (fold := folds[row.phase]) is None else job.folds[fold - 1] for row in rows if row.epoch > 0)
    return sum(len(source.splits["train"]) for source in seen)


def _parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Kind of tensor -> bytes."""
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        kind = re.split(r"[/.]", name, maxsplit=1)[0]
        sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
    return sizes


def _tasks_left(plan: Plan, capacity: Capacity, prune: float | None, *, taken: bool) -> int | None:
    """How many more tasks find enough, at the same share (the default one after a task that takes nothing), or of T."""
    if plan.turn is not None:
        turn, tasks = plan.turn
        return tasks - turn + (not taken)
    if prune is None:
        return None
    return capacity.tasks_left(DEFAULT_PRUNE if plan.train_layers == "head" else prune)


def _gave_back(prune: float | None, trained: Trained) -> bool:
    """Whether a run pruned or gated anything of what it had trained."""
    return bool(prune) or (bool(trained.scan) and kept_of(trained.scan).units < trained.scan[0].units)


def _claimed(job: Job, artifact: Artifact) -> int:
    """How many shared weights the artifact owns."""
    claim = decode_claim(artifact, job.ground.backbone, job.ground.claims)
    return sum(int(mask.sum()) for mask in claim.values())


def _hidden(job: Job, artifact: Artifact) -> int | None:
    """How many weights of its lineage a bitmask hides."""
    if not artifact.manifest.selections:
        return None
    chosen = decode_selection(artifact, job.ground.backbone, job.ground.claims)
    return sum(int((job.ground.owned[name] & ~mask).sum()) for name, mask in chosen.items())


@contextlib.contextmanager
def threads(count: int | None) -> Generator[None]:
    """Run the block with so many threads of CPU arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
