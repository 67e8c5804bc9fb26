"""What is free in a store, and for how many more tasks that is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masks_store import Store, Version

from ..capacity import Capacity, capacity_of
from ..ground import holders_in
from ..prune import DEFAULT_PRUNE
from .history import History, Run


@dataclass(frozen=True)
class Room:
    """What is left.

    Attributes:
        free, total: shared weights.
        tasks_left: further packnet tasks, at `rate` or of those that share equally; None in a store of which nothing
            is ever free.
        rate: the share that each gives back: that of the newest version that took any and has a run, else the default.
        turn: t and T where that version was the t-th of T equal ones (`--prune equal:T`).
    """

    free: int
    total: int
    tasks_left: int | None
    rate: float
    turn: tuple[int, int] | None

    @property
    def share(self) -> float:
        """The free part of all."""
        return self.free / self.total if self.total else 0.0


def room_of(store: Store, versions: Sequence[Version], history: History) -> Room:
    """Count what is free, and how often what the last task took of it is in there.

    Args:
        store: what it is asked of.
        versions: all of the store's, in the order of registration.
        history: its runs.
    """
    capacity = capacity_of(store.capacity_left().values())
    last = _last_taker(versions, history)
    rate = last.prune if last is not None and last.prune is not None else DEFAULT_PRUNE
    turn = last.turn if last is not None else None
    left = None if _never_free(store) else _tasks_left(capacity, rate, turn, holders_in(store))
    return Room(capacity.free, capacity.total, left, rate, turn)


def told_left(room: Room) -> str:
    """The tasks that are left, in words for the verdict; nothing where nothing is free."""
    if not room.free or room.tasks_left is None:
        return ""
    count = f"{room.tasks_left} task{'s' * (room.tasks_left != 1)} left"
    return f"{count} of {room.turn[1]} equal ones" if room.turn else f"about {count} at this rate"


def _last_taker(versions: Sequence[Version], history: History) -> Run | None:
    """The run of the newest version that has one and took weights: `--train-layers head` takes none, at share 0."""
    runs = {run.version: run for run in history.runs if run.prune is not None and run.claimed != 0}
    return next((runs[version.version] for version in reversed(versions) if version.version in runs), None)


def _tasks_left(capacity: Capacity, rate: float, turn: tuple[int, int] | None, holders: int) -> int:
    """As `train` counts them; of T that share equally by who holds a claim now: a deleted one gave its turn back."""
    if turn is None:
        return capacity.tasks_left(rate)
    return max(0, turn[1] - holders) if capacity.free else 0


def _never_free(store: Store) -> bool:
    return all(bool(kept.all()) for kept in store.backbone.kept.values())
