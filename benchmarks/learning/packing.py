"""Pack a sequence of tasks into a real store with `trainer`'s own pipeline, and measure them all at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masks_store import BackboneFile, Store
from trainer import Report, Settings
from trainer.evaluate import evaluate
from trainer.pipeline import train

from .clock import Clock
from .permuted import Cut, grey_backbone, picture_side, write_tasks


@dataclass(frozen=True)
class Packed:
    """One task after its run.

    Attributes:
        report: the trainer's.
        cpu_seconds: of its training, validation included.
        lines: what the run said.
    """

    report: Report
    cpu_seconds: float
    lines: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What a result keeps of it."""
        report = self.report
        return {
            "task": report.task,
            "test_top1": report.test_top1,
            "val_top1": report.val_top1,
            "pruning_loss": report.pruning_loss,
            "prune": report.prune,
            "claimed": report.claimed,
            "free": report.free,
            "total": report.total,
            "tasks_left": report.tasks_left,
            "bytes": report.bytes,
            "presentations": report.presentations,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "units": [
                {"layer": u.layer, "units": u.units, "new": u.new, "reused": u.reused, "free": u.free}
                for u in report.units
            ],
            "said": list(self.lines),
        }


@dataclass(frozen=True)
class PackedAll:
    """All tasks of one seed.

    Attributes:
        packed: in the order in which they were trained.
        after: test accuracy of each, measured on the store when all are in it.
    """

    packed: tuple[Packed, ...]
    after: tuple[float, ...]


def pack(
    mnist: Path,
    arch: str,
    settings: Settings,
    seed: int,
    cut: Cut,
    *,
    capacity: str = "weights",
    beside: Settings | None = None,
    done: Callable[[Packed, Packed | None], None] = lambda _task, _beside: None,
) -> PackedAll:
    """Train the tasks one after another into a new store, then measure every one of them again.

    Args:
        mnist: the digits.
        arch: an `mlp-…`.
        settings: of every task.
        seed: of everything: pictures, permutations, backbone.
        cut: how much of the benchmark.
        capacity: what tasks take of the store.
        beside: train each task so, too, outside of the store: fine-tuning of a network of its own.
        done: told of each task, and of what was trained beside it.
    """
    with tempfile.TemporaryDirectory(prefix="taskpack-permuted-") as temporary:
        folder = Path(temporary)
        sources = write_tasks(mnist, folder, seed, cut)
        backbone = BackboneFile(grey_backbone(arch, picture_side(mnist), keep=0.0, seed=seed))
        with Store.create(folder / "store", backbone, capacity=capacity) as store:
            packed: list[Packed] = []
            for source in sources:
                packed.append(_one(store, source, settings))
                done(packed[-1], _one(store, source, beside) if beside is not None else None)
            return PackedAll(tuple(packed), tuple(_measure(store, sources)))


def _one(store: Store, source: Path, settings: Settings) -> Packed:
    clock = Clock()
    report = train(store, source.stem, str(source), settings, clock)
    return Packed(report, clock.seconds, tuple(clock.lines))


def _measure(store: Store, sources: Sequence[Path]) -> list[float]:
    """Test accuracy of each task as the store gives it now."""
    return [evaluate(store, path.stem, str(path), split="test", threads=1)[0].score.top1 for path in sources]
