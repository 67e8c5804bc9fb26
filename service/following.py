"""Keeps a replica's versions in step with the store, on one thread: those who ask meanwhile share the next look."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

from .engine import Draining
from .residency import Residency


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
                self._next = self._submit()
            look = self._next
        return await asyncio.shield(asyncio.wrap_future(look))  # one who leaves does not take it from the others

    async def unload(self, version: str) -> None:
        """`Residency.unload`, after the looks that are asked for already."""
        with self._lock:
            if self._closed:
                return
            job = self._thread.submit(self._residency.unload, version)
        await asyncio.shield(asyncio.wrap_future(job))

    def close(self) -> None:
        """Finish what has begun; blocks."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(cancel_futures=True)

    def _submit(self) -> concurrent.futures.Future[bool]:
        if self._closed:
            raise Draining("the server is stopping")
        return self._thread.submit(self._look)

    def _look(self) -> bool:
        with self._lock:
            self._next = None
        return self._residency.refresh()
