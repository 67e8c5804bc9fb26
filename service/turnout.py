"""How many threads compute a batch on a CPU: its worker's own, or all workers' while it is alone and they are faster.

What began with all threads cannot give some back when another batch comes: from then on both wait for cores at every
layer. So a batch takes them only where such company has been rare lately. Whether they are faster is measured: where
another process keeps a core busy, all threads wait for the one that has to share it, and two are slower than one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from statistics import median

RARE = 0.1
"""The share of batches, lately, that were not alone, up to which one takes all threads."""
SMOOTHING = 0.2
TRIES = 5
"""How often each number of threads is tried for a size of batch before the faster one is taken."""
AGAIN = 1000
"""After so many batches both are tried anew: the slower one may be so no longer."""


@dataclass
class Turn:
    """One batch.

    Attributes:
        size: images.
        threads: that compute it.
        alone: whether no other was computed or waited meanwhile.
    """

    size: int
    threads: int
    alone: bool = field(default=True)


class Turnout:
    """See the module. For several threads.

    Args:
        workers: how many there are.
        own: threads of each.
    """

    def __init__(self, workers: int, own: int) -> None:
        self.own = own
        self.all = workers * own
        self._lock = threading.Lock()
        self._now: list[Turn] = []
        self._company = 0.0  # the share of batches, lately, that were not alone
        self._tried: dict[int, dict[int, list[float]]] = {}  # images -> threads -> seconds of each

    def begin(self, size: int, more: bool) -> Turn:
        """A batch begins.

        Args:
            size: images.
            more: whether requests are waiting besides it.
        """
        with self._lock:
            turn = Turn(size, self.own)
            self._now.append(turn)
            if more or len(self._now) > 1:
                for one in self._now:
                    one.alone = False
            elif self._company <= RARE and self.all > self.own:
                turn.threads = self._better(size)
            return turn

    def end(self, turn: Turn, seconds: float) -> None:
        """A batch has ended, after so many seconds."""
        with self._lock:
            self._now.remove(turn)
            self._company += SMOOTHING * ((not turn.alone) - self._company)
            if turn.alone and turn.size in self._tried:
                self._tried[turn.size][turn.threads].append(seconds)

    def _better(self, size: int) -> int:
        tried = self._tried.get(size)
        if tried is None or sum(map(len, tried.values())) >= AGAIN:
            tried = self._tried[size] = {self.all: [], self.own: []}
        fewest = min(tried, key=lambda threads: len(tried[threads]))
        return fewest if len(tried[fewest]) < TRIES else min(tried, key=lambda threads: median(tried[threads][:TRIES]))
