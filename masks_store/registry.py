"""The registry: one small database of tasks, versions, labels, probe results, reservations and events.

SQLite in WAL mode with `synchronous=FULL` on a local disk of one host. Readers never wait and see one moment of the
store; writers take turns (`BEGIN IMMEDIATE`), each for one short transaction that is on disk when it ends.

An open connection follows its file, not the file's name: where the store was moved away and another put in its place,
it would go on in the one that nobody finds any more. So every transaction looks whether the name still leads to the
file that was opened, and a registry whose events end before one that was seen here is another one as well.

Where nothing may be written beside the file it is only read (unlocked.py).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, exc, insert, select

from . import unlocked
from .errors import (
    InvalidInput,
    OutOfCapacity,
    RegistryLocked,
    StoreCorrupt,
    StoreReplaced,
    StoreUnwritable,
    TaskpackError,
)
from .tables import SCHEMA, counters, meta, metadata
from .transaction import Transaction

BUSY_SECONDS = 30
_WRITES = "taskpack_writes"
_REPLACED = "the store was replaced, moved or restored while it was open; start the server, or the command, anew"


class Seen:
    """What is known of a registry's file, by all that have it open here; kept while it is closed.

    Attributes:
        opened: its device and inode; None before the first time.
        last: the highest event that was seen committed.
        restored: whether it was found to end before one that was seen.
    """

    def __init__(self) -> None:
        self.opened: tuple[int, int] | None = None
        self.last = 0
        self.restored = False
        self._lock = threading.Lock()

    def reached(self, event: int) -> None:
        """Note an event that was seen committed."""
        with self._lock:
            self.last = max(self.last, event)


class Registry:
    """The registry in one SQLite file.

    Args:
        path: the file, made by `create`.
        busy_seconds: how long a writer waits for the others.
        seen: what is known of the file already.
    """

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS, seen: Seen | None = None) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        self._file = path.absolute()
        self._engine: Engine | None = None
        self._pid = 0
        self._seen = seen or Seen()

    def waiting(self, seconds: float) -> Registry:
        """The same registry through connections of its own, whose writers wait at most so long for the others."""
        return Registry(self.path, seconds, self._seen)

    def create(self) -> None:
        """Make the tables in a new file, and close it again: all of it is on disk."""
        with _told(self.path):
            connection = sqlite3.connect(self.path)
            connection.execute("PRAGMA journal_mode=WAL")  # kept in the file
            connection.close()
        with self.write() as transaction:
            metadata.create_all(transaction.connection)
            transaction.connection.execute(insert(meta).values(name="schema", value=str(SCHEMA)))
            for name in ("events", "generation"):
                transaction.connection.execute(insert(counters).values(name=name, value=0))
        self.close()

    def check(self) -> None:
        """Raise unless the file is there, is a registry, and has a schema that is known here.

        Raises:
            StoreCorrupt: missing or damaged.
            InvalidInput: made by a newer taskpack.
        """
        if not self.path.is_file():
            raise StoreCorrupt(f"{self.path} is missing; restore it from a backup")
        with self.read() as transaction:
            schema = transaction.connection.execute(select(meta.c.value).where(meta.c.name == "schema")).scalar()
        if schema is None or not schema.isdecimal():
            raise StoreCorrupt(f"{self.path} names no schema; restore it from a backup")
        if int(schema) != SCHEMA:
            raise InvalidInput(
                f"{self.path} has registry schema {schema}, this taskpack reads schema {SCHEMA}; update taskpack"
            )

    @contextmanager
    def read(self) -> Generator[Transaction, None, None]:
        """One consistent reading of the registry.

        Raises:
            StoreReplaced: the file is not the one that was opened.
        """
        with _told(self.path), self._begun(writes=False) as transaction:
            yield transaction

    @contextmanager
    def write(self) -> Generator[Transaction, None, None]:
        """One writing transaction: committed and on disk at the end, undone if anything is raised.

        Raises:
            RegistryLocked: other processes kept writing for longer than the busy timeout.
            OutOfCapacity: the disk is full; nothing was changed.
            StoreUnwritable: the file or its file system is read-only, or the disk fails.
            StoreReplaced: the file is not the one that was opened; nothing was changed.
        """
        known = self._seen.last
        with _told(self.path):
            with self._begun(writes=True) as transaction:
                if known:
                    self._require_after(known, transaction)
                yield transaction
                last = transaction.counter("events")
                self._require_same()
            self._seen.reached(last)

    def last_event(self) -> int:
        """The number of the last change.

        Raises:
            StoreReplaced: it is lower than one that was seen here.
        """
        known = self._seen.last  # before the reading begins: others may write meanwhile
        with self.read() as transaction:
            last = self._require_after(known, transaction)
        self._seen.reached(last)
        return last

    def faults(self) -> list[str]:
        """What SQLite finds wrong with its file: damaged pages, rows that refer to nothing."""
        try:
            with self.read() as transaction:
                found = transaction.connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
                broken = transaction.connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        except StoreCorrupt as error:
            return [str(error)]
        faults = [f"{self.path.name}: {text}" for text in found if text != "ok"]
        return faults + [f"{self.path.name}: a row of {row[0]} refers to a missing row of {row[2]}" for row in broken]

    def close(self) -> None:
        """Close every connection; a later call opens them again."""
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()
        self._engine = None

    @contextmanager
    def _begun(self, *, writes: bool) -> Generator[Transaction, None, None]:
        self._require_same()  # a connection to a file that is not there would make one
        with self._connect(writes=writes) as connection, connection.begin():
            if self._seen.opened is None:
                self._seen.opened = _identity(self._file)
            try:
                self._require_same()
            except StoreReplaced:
                connection.invalidate()  # it may be the other file's
                raise
            raw = connection.connection.dbapi_connection
            with raw.whole(self._file) if isinstance(raw, unlocked.Unlocked) else nullcontext():
                yield Transaction(connection)

    def _require_same(self) -> None:
        if self._seen.restored or self._seen.opened not in (None, _identity(self._file)):
            raise StoreReplaced(_REPLACED)

    def _require_after(self, known: int, transaction: Transaction) -> int:
        last = transaction.counter("events")
        if last < known:
            raw = transaction.connection.connection.dbapi_connection
            if isinstance(raw, unlocked.Unlocked):
                raw.require_unchanged(self._file)
            self._seen.restored = True  # for good: its events will come to have these numbers again
            raise StoreReplaced(_REPLACED)
        return last

    def _connect(self, *, writes: bool) -> Connection:
        engine = self._engine
        if engine is None or self._pid != os.getpid():  # SQLite's connections must not cross a fork
            engine = _engine(self._file, self._busy_seconds)
            self._engine, self._pid = engine, os.getpid()
            weakref.finalize(self, _dispose, engine, self._pid)
        try:
            connection = engine.connect()
        except (exc.DBAPIError, sqlite3.Error) as error:
            if writes or not _lacks_room(error):
                raise
            connection = _reading_engine(self._file, self._busy_seconds, full=True).connect()
        return connection.execution_options(**{_WRITES: writes})


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a name leads to; None where it leads to none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreUnwritable(f"{path} cannot be looked at ({error.strerror}); check its permissions") from error
    return found.st_dev, found.st_ino


def _engine(path: Path, busy_seconds: float) -> Engine:
    if unlocked.is_needed(path):
        return _reading_engine(path, busy_seconds)
    url = URL.create("sqlite", database=str(path))
    return _listening(create_engine(url, connect_args={"timeout": busy_seconds}, max_overflow=-1, pool_size=4))


def _reading_engine(path: Path, busy_seconds: float, *, full: bool = False) -> Engine:
    url = URL.create("sqlite", database=str(path))
    return _listening(
        create_engine(url, creator=lambda: unlocked.connect(path, busy_seconds, full=full), poolclass=NullPool)
    )


def _listening(engine: Engine) -> Engine:
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _dispose(engine: Engine, pid: int) -> None:
    if pid == os.getpid():
        engine.dispose()


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions, not the driver
    try:
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "schema_version"):  # the last opens the files
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _told(path: Path) -> Generator[None, None, None]:
    """Turn the database's refusals into errors that say what to do."""
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        code = sqlite3.SQLITE_FULL if _lacks_room(error) else _code(error) & 0xFF
        raise _meaning(code, path, str(original)) from error


def _code(error: exc.DBAPIError | sqlite3.Error) -> int:
    original = error.orig if isinstance(error, exc.DBAPIError) else error
    return getattr(original, "sqlite_errorcode", 0)


def _lacks_room(error: exc.DBAPIError | sqlite3.Error) -> bool:
    """Whether the disk is too full for the file of locks beside the registry, which SQLite calls a disk I/O error."""
    return _code(error) == sqlite3.SQLITE_IOERR_SHMSIZE


def _meaning(code: int, path: Path, text: str) -> TaskpackError:
    if code == sqlite3.SQLITE_FULL:
        return OutOfCapacity("the disk of the store's registry is full; free some space, then try again")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RegistryLocked("other processes kept the store's registry locked; try again when they are done")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreUnwritable(f"{path} cannot be opened for writing ({text}); check its permissions and its disk")
    if code == sqlite3.SQLITE_IOERR:
        return StoreUnwritable(f"{path} cannot be read or written ({text}); check its disk")
    return StoreCorrupt(f"{path} cannot be used ({text}); restore it from a backup")
