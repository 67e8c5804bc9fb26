"""`task=auto`: what tells the tasks of a store apart, kept as long as it is asked for."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from masks_store import Store, Sums, TaskInference, TaskpackError, read_artifact

log = logging.getLogger("taskpack.service")

REMEMBERED = 8
"""Sets of candidates whose classifier is kept: keys that are limited to tasks ask among those only."""
MOST_WITHOUT = 20_000
"""Versions without sums that are remembered as such."""


class TaskNamer:
    """Classifiers of tasks over the sums that their artifacts carry. Lives on one event loop.

    Sums are kept as long as one of these classifiers needs them: what was deleted is forgotten with the last set of
    candidates that it was in.

    Args:
        store: whose artifacts carry the sums.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._classifiers: OrderedDict[tuple[str, ...], TaskInference] = OrderedDict()  # the longest unasked first
        self._without: set[str] = set()  # versions whose artifacts carry none
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "name tasks")

    async def among(self, versions: Sequence[str]) -> TaskInference | None:
        """What tells these versions apart; those whose artifacts carry no sums are passed over.

        Returns:
            None where no version carries sums.
        """
        key = tuple(sorted(versions))
        known = self._known(key)
        if known is not None:
            return known
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._make, key)

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _known(self, key: tuple[str, ...]) -> TaskInference | None:
        with self._lock:
            if key in self._classifiers:
                self._classifiers.move_to_end(key)
            return self._classifiers.get(key)

    def _make(self, key: tuple[str, ...]) -> TaskInference | None:
        known = self._known(key)
        if known is not None:  # made while this waited for the thread
            return known
        with self._lock:
            others = list(self._classifiers.values())
        at_hand = {version: sums for other in others for version, sums in other.sums.items()}
        found: dict[str, Sums] = {}
        for version in key:
            sums = at_hand.get(version) or self._read(version)
            if sums is not None:
                found[version] = sums
        if not found:
            return None
        made = TaskInference(found)
        with self._lock:
            self._classifiers[key] = made
            while len(self._classifiers) > REMEMBERED:
                self._classifiers.popitem(last=False)
        return made

    def _read(self, version: str) -> Sums | None:
        if version in self._without:
            return None
        try:
            sums = read_artifact(self._store.artifact_bytes(version), version).sums
        except TaskpackError:  # its own requests tell; the other tasks can still be named
            log.exception("version %s cannot be read: task=auto passes over it", version)
            return None
        if sums is None:
            if len(self._without) >= MOST_WITHOUT:
                self._without.clear()
            self._without.add(version)
        return sums
