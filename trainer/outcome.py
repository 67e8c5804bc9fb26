"""What a run gave: for the command's last lines, `--json`, report.json and the Python API."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from .prune import Trial
from .sparsify import Candidate
from .unit_use import UnitUse


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
