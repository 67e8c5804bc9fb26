"""What is free in a store, weights or units, and for how many more tasks that is room.

A store gives its tasks single weights (packnet) or whole units (clnp), never both: what is left is told in these alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from masks_store import Store, Version, decode_units, free_unit_counts

from ..capacity import Capacity, capacity_of
from ..ground import holders_in
from ..prune import DEFAULT_PRUNE
from ..unit_use import UnitUse, unit_use, units_left
from .history import History, Run


@dataclass(frozen=True)
class Room:
    """What is left.

    Attributes:
        of: what tasks take here: `weights` or `units`.
        free, total: of these.
        tasks_left: further packnet tasks, at `rate` or of those that share equally; of units, further clnp tasks that
            each take of every layer what `taker` took. None in a store of which nothing is ever free, and of units
            where no task has taken any.
        rate: the share that each packnet task gives back: that of the newest version that took any and has a run, else
            the default; None of units.
        turn: t and T where that version was the t-th of T equal ones (`--prune equal:T`).
        taker: of units, task of the newest version that added any.
        units: of units, per layer what that version added and reused, and what is free now; in the network's order.
    """

    of: str
    free: int
    total: int
    tasks_left: int | None
    rate: float | None
    turn: tuple[int, int] | None
    taker: str | None
    units: tuple[UnitUse, ...]

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
    if store.capacity == "units":
        return _room_of_units(store, versions)
    capacity = capacity_of(store.capacity_left().values())
    last = _last_taker(versions, history)
    rate = last.prune if last is not None and last.prune is not None else DEFAULT_PRUNE
    turn = last.turn if last is not None else None
    left = None if _never_free(store) else _tasks_left(capacity, rate, turn, holders_in(store))
    return Room("weights", capacity.free, capacity.total, left, rate, turn, taker=None, units=())


def told_left(room: Room) -> str:
    """The tasks that are left, in words for the verdict; nothing where nothing is free."""
    if not room.free or room.tasks_left is None:
        return ""
    if not room.tasks_left and not room.turn:
        return "no further task at this rate"
    count = f"{room.tasks_left} task{'s' * (room.tasks_left != 1)} left"
    return f"{count} of {room.turn[1]} equal ones" if room.turn else f"about {count} at this rate"


def _room_of_units(store: Store, versions: Sequence[Version]) -> Room:
    """From the artifacts, not the runs: a task that was pushed has none, and what is free changes after a run."""
    taker = next((version for version in reversed(versions) if _adds_units(store, version)), None)
    if taker is None:
        sizes, free = store.backbone.units.sizes, free_unit_counts(store)
        uses = tuple(UnitUse(layer, size, new=0, reused=0, free=free[layer]) for layer, size in sizes.items())
    else:
        uses = unit_use(store.backbone, store.artifact(taker.version), store.free_positions())
    return Room(
        of="units",
        free=sum(use.free for use in uses),
        total=sum(use.units for use in uses),
        tasks_left=units_left(uses),
        rate=None,
        turn=None,
        taker=taker.task if taker is not None else None,
        units=uses,
    )


def _adds_units(store: Store, version: Version) -> bool:
    if version.method != "clnp":
        return False
    added = decode_units(store.artifact(version.version), store.backbone.units).new
    return any(bool(mask.any()) for mask in added.values())


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
