"""How many threads compute a batch on a CPU: its worker's own, or all while it is alone and they are faster.

What began with all threads cannot give some back when another batch comes: from then on both wait for cores at every
layer. So a batch takes them only where such company has been rare lately. Whether they are faster is measured: where
another process keeps a core busy, all threads wait for the one that has to share it, and two are slower than one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from statistics import median

RARE = 0.1
"""The share of batches, lately, that were not alone, up to which one takes all threads."""
SMOOTHING = 0.2
TRIES = 5
"""How often each number of threads is tried for a kind of batch before the faster one is taken."""
VALID_S = 60.0
"""How long that holds before both are tried anew: the slower one may be so no longer."""
KINDS = 1000
"""Kinds of batches that are remembered."""


@dataclass
class Trial:
    """Batches of one kind that were alone, computed either way.

    Attributes:
        began: when the first one was.
        seconds: threads -> what the first few took.
    """

    began: float
    seconds: dict[int, list[float]]


@dataclass
class Turn:
    """One batch.

    Attributes:
        threads: that compute it.
        alone: whether no other was computed or waited meanwhile.
        trial: what it is measured for, if anything.
    """

    threads: int
    alone: bool = True
    trial: Trial | None = field(default=None, repr=False)


class Turnout:
    """See the module. For several threads.

    Args:
        own: threads of each worker.
        most: threads of a batch that is alone; no more than `own`: then there is nothing to choose.
        clock: seconds that only rise.
    """

    def __init__(self, own: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.own = own
        self.most = max(own, most)
        self._clock = clock
        self._lock = threading.Lock()
        self._now: list[Turn] = []
        self._company = 0.0  # the share of batches, lately, that were not alone
        self._trials: dict[Hashable, Trial] = {}

    def begin(self, kind: Hashable, more: bool, *, first: bool = True) -> Turn:
        """A batch begins.

        Args:
            kind: batches of equal kinds take about as long.
            more: whether requests are waiting besides it.
            first: whether its worker is the one that may take all threads: threads that have been used stay, and one
                worker's are enough.
        """
        with self._lock:
            turn = Turn(self.own)
            self._now.append(turn)
            if more or len(self._now) > 1:
                for one in self._now:
                    one.alone = False
            elif first and self._company <= RARE and self.most > self.own:
                turn.trial = self._trial(kind)
                turn.threads = self._better(turn.trial.seconds)
            return turn

    def end(self, turn: Turn, seconds: float) -> None:
        """A batch was computed, in so many seconds; call it before anybody is told, or the next one has company."""
        with self._lock:
            self._now.remove(turn)
            self._company += SMOOTHING * ((not turn.alone) - self._company)
            if turn.alone and turn.trial is not None and len(turn.trial.seconds[turn.threads]) < TRIES:
                turn.trial.seconds[turn.threads].append(seconds)

    def _trial(self, kind: Hashable) -> Trial:
        trial = self._trials.get(kind)
        if trial is None or self._clock() - trial.began > VALID_S:
            trial = self._trials[kind] = Trial(self._clock(), {self.most: [], self.own: []})
            if len(self._trials) > KINDS:
                del self._trials[next(iter(self._trials))]
        return trial

    def _better(self, seconds: dict[int, list[float]]) -> int:
        done = sum(map(len, seconds.values()))
        if done < 2 * TRIES:  # one, two, two, one: no order of requests meets the same one always
            wanted = self.most if done % 4 in (0, 3) else self.own
            return wanted if len(seconds[wanted]) < TRIES else min(seconds, key=lambda threads: len(seconds[threads]))
        return min(seconds, key=lambda threads: median(seconds[threads]))
