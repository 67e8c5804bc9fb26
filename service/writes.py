"""Changes of the registry that a call asks for: in threads of their own, so many at once.

A writer waits for the others, of other processes too, and keeps its thread meanwhile. In the threads that everything
else shares, a few waiting writers would stop reading, polling and metrics for as long as the registry is locked.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from masks_store import Store

from .errors import Problem, retry_after

T = TypeVar("T")

WAIT_S = 10.0
"""How long a change waits for a registry that others have locked, before 503."""


class Writes:
    """See the module.

    Args:
        store: to be changed.
        most: changes at once, those that wait for the registry included; each has a thread.
    """

    def __init__(self, store: Store, most: int) -> None:
        self._store = store.waiting(WAIT_S)
        self._most = most
        self._threads = ThreadPoolExecutor(most, "write")
        self._lock = threading.Lock()
        self._begun = 0

    async def run(self, change: Callable[[Store], T]) -> T:
        """What a change gives. It is made to its end though its caller leaves.

        Args:
            change: takes the store, blocks.

        Raises:
            Problem: 503, as many are being made already.
        """
        with self._lock:
            if self._begun >= self._most:
                raise Problem(
                    503,
                    f"{self._most} change(s) of labels, versions or tasks are being made already; try again",
                    headers=retry_after(2.0),
                    reason="max_writes",
                )
            self._begun += 1
        try:
            job = self._threads.submit(change, self._store)
        except RuntimeError:  # it was closed
            self._ended()
            raise Problem(503, "the server is stopping", headers=retry_after(1.0), reason="draining") from None
        job.add_done_callback(self._ended)
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Begin nothing more; what has begun ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    def _ended(self, _: Future[Any] | None = None) -> None:
        with self._lock:
            self._begun -= 1
