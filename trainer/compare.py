"""`taskpack compare`: several methods on the same task, data, split and seed; nothing is registered."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masks_store import InvalidInput, Preprocess, Store, TaskpackError, normalise

from .config import TAKEN_BY, TRAINABLE_METHODS, Settings, check_settings, takes
from .data import Source
from .interrupt import Interrupted
from .job import Job, prepare, read_source
from .metrics import calibration_error, macro_f1, paired_interval
from .pipeline import Rehearsal, rehearse
from .predictions import Predictions
from .progress import Reporter, Silent
from .ranks import refuse_processes
from .runs import keep_comparison
from .sources import source_fault
from .threads import threads
from .timing import per_image

BATCHES = (1, 32)
UPPER_BASELINE = "finetune"


@dataclass(frozen=True)
class Difference:
    """Test accuracy of a method minus the reference's, on the same pictures, in fractions of 1.

    Attributes:
        mean: of the paired differences.
        low, high: ends of the 95 % percentile bootstrap interval over pictures.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """What one method came to; accuracies are fractions of 1.

    Attributes:
        method: its name.
        val_top1, test_top1: of the artifact as it reads back; None without a test split.
        macro_f1, calibration_error: on the comparison's `split`; see `metrics`.
        difference: to the reference, on `split`; None for the reference itself.
        bytes: that the task adds.
        milliseconds: batch size -> CPU milliseconds per image, one thread, eager fp32; median of interleaved rounds. Of
            clnp: of the smaller network that is cut out.
        claimed: free weights that it takes.
        free, total: weights that would be free for the next task, and all.
        seconds: of its training and measuring.
        phases: as trained.
        version: digest of the artifact; None for a method that makes none.
    """

    method: str
    val_top1: float
    test_top1: float | None
    macro_f1: float
    calibration_error: float
    difference: Difference | None
    bytes: int
    milliseconds: Mapping[str, float]
    claimed: int
    free: int
    total: int
    seconds: float
    phases: Sequence[Mapping[str, Any]]
    version: str | None


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        task: its name.
        data: digest of the source and its split.
        seed: of split, training and bootstrap.
        split: what all but `val_top1` is measured on: `test`, or `val` where there is no test split.
        images: pictures in each split.
        reference: the method that differences are to: finetune where it takes part, else the first.
        methods: in the order asked for.
    """

    task: str
    data: str
    seed: int
    split: str
    images: Mapping[str, int]
    reference: str
    methods: tuple[Measured, ...]

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        return dataclasses.asdict(self)


def compare(
    store: Store,
    task: str,
    source: str,
    methods: Sequence[str],
    settings: Settings,
    *,
    out: Path | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Train a task with each method and measure them side by side.

    The store is left as it is, but for the result, which is kept in its `runs/` for `taskpack report` once all is done.

    Args:
        store: what the task would be packed into.
        task: its name.
        source: its pictures, see `train`.
        methods: names of `METHODS`, no two the same.
        settings: for all methods; one that is not for a method (`config.TAKEN_BY`) stays at its default there, and is
            refused where it is for none of them. `method`, `label`, `out`, `tensorboard`, `resume` and `dry_run` have
            no meaning here.
        out: a folder that keeps the artifacts; None: they are thrown away.
        reporter: shows what happens.

    Raises:
        InvalidInput: a method or setting is wrong, or a method cannot be trained on this store; every fault at once.
        Diverged: a method's loss was not finite.
        Interrupted: Ctrl-C; the store is as it was.
    """
    refuse_processes("compare")
    reporter = reporter or Silent()
    chosen = _settings_of(task, source, methods, settings)
    with tempfile.TemporaryDirectory(prefix="taskpack-compare-") as temporary, threads(settings.threads):
        data = read_source(store, source, settings, reporter)
        jobs = _prepare_all(store, task, data, chosen, reporter)
        artifacts = Path(temporary) if out is None else out
        artifacts.mkdir(parents=True, exist_ok=True)
        rehearsals = {
            method: _rehearse(job, artifacts, Path(temporary) / "runs", f"{number} of {len(jobs)}", reporter)
            for number, (method, job) in enumerate(jobs.items(), 1)
        }
        reporter.say("measuring the time per image, one thread")
        times = milliseconds(rehearsals, data, store.backbone.manifest.preprocess)
        comparison = _conclude(task, data, settings.seed, rehearsals, times)
    keep_comparison(store.runs, comparison.as_json())
    return comparison


def _settings_of(task: str, source: str, methods: Sequence[str], settings: Settings) -> dict[str, Settings]:
    """Each method's own settings, all of them checked, and that there is such a source."""
    faults = [f"{name!r} is named twice" for name in dict.fromkeys(methods) if list(methods).count(name) > 1]
    faults += [] if methods else ["no method was named"]
    faults += _untaken(methods, settings)
    chosen: dict[str, Settings] = {}
    for name in dict.fromkeys(methods):
        chosen[name] = dataclasses.replace(
            settings,
            **_defaults_of_others(name, settings),
            method=name,
            out=None,
            label="none",
            tensorboard=False,
            resume=False,
            dry_run=False,
        )
        try:
            check_settings(task, chosen[name])
        except InvalidInput as error:
            faults += error.faults
    missing = source_fault(source)
    _refuse([*faults, missing] if missing else faults)
    return chosen


def _untaken(methods: Sequence[str], settings: Settings) -> list[str]:
    """What is asked for and is for none of the methods."""
    known = [name for name in dict.fromkeys(methods) if name in TRAINABLE_METHODS]
    asked = [name for name in TAKEN_BY if getattr(settings, name) != getattr(Settings(), name)]
    return [
        f"--{name.replace('_', '-')} is for {_takers(name)}, and not for {', '.join(known)}: leave it out, or compare "
        "with a method that takes it"
        for name in asked
        if known and not any(takes(method, name, settings) for method in known)
    ]


def _takers(name: str) -> str:
    """The methods that take a setting, in words."""
    takers = ["packnet with --prune auto" if (one, name) == ("packnet", "margin") else one for one in TAKEN_BY[name]]
    return ", ".join(takers)


def _defaults_of_others(method: str, settings: Settings) -> dict[str, Any]:
    """The defaults of all settings that are not for a method."""
    return {name: getattr(Settings(), name) for name in TAKEN_BY if not takes(method, name, settings)}


def _prepare_all(
    store: Store, task: str, data: Source, chosen: Mapping[str, Settings], reporter: Reporter
) -> dict[str, Job]:
    """What every method needs before its first step: one that cannot be trained here is told before any is."""
    jobs: dict[str, Job] = {}
    faults: list[str] = []
    for name, settings in chosen.items():
        try:
            jobs[name] = prepare(store, task, data, settings, reporter)
        except TaskpackError as error:
            faults.append(f"{name}: {error}")
    _refuse(faults)
    return jobs


def _refuse(faults: Sequence[str]) -> None:
    told = list(dict.fromkeys(faults))
    if told:
        raise InvalidInput(told[0] if len(told) == 1 else f"{len(told)} things keep this from being compared", told)


def _rehearse(job: Job, artifacts: Path, runs: Path, place: str, reporter: Reporter) -> Rehearsal:
    reporter.say(f"{job.plan.method} ({place})")
    try:
        return rehearse(job, artifacts / f"{job.plan.method}.safetensors", runs, reporter)
    except Interrupted as interrupted:
        raise Interrupted("stopped; the store is as it was", number=interrupted.number) from interrupted


def milliseconds(
    rehearsals: Mapping[str, Rehearsal], data: Source, preprocess: Preprocess
) -> dict[str, dict[str, float]]:
    """Method -> batch size -> CPU milliseconds per image: eager, fp32, one thread, in interleaved rounds.

    What a server adds (decoding, queueing) and saves (batches over tasks, fused kernels) is not in it.
    """
    networks = {method: one.network for method, one in rehearsals.items()}
    found: dict[str, dict[str, float]] = {method: {} for method in networks}
    with threads(1):
        for size in BATCHES:
            for method, taken in per_image(networks, _pictures(data, size, preprocess)).items():
                found[method][str(size)] = taken
    return found


def _pictures(data: Source, count: int, preprocess: Preprocess) -> torch.Tensor:
    """The first pictures of the validation split, over again where it has fewer: float32 [count, 3, size, size]."""
    val = data.splits["val"]
    squares = val.squares(np.arange(count, dtype=np.int64) % len(val), preprocess)  # [count, size, size, 3]
    return normalise(torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2))), preprocess)


def _conclude(
    task: str,
    data: Source,
    seed: int,
    rehearsals: Mapping[str, Rehearsal],
    times: Mapping[str, Mapping[str, float]],
) -> Comparison:
    reference = UPPER_BASELINE if UPPER_BASELINE in rehearsals else next(iter(rehearsals))
    base = _measured_on(rehearsals[reference])
    return Comparison(
        task=task,
        data=data.digest,
        seed=seed,
        split="test" if "test" in data.splits else "val",
        images={name: len(split) for name, split in data.splits.items()},
        reference=reference,
        methods=tuple(
            _measured(method, one, None if method == reference else base, seed, times[method])
            for method, one in rehearsals.items()
        ),
    )


def _measured(method: str, one: Rehearsal, base: Predictions | None, seed: int, times: Mapping[str, float]) -> Measured:
    said, report = _measured_on(one), one.report
    return Measured(
        method=method,
        val_top1=one.val.top1,
        test_top1=one.test.top1 if one.test is not None else None,
        macro_f1=macro_f1(said.labels, said.predicted),
        calibration_error=calibration_error(said.correct, said.confidence),
        difference=_difference(said, base, seed) if base is not None else None,
        bytes=report.bytes or 0,
        milliseconds=dict(times),
        claimed=report.claimed,
        free=report.free,
        total=report.total,
        seconds=report.seconds,
        phases=report.plan["phases"],
        version=report.version,
    )


def _measured_on(one: Rehearsal) -> Predictions:
    return one.test if one.test is not None else one.val


def _difference(said: Predictions, base: Predictions, seed: int) -> Difference:
    paired = said.correct.astype(np.float64) - base.correct.astype(np.float64)  # [N], -1, 0 or 1
    low, high = paired_interval(paired, seed=seed)
    return Difference(float(paired.mean()), low, high)
