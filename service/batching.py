"""One queue for all requests: bounded by its estimated wait, fair between tasks, cut into batches that share a forward.

Requests with the same `group` may share a forward (they see the same shared weights). A worker that is free takes the
next batch at once; nothing waits for a batch to fill unless the queue is told to (`delay_s`).

Who came first goes first, but a group counts as having come when its last batch ended, if that is later: so a flood
delays the others by a batch, not by a queue, and nobody is passed for ever by those who ask more seldom. Who has had
no turn for long has a head start, a little one. A group whose weights are not loaded lets those pass whose weights are,
up to an age. Within a group the versions take turns by the same rule, one request each.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .engine import DeadlinePassed, Draining, QueueFull

AGE_LIMIT_S = 0.2
HEAD_START = 0.1  # of the time since a group's last turn, or since that of a version within one,
MOST_HEAD_START_S = 1.0  # but at most so much: by more nobody waits longer than he would without
REMEMBERED = 10_000  # groups and versions whose last turn is remembered while nothing of theirs waits
SMOOTHING = 0.2


class State(Enum):
    """Where a request is: in the queue, with a worker, or out of both."""

    QUEUED = "queued"
    TAKEN = "taken"
    GONE = "gone"


@dataclass(eq=False)
class QueuedRequest:
    """Work that waits for its turn.

    Attributes:
        group: requests with equal groups may go into one batch.
        version: whose turn it uses up.
        size: images.
        work: what the worker needs; the queue never looks at it.
        done: told the outcome once, from any thread: what the worker made of `work`, or an exception.
        deadline: by the queue's clock; None waits for ever.
    """

    group: Hashable
    version: str
    size: int
    work: Any
    done: Callable[[Any], None]
    deadline: float | None = None
    state: State = State.GONE
    queued_at: float = 0.0
    taken_at: float = 0.0


@dataclass(eq=False)
class _Group:
    queues: dict[str, deque[QueuedRequest]] = field(default_factory=dict[str, deque[QueuedRequest]])
    images: int = 0

    def oldest(self) -> float:
        """When the first of its requests came."""
        return min(queue[0].queued_at for queue in self.queues.values())


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits now: requests and images, and how long a new request would wait, in seconds."""

    requests: int
    images: int
    wait_s: float


class Batcher:
    """The queue between the event loop and the workers; every method may be called from any thread.

    Args:
        max_batch: most images in a batch.
        limit_s: longest estimated wait that a new request is accepted with.
        workers: how many take batches.
        pace_s: seconds that an image takes on one worker: a first guess; measured from then on.
        age_limit_s: how long a group may be passed over for ones whose weights are loaded.
        delay_s: how long a request waits for others to fill its batch, while a worker is free.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        limit_s: float,
        workers: int = 1,
        pace_s: float = 0.05,
        age_limit_s: float = AGE_LIMIT_S,
        delay_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_batch = max_batch
        self._limit_s = limit_s
        self._workers = workers
        self.pace_s = pace_s
        self._age_limit_s = age_limit_s
        self._delay_s = delay_s
        self._clock = clock
        self._changed = threading.Lock()
        self._asleep: list[tuple[int, threading.Condition]] = []  # workers, and what wakes each
        self._groups: dict[Hashable, _Group] = {}
        self._turns: dict[Hashable, float] = {}  # group, or (group, version) -> when its last turn ends
        self._requests = 0
        self._images = 0
        self._closed = False

    def submit(self, requests: Sequence[QueuedRequest], *, bounded: bool = True) -> None:
        """Queue requests, all or none.

        Args:
            requests: one that is larger than a batch goes alone.
            bounded: False for the server's own work, which a full queue does not turn away.

        Raises:
            QueueFull: the estimated wait is over the limit.
            Draining: the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise Draining("the server is stopping")
            wait = self._wait_s()
            if bounded and wait > self._limit_s:
                raise QueueFull(max(wait - self._limit_s, 0.1))
            now = self._clock()
            for request in requests:
                request.state, request.queued_at = State.QUEUED, now
                group = self._groups.setdefault(request.group, _Group())
                group.queues.setdefault(request.version, deque()).append(request)
                group.images += request.size
                self._requests += 1
                self._images += request.size
            self._wake(len(requests))

    def withdraw(self, request: QueuedRequest) -> bool:
        """Take a request out of the queue; False when a worker already has it or it is over."""
        with self._changed:
            if request.state is not State.QUEUED:
                return False
            self._remove(request)
            return True

    def take(self, loaded: Callable[[Hashable], bool], worker: int = 0) -> list[QueuedRequest] | None:
        """The next batch, as soon as there is one; None when the queue is closed.

        Requests that are late are told so here and cost nothing else.

        Args:
            loaded: whether a group's weights are at hand.
            worker: the number of the one that asks: of those that wait the lowest is woken, so that what comes one by
                one is computed by the same worker, in memory that it has.
        """
        while True:
            with self._changed:
                while not self._closed and not self._ripe():
                    self._sleep(worker)
                if self._closed:
                    return None
                batch, late = self._compose(self._choose(self._ripe(), loaded))
            for request in late:
                request.done(DeadlinePassed("the deadline passed before the request's turn came"))
            if batch:
                return batch

    def served(self, images: int, seconds: float) -> None:
        """Learn from a batch how long an image takes on one worker."""
        with self._changed:
            self.pace_s += SMOOTHING * (seconds / images - self.pace_s)

    def depth(self) -> Depth:
        """What waits now."""
        with self._changed:
            return Depth(self._requests, self._images, self._wait_s())

    def close(self, reason: Exception) -> None:
        """Take nothing more, and tell every request that waits `reason`. Workers get None from `take`."""
        with self._changed:
            self._closed = True
            left = [r for group in self._groups.values() for queue in group.queues.values() for r in queue]
            for request in left:
                self._remove(request)
            self._wake(len(self._asleep))
        for request in left:
            request.done(reason)

    def _sleep(self, worker: int) -> None:
        own = worker, threading.Condition(self._changed)
        self._asleep.append(own)
        own[1].wait(self._until_ripe())
        if own in self._asleep:  # nobody woke it
            self._asleep.remove(own)

    def _wake(self, most: int) -> None:
        for own in sorted(self._asleep, key=lambda own: own[0])[:most]:
            self._asleep.remove(own)
            own[1].notify()

    def _wait_s(self) -> float:
        return self._images * self.pace_s / self._workers

    def _ripe(self) -> dict[Hashable, _Group]:
        """The groups that fill a batch, or have waited long enough for others."""
        if not self._delay_s:
            return self._groups
        before = self._clock() - self._delay_s
        return {
            key: group
            for key, group in self._groups.items()
            if group.images >= self.max_batch or group.oldest() <= before
        }

    def _until_ripe(self) -> float | None:
        """Seconds until what waits now has waited long enough; None where nothing waits."""
        oldest = min((group.oldest() for group in self._groups.values()), default=None)
        return None if oldest is None else max(0.0, oldest + self._delay_s - self._clock())

    def _choose(self, groups: Mapping[Hashable, _Group], loaded: Callable[[Hashable], bool]) -> Hashable:
        first = min(groups, key=lambda key: self._rank(key, groups[key].oldest()))
        if loaded(first) or self._clock() - groups[first].oldest() > self._age_limit_s:
            return first
        ready = [key for key in groups if loaded(key)]
        return min(ready, key=lambda key: self._rank(key, groups[key].oldest()), default=first)

    def _rank(self, key: Hashable, came: float) -> float:
        """The time that a group, or a version of it, is served in the order of."""
        turn = self._turns.get(key, -math.inf)
        return max(came - min(HEAD_START * (came - turn), MOST_HEAD_START_S), turn)

    def _compose(self, key: Hashable) -> tuple[list[QueuedRequest], list[QueuedRequest]]:
        """Take a batch out of a group; also the late requests met on the way."""
        group, now = self._groups[key], self._clock()
        batch: list[QueuedRequest] = []
        late: list[QueuedRequest] = []
        room = self.max_batch
        order = sorted(group.queues, key=lambda version: self._rank((key, version), group.queues[version][0].queued_at))
        while order:
            rest: list[str] = []
            for version in order:
                request = self._next(group.queues.get(version), now, late)
                if request is None or (batch and request.size > room):
                    continue
                room -= request.size
                self._remove(request)
                request.state, request.taken_at = State.TAKEN, now
                batch.append(request)
                rest.append(version)
            order = rest if room > 0 else []
        if batch:
            ends = now + self.pace_s * sum(request.size for request in batch)
            for turn in (key, *((key, request.version) for request in batch)):
                self._note_turn(turn, ends)
        return batch, late

    def _next(self, queue: deque[QueuedRequest] | None, now: float, late: list[QueuedRequest]) -> QueuedRequest | None:
        while queue:
            request = queue[0]
            if request.deadline is None or request.deadline > now:
                return request
            self._remove(request)
            late.append(request)
        return None

    def _remove(self, request: QueuedRequest) -> None:
        group = self._groups[request.group]
        queue = group.queues[request.version]
        queue.remove(request)
        request.state = State.GONE
        group.images -= request.size
        self._requests -= 1
        self._images -= request.size
        if not queue:
            del group.queues[request.version]
        if not group.queues:
            del self._groups[request.group]

    def _note_turn(self, key: Hashable, ends: float) -> None:
        self._turns.pop(key, None)
        self._turns[key] = ends
        while len(self._turns) > REMEMBERED:
            del self._turns[next(iter(self._turns))]  # the longest ago
