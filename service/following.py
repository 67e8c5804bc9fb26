"""Keeps a replica's versions in step with the store, on one thread: those who ask meanwhile share the next look."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .engine import Draining
from .residency import Residency

T = TypeVar("T")


class Follower:
    """See the module. Its methods may be called from any event loop.

    A look may take as long as a claim takes to decode; it has a thread of its own so that however many requests wait
    for it, the threads of everything else are free.

    Args:
        residency: the versions.
    """

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "follow")
        self._lock = threading.Lock()
        self._next: concurrent.futures.Future[bool] | None = None  # has not begun: it will see what there is now
        self._closed = False

    async def refresh(self) -> bool:
        """Apply what has happened in the store so far, in order.

        Returns:
            False where a registration has to wait for requests of a version that was deleted before it.

        Raises:
            Draining: the server is stopping.
        """
        with self._lock:
            if self._next is None:
                self._next = self._submit(self._look)
            look = self._next
        return await _outcome(look)

    async def unload(self, version: str) -> None:
        """`Residency.unload`, after the looks that are asked for already.

        Raises:
            Draining: the server is stopping.
        """
        with self._lock:
            job = self._submit(self._residency.unload, version)
        await _outcome(job)

    def close(self) -> None:
        """Finish what has begun; blocks."""
        with self._lock:
            self._closed, self._next = True, None
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, do: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
        if self._closed:
            raise Draining("the server is stopping")
        return self._thread.submit(do, *args)

    def _look(self) -> bool:
        with self._lock:
            self._next = None
        return self._residency.refresh()


async def _outcome(job: concurrent.futures.Future[T]) -> T:
    """What a job gives; one who leaves does not take it from the others."""
    ended = asyncio.wrap_future(job)
    ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen, even if nobody waits
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        if job.cancelled():
            raise Draining("the server is stopping") from None
        raise
