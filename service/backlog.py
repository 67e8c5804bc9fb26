"""How long pictures would wait to be decoded: what waits, times how long such work has taken lately."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

PACE_S = 2e-8
"""Seconds that a thread takes for a pixel: a first guess; measured from then on."""
PIXELS_PER_PICTURE = 16_384
"""What any picture costs however small it is, in pixels."""
SMOOTHING = 0.2


def cost_of(pixels: int) -> int:
    """What a picture costs to decode, in pixels."""
    return pixels + PIXELS_PER_PICTURE


class Backlog:
    """The work of one queue. Safe to use from several threads.

    Args:
        threads: how many pictures or batches are decoded at once.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._pending = 0
        self._pace_s = PACE_S

    @property
    def pending(self) -> int:
        """What all work costs that waits or is being done, in pixels."""
        return self._pending

    @property
    def wait_s(self) -> float:
        """How long work that came now would wait, by what has been measured."""
        return self._pending * self._pace_s / self._threads

    def follow(self, job: Future[Any], cost: int) -> None:
        """Count a job until it is done or cancelled."""
        self._count(cost)
        job.add_done_callback(lambda _: self._count(-cost))

    def took(self, seconds: float, cost: int) -> None:
        """Learn from work that was done."""
        with self._lock:
            self._pace_s += SMOOTHING * (seconds / cost - self._pace_s)

    def _count(self, cost: int) -> None:
        with self._lock:
            self._pending += cost
