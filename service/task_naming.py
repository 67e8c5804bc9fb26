"""`task=auto`: what tells the tasks of a store apart, kept as long as they stay the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from masks_store import Recent, Store, Sums, TaskInference, TaskpackError

log = logging.getLogger("taskpack.service")

REMEMBERED = 8
"""Sets of candidates whose classifier is kept: keys that are limited to tasks ask among those only."""


class TaskNamer:
    """Classifiers of tasks over the sums that their artifacts carry; for several threads.

    Args:
        store: whose artifacts carry the sums.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sums: dict[str, Sums | None] = {}
        self._classifiers: Recent[TaskInference] = Recent(REMEMBERED)
        self._lock = threading.Lock()

    def among(self, versions: Sequence[str]) -> TaskInference | None:
        """What tells these versions apart; those whose artifacts carry no sums are passed over. Blocks on first use.

        Returns:
            None where no version carries sums.
        """
        with self._lock:
            return self._classifier(tuple(sorted(versions)))

    def _classifier(self, versions: tuple[str, ...]) -> TaskInference | None:
        known = self._classifiers.get(versions)
        if known is None:
            found = {version: sums for version in versions if (sums := self._read(version)) is not None}
            if not found:
                return None
            known = TaskInference(found)
            self._classifiers.put(versions, known, 1)
        return known

    def _read(self, version: str) -> Sums | None:
        if version not in self._sums:
            try:
                self._sums[version] = self._store.artifact(version).sums
            except TaskpackError:  # its own requests tell; the other tasks can still be named
                log.exception("version %s cannot be read: task=auto passes over it", version)
                return None
        return self._sums[version]
