"""What a run gave: for the command's last lines, `--json`, report.json and the Python API."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from masks_store import Artifact, decode_claim, decode_selection

from .capacity import Capacity
from .export import Exported
from .job import Job
from .loop import Trained
from .methods.packnet import trials
from .plan import Plan
from .prune import DEFAULT_PRUNE, Trial, chosen_share
from .results import Row
from .sparsify import Candidate, kept_of
from .standalone import Standalone
from .unit_use import UnitUse, unit_use, units_left


@dataclass(frozen=True)
class Report:
    """The result of `train`; accuracies are fractions of 1.

    Attributes:
        task, method, parent: what was trained, on what.
        version: digest of the artifact; None for a dry run and for a fine-tuned network.
        labels: that point at the version now.
        out: file that the artifact was written to instead of being registered.
        val_top1, test_top1: of the artifact as it reads back; the test split was read once, after all choices.
        pruning_loss: best validation accuracy before pruning minus `val_top1`; None where nothing was pruned or gated.
            Under a mixed precision the first is measured in that, the second in fp32.
        images: pictures in each split.
        bytes: of the artifact, or of the fine-tuned network's file.
        parts: kind of tensor (`adapter`, `norm`, `mask`, `value`, `bias`, `head`, `probe`) -> bytes in the artifact.
        prune: share of what it took that it gave back; None for a method that takes none.
        trials: what `--prune auto` tried, in that order; empty for a given share.
        presentations: training pictures shown, over all epochs of all phases and trials.
        claimed: shared weights that the version owns.
        hidden: shared weights of its lineage that its bitmask hides from it; None where it has none.
        free, total: shared weights that nobody owns now, and all.
        tasks_left: further tasks that find enough, at `prune`, at `equal:T`, or each taking as many units of every
            layer as this one; None for a method that takes none.
        changed_bits: of earlier tasks; anything but 0 is an error instead of a report.
        compared: earlier versions that this was proved for.
        seconds: of this sitting.
        cpu_seconds: CPU time of the training itself, validation included, over all sittings, each up to its last
            checkpoint; reading, exporting and proving are not in it. Under torchrun, the first process's.
        run: the run's directory.
        dry_run: nothing was done.
        units: per layer what a clnp task added and reused, and what is left; empty for the others.
        plan: the resolved settings.
        warnings: what the user should know.
        scan: the thresholds that a clnp task tried for its units, upwards; empty for the others.
    """

    task: str
    method: str
    parent: str | None
    version: str | None
    labels: tuple[str, ...]
    out: str | None
    val_top1: float | None
    test_top1: float | None
    pruning_loss: float | None
    images: dict[str, int]
    bytes: int | None
    parts: dict[str, int]
    prune: float | None
    trials: tuple[Trial, ...]
    presentations: int
    claimed: int
    free: int
    total: int
    tasks_left: int | None
    changed_bits: int
    compared: int
    seconds: float
    cpu_seconds: float
    run: str | None
    dry_run: bool
    plan: dict[str, Any]
    warnings: tuple[str, ...] = ()
    units: tuple[UnitUse, ...] = ()
    scan: tuple[Candidate, ...] = ()
    hidden: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave; what a version did not keep yet is 0, empty or None."""
        typed: dict[str, Any] = {"cpu_seconds": 0.0, **fields}
        typed |= {name: tuple(fields[name]) for name in ("labels", "warnings")}
        typed["trials"] = tuple(Trial(**trial) for trial in fields["trials"])
        typed["units"] = tuple(UnitUse(**use) for use in fields["units"])
        typed["scan"] = tuple(Candidate(**candidate) for candidate in fields.get("scan", ()))
        return cls(**typed)


def report_of(
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
    """Put together what a run gave; a dry run without what was trained.

    Args:
        job: the run; its capacity is that after it, but for a file that was not registered.
        seconds: of this sitting.
        exported, trained: what came of it.
        compared, labels, out, run: see `Report`.
    """
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
