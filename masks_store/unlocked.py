"""Reading the registry where nothing may be written beside it: a read-only mount, or no permission.

SQLite locks a file in WAL mode by another beside it, and refuses to read where it cannot make that. While somebody has
the registry open elsewhere it is there, and the registry is read as always. Else nobody writes it: it is read without
locks, and what was written meanwhile is noticed at the end of the reading.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from .errors import RegistryLocked

Stamp = tuple[int, int, int]


class Unlocked(sqlite3.Connection):
    """A connection that takes no locks, for one reading.

    Attributes:
        stamp: of the file before it was opened.
    """

    stamp: Stamp

    def require_unchanged(self, path: Path) -> None:
        """Raise `RegistryLocked` where the file was written since."""
        if _stamp(path) != self.stamp:
            raise RegistryLocked("the store's registry was changed while it was read; try again")


def is_needed(path: Path) -> bool:
    """Whether nothing may be written beside the registry's file."""
    return path.parent.is_dir() and not os.access(path.parent, os.W_OK)


def connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection that only reads; without locks where nobody has the file open.

    Args:
        path: the registry's file, absolute.
        busy_seconds: how long to wait for others, where they have it open.
    """
    stamp = _stamp(path)
    alone = not path.with_name(path.name + "-wal").exists()
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=ro{'&immutable=1' if alone else ''}",
        timeout=busy_seconds,
        check_same_thread=False,
        factory=Unlocked if alone else sqlite3.Connection,
        uri=True,
    )
    if isinstance(connection, Unlocked):
        connection.stamp = stamp
    return connection


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
