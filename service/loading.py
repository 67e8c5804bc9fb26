"""Brings versions to the device when they are first asked for: one load a version, however many requests wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from dataclasses import dataclass

from .engine import DeadlinePassed, DeviceOverlay, Draining
from .probing import Probes
from .residency import Record, Residency

THREADS = 4


@dataclass(eq=False)
class _Load:
    """One version on its way.

    Attributes:
        job: what a thread does, or will do.
        ended: the same, for the event loop.
        waiting: requests that wait for it.
    """

    job: concurrent.futures.Future[DeviceOverlay]
    ended: asyncio.Future[DeviceOverlay]
    waiting: int = 0


class Loader:
    """See the module. Lives on one event loop.

    Args:
        residency: the versions.
        probes: a version is probed before its first load, where that has not happened yet.
    """

    def __init__(self, residency: Residency, probes: Probes) -> None:
        self._residency = residency
        self._probes = probes
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "load")
        self._loads: dict[Record, _Load] = {}

    async def loaded(self, record: Record, deadline: float | None) -> DeviceOverlay:
        """A leased version's own tensors on the device. What no thread has begun when nobody waits any more is dropped.

        Args:
            record: stays leased until the load has ended, whoever waits.
            deadline: by time.monotonic().

        Raises:
            VersionFailed: its probe fails on this device.
            StoreCorrupt: a file of its lineage is missing or damaged.
            DeadlinePassed, Draining: it was not there in time.
        """
        if record.status == "ready":
            task = self._residency.loaded(record, record.dtype)
            if task is not None:
                return task
        load = self._loads.get(record) or self._begin(record)
        load.waiting += 1
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            await asyncio.wait([load.ended], timeout=left)
        finally:
            load.waiting -= 1
            if not load.waiting and load.job.cancel():  # no thread has begun
                self._forget(record, load)
        if not load.ended.done():
            raise DeadlinePassed("the deadline passed while the version was being loaded")
        if load.ended.cancelled():
            raise Draining("the server stopped while the version was being loaded")
        return load.ended.result()

    def close(self) -> None:
        """Drop what has not begun, finish the rest; blocks."""
        self._threads.shutdown(cancel_futures=True)

    def _begin(self, record: Record) -> _Load:
        self._residency.extend(record)
        try:
            job = self._threads.submit(self._load, record)
        except RuntimeError:  # it was closed
            self._residency.release(record)
            raise Draining("the server is stopping") from None
        job.add_done_callback(lambda _: self._residency.release(record))
        load = self._loads[record] = _Load(job, asyncio.wrap_future(job))
        load.ended.add_done_callback(lambda _: self._forget(record, load))
        return load

    def _forget(self, record: Record, load: _Load) -> None:
        if self._loads.get(record) is load:
            del self._loads[record]
        if load.ended.done() and not load.ended.cancelled():
            load.ended.exception()  # seen: nobody may be waiting any more

    def _load(self, record: Record) -> DeviceOverlay:
        with record.preparing:
            self._probes.check(record)
            self._residency.require_ready(record)
            return self._residency.load(record, record.dtype)
