"""From a request to a registered version: what `taskpack train` and `taskpack.open(store).train(…)` do.

Check the settings, reserve the free weights, choose the parent, read the source, train, export, prove that nothing
earlier changed, register. A fine-tuned network takes the same road up to its file, and never enters the store.

Of several processes that torchrun started, all take this road; the first alone reserves, writes, and registers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from masks_store import InvalidInput, Registered, Store, write_file

from .board import Board
from .capacity import capacity_of
from .config import Settings, refuse, resolve_device, setting_faults
from .export import Exported, export
from .ground import base_fault
from .interrupt import Interrupted, stop_requests, stopped
from .job import Job, prepare
from .loop import Diverged, Keeper, Loop, Trained
from .measure import served_network
from .methods import METHODS
from .network import Network
from .outcome import Report, report_of
from .plan import make_fabric, seeded
from .predictions import Predictions
from .progress import Reporter, Silent
from .proof import Witness, check_unchanged, witnesses
from .ranks import OutOfStep, by_first, jointly, largest, process_count, require_equal, shared_end, told_once
from .results import Row
from .runs import RunFolder, drop_superseded, last_checkpoint, new_run, open_run
from .sources import open_source, source_fault
from .standalone import Standalone, standalone
from .threads import threads


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
        _check(store, task, source, settings)
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
            return report_of(job, time.monotonic() - started)
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


def _check(store: Store, task: str, source: str, settings: Settings) -> None:
    """Refuse wrong settings and a source that is not there together, and tell of a base that is none beside them."""
    missing = source_fault(source)
    faults = setting_faults(task, settings) + ([missing] if missing else [])
    base = base_fault(store, settings.on) if faults else None  # alone it is told as what it is: not found
    refuse([*faults, base] if base else faults)


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
    report = report_of(
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
    report = report_of(job, time.monotonic() - started, exported=exported, trained=trained, out=str(out))
    in_store = isinstance(exported, Exported)
    network = served_network(job.ground.backbone, exported.view) if in_store else trained.network.cpu().eval()
    return Rehearsal(report, exported.val, exported.test, network)


def _export(job: Job, trained: Trained, reporter: Reporter) -> Exported | Standalone:
    reporter.say("measuring what the file holds")
    if job.method.in_store:
        return export(job.method, job.ground, job.plan, job.source, trained.network, trained.trainable, job.device)
    return standalone(job.ground, job.plan, job.source, trained.network, job.device)


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
