"""What a run shows while it goes on: a bar at a terminal, plain lines elsewhere, nothing for the Python API."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TextIO, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .phase import Phase
from .results import Row


@dataclass(frozen=True)
class Tick:
    """The state of an epoch after a step.

    Attributes:
        epoch: 1-based.
        batch, batches: done of the epoch, and in it.
        loss, top1: means over the epoch so far.
        images_per_second: over the epoch so far.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    top1: float
    images_per_second: float


class Reporter(ABC):
    """Told by a run what happens; decides what a person sees of it."""

    @abstractmethod
    def say(self, text: str) -> None:
        """A line for the user."""

    @abstractmethod
    def warn(self, text: str) -> None:
        """A line that asks for attention."""

    @abstractmethod
    def load(self, done: int, total: int) -> None:
        """So many of a source's pictures have been read."""

    @abstractmethod
    def begin(self, phase: Phase, number: int, count: int, batches: int) -> None:
        """A phase begins, the `number`-th of `count`, with `batches` steps an epoch."""

    def wants_tick(self) -> bool:
        """Whether a `tick` now would be shown; asked every step, so that what nobody sees is not computed."""
        return False

    def tick(self, tick: Tick) -> None:  # noqa: B027  (nothing is a fine thing to show)
        """A step is done; only called after `wants_tick`."""

    @abstractmethod
    def epoch(self, row: Row) -> None:
        """An epoch is done."""

    def close(self) -> None:  # noqa: B027
        """The run is over, well or not."""


@final
class Silent(Reporter):
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def load(self, done: int, total: int) -> None:
        """Nothing."""

    def begin(self, phase: Phase, number: int, count: int, batches: int) -> None:
        """Nothing."""

    def epoch(self, row: Row) -> None:
        """Nothing."""


@final
class Lines(Reporter):
    """One plain line per epoch: for logs, pipes and files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase: Phase | None = None

    def say(self, text: str) -> None:
        """The line itself."""
        print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """The line, marked."""
        self.say(f"warning: {text}")

    def load(self, done: int, total: int) -> None:
        """Only that it is done."""
        if done == total:
            self.say(f"read {total:,} pictures")

    def begin(self, phase: Phase, number: int, count: int, batches: int) -> None:
        """The phase's name and length."""
        self._phase = phase
        length = f", {phase.epochs} epochs of {batches} steps" if phase.epochs else ""
        self.say(f"phase {number} of {count}: {phase.name}{length}")

    def epoch(self, row: Row) -> None:
        """The epoch's figures."""
        epochs = self._phase.epochs if self._phase else row.epoch
        where = f"{row.phase} {row.epoch}/{epochs}" if epochs else row.phase
        self.say(f"  {where}  {_figures(row)}  {row.seconds:.1f} s")


@final
class Bars(Reporter):
    """A bar per phase with the time left, epoch, loss, accuracy and images per second: for a terminal."""

    EVERY = 0.1  # seconds between two looks at the loss, which on a GPU waits for it

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0
        self._phase: Phase | None = None
        self._bar: TaskID | None = None
        self._loading: TaskID | None = None
        self._progress = Progress(  # what may be cropped at 80 columns stands last
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._progress.start()

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """A yellow line above the bars."""
        self._progress.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)

    def load(self, done: int, total: int) -> None:
        """A bar over the source's pictures."""
        if self._loading is None:
            self._loading = self._progress.add_task("reading", total=total, figures="")
        self._progress.update(self._loading, completed=done, total=total, figures=f"{done:,} of {total:,} pictures")

    def begin(self, phase: Phase, number: int, count: int, batches: int) -> None:
        """A new bar; that of a phase that has ended early is full."""
        if self._bar is not None:
            total = next(task.total for task in self._progress.tasks if task.id == self._bar)
            self._progress.update(self._bar, completed=total)
        self._phase = phase
        name = f"{phase.name} {number}/{count}" if count > 1 else phase.name
        self._bar = self._progress.add_task(name, total=phase.epochs * batches, figures="")

    def wants_tick(self) -> bool:
        """Ten times a second."""
        return time.monotonic() - self._last >= self.EVERY

    def tick(self, tick: Tick) -> None:
        """Move the bar."""
        assert self._bar is not None
        assert self._phase is not None
        self._last = time.monotonic()
        figures = (
            f"{tick.epoch}/{self._phase.epochs} loss {tick.loss:.3f} train {_percent(tick.top1)} "
            f"{tick.images_per_second:,.0f} images/s"
        )
        done = (tick.epoch - 1) * tick.batches + tick.batch
        self._progress.update(self._bar, completed=done, figures=figures)

    def epoch(self, row: Row) -> None:
        """The epoch's figures on the bar."""
        assert self._bar is not None
        assert self._phase is not None
        bar = next(task for task in self._progress.tasks if task.id == self._bar)
        done = (bar.total or 0) * row.epoch / max(1, self._phase.epochs)
        self._progress.update(
            self._bar, completed=done, figures=f"epoch {row.epoch}/{self._phase.epochs} {_figures(row)}"
        )

    def close(self) -> None:
        """Leave the bars as they stand."""
        self._progress.stop()


def reporter_for(stream: TextIO) -> Reporter:
    """Bars where a person looks on, lines elsewhere."""
    return Bars(Console(file=stream)) if stream.isatty() else Lines(stream)


def _figures(row: Row) -> str:
    parts = [f"val {_percent(row.val_top1)}{'*' if row.best else ''}"]
    if row.train_loss is not None and row.train_top1 is not None:
        parts = [f"loss {row.train_loss:.3f}", f"train {_percent(row.train_top1)}", *parts]
        parts.append(f"{row.images_per_second:,.0f} images/s")
    return " ".join(parts)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"
