"""One row per epoch, and the CSV file that holds them."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What one epoch gave; accuracies are fractions of 1.

    Attributes:
        phase, epoch: where; epoch 0 is what a phase started from, measured before its first step.
        lr: the learning rate of its last step.
        train_loss, train_top1: mean over the epoch's pictures as they were seen, augmented and still learning.
        val_loss, val_top1: on the whole validation split, after the epoch.
        best: whether it is the phase's best so far: higher accuracy or, at the same, lower loss.
        seconds: of the epoch, validation included.
        images_per_second: of its training part.
        cpu_seconds: CPU time of this process (under torchrun, the first): the epoch, validation included, and, in a
            phase's first row, what the method did before it. Over all sittings, each up to its last checkpoint: what
            was lost and made again counts once. None: of a version that did not count.
    """

    phase: str
    epoch: int
    lr: float
    train_loss: float | None
    train_top1: float | None
    val_loss: float
    val_top1: float
    best: bool
    seconds: float
    images_per_second: float
    cpu_seconds: float | None = None


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV text with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    for row in rows:
        writer.writerow(_cell(value) for value in dataclasses.astuple(row))
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """Read what `as_csv` wrote; the six digits of its floats are what it has.

    Raises:
        ValueError: it is something else.
    """
    reader = csv.DictReader(io.StringIO(text))
    names = [field.name for field in dataclasses.fields(Row)]
    if reader.fieldnames not in (names, [name for name in names if name != "cpu_seconds"]):
        raise ValueError(f"expected the columns {', '.join(names)}")
    rows = list(reader)
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a line has too many cells, or too few")
    return [
        Row(
            phase=row["phase"],
            epoch=int(row["epoch"]),
            lr=float(row["lr"]),
            train_loss=float(row["train_loss"]) if row["train_loss"] else None,
            train_top1=float(row["train_top1"]) if row["train_top1"] else None,
            val_loss=float(row["val_loss"]),
            val_top1=float(row["val_top1"]),
            best=row["best"] == "1",
            seconds=float(row["seconds"]),
            images_per_second=float(row["images_per_second"]),
            cpu_seconds=float(row["cpu_seconds"]) if row.get("cpu_seconds") else None,
        )
        for row in rows
    ]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
