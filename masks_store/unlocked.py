"""Reading the registry where nothing can be written beside it: a read-only mount, no permission, or a full disk.

SQLite locks a file in WAL mode by another beside it, and refuses to read where it cannot make that. While somebody has
the registry open elsewhere, or was killed while it had, that file is there, and the registry is read as always. Else
nobody writes it: it is read without locks, and what was written meanwhile is noticed at the end of the reading.
On a full disk the attempt to lock leaves an empty log, which is as good as none.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import RegistryLocked, StoreUnwritable

_CHANGED = "the store's registry was changed while it was read; try again"
TRIES, PAUSE_S = 20, 0.005
"""Of opening it, while others open and close it: the files beside it come and go one after the other."""


class Stamp(NamedTuple):
    """What tells that a file was written."""

    inode: int
    size: int
    modified_ns: int


class Unlocked(sqlite3.Connection):
    """A connection that takes no locks, for one reading.

    Attributes:
        stamp: of the file before it was opened.
    """

    stamp: Stamp | None

    def require_unchanged(self, path: Path) -> None:
        """Raise `RegistryLocked` where the file was written since."""
        if self.stamp is None or _stamp(path) != self.stamp:
            raise RegistryLocked(_CHANGED)

    @contextmanager
    def whole(self, path: Path) -> Generator[None]:
        """A reading, which counts only if the file is what it was: nothing that is found else says anything of it."""
        try:
            yield
        except Exception as error:
            if _stamp(path) != self.stamp:
                raise RegistryLocked(_CHANGED) from error
            raise
        self.require_unchanged(path)


def is_needed(path: Path) -> bool:
    """Whether nothing may be written beside the registry's file."""
    return path.parent.is_dir() and not os.access(path.parent, os.W_OK)


def connect(path: Path, busy_seconds: float, *, full: bool = False) -> sqlite3.Connection:
    """A connection that only reads; without locks where nobody has the file open.

    Args:
        path: the registry's file, absolute.
        busy_seconds: how long to wait for others, where they have it open.
        full: the disk has no room for the file of locks, so an empty log is as good as none: nobody writes to it.

    Raises:
        StoreUnwritable: what lies beside the file cannot be read without writing.
    """
    for _ in range(TRIES):
        try:
            return _connect(path, busy_seconds, full=full)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or not path.exists():
                raise
            time.sleep(PAUSE_S)
    raise StoreUnwritable(
        f"{path} cannot be read here: the process that wrote it last did not finish; run `taskpack ls` once where the "
        "store can be written"
    )


def _connect(path: Path, busy_seconds: float, *, full: bool) -> sqlite3.Connection:
    stamp = _stamp(path)
    log = _stamp(path.with_name(path.name + "-wal"))
    alone = log is None or (full and log.size == 0)
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=ro{'&immutable=1' if alone else ''}",
        timeout=busy_seconds,
        check_same_thread=False,
        factory=Unlocked if alone else sqlite3.Connection,
        uri=True,
    )
    if isinstance(connection, Unlocked):
        connection.stamp = stamp
    try:
        connection.execute("PRAGMA schema_version")  # opens the files, which `connect` does not
    except BaseException:
        connection.close()
        raise
    return connection


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)
