"""The steps by which the store changes its directory, and how a file is written whole or not at all.

Every change goes through one `Files` object, one call per step, so that tests can pass another one that fails at any
step, or that forgets everything not yet fsynced as a power cut does.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InvalidInput, OutOfCapacity, StoreUnwritable
from .process import Process, this_process

GRACE = 3600.0  # seconds that a temporary file of an unknown process is left alone
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEMP = re.compile(r"(?P<place>[0-9a-f]{12})-(?P<pid>\d+)-(?P<started>\d+)-[0-9a-f]{16}\.tmp")


class Files:
    """The system's file operations, one method per step; nothing is buffered between them."""

    def create(self, path: Path) -> int:
        """Open a new file for writing; it must not exist."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data`, at most all; the number of bytes that were taken."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Wait until the file's bytes are on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory its name in one step; what had that name is replaced."""
        source.replace(target)

    def make_dir(self, path: Path) -> None:
        """Make a directory; one that is there already is left."""
        path.mkdir(exist_ok=True)

    def fsync_dir(self, path: Path) -> None:
        """Wait until a directory's entries (new names, renames) are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def touch(self, path: Path) -> None:
        """Set a file's time to now."""
        os.utime(path)

    def remove(self, path: Path) -> None:
        """Remove a file, or a directory with all in it; one that is gone is no fault."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_whole(files: Files, target: Path, data: bytes, temp: Path | None = None) -> None:
    """Write a file so that after a crash at any step it is absent (or the old one) or whole, never in between.

    Temporary file, fsync, rename, fsync of the directory, in this order.

    Args:
        files: the steps.
        target: the name it gets.
        data: its bytes.
        temp: directory for the temporary file, on the same file system; default: the target's own.

    Raises:
        OutOfCapacity: the disk is full; nothing is left behind.
    """
    unfinished = (temp or target.parent) / temp_name()
    try:
        with disk_errors(target, len(data)):
            _write_synced(files, unfinished, data)
            files.rename(unfinished, target)
            files.fsync_dir(target.parent)
    except BaseException:
        with suppress(OSError):
            files.remove(unfinished)
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write (or replace) a file of the user's: whole or not at all, on disk when this returns. Links are followed.

    Raises:
        InvalidInput: it cannot be written there, and why.
        OutOfCapacity: the disk is full.
    """
    path = path.resolve()
    if path.is_dir():
        raise InvalidInput(f"{path} is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} is a device or a pipe, which cannot be replaced; name a file")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    write_whole(Files(), path, data)


def write_folder(path: Path, content: Mapping[str, bytes]) -> None:
    """Write (or replace) a folder of the user's: all of its files, on disk when this returns, or none of them.

    The new folder is finished beside the old one and then takes its name. Between the two renames of a replacement
    there is neither: a process killed at that instant leaves no folder under the name.

    Args:
        path: the folder; all that it holds now goes.
        content: `name` or `folder/name` -> bytes.

    Raises:
        InvalidInput: it cannot be written there, and why.
        OutOfCapacity: the disk is full; the old folder is as it was.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise InvalidInput(f"{path} is a file; name a folder")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    files = Files()
    clean_temp(files, path.parent)
    new, old = path.parent / temp_name(), path.parent / temp_name()
    try:
        with disk_errors(path, sum(map(len, content.values()))):
            folders = dict.fromkeys([new, *((new / name).parent for name in sorted(content))])
            for folder in folders:
                files.make_dir(folder)
            for name, data in content.items():
                _write_synced(files, new / name, data)
            for folder in folders:
                files.fsync_dir(folder)
            if path.exists():
                files.rename(path, old)
            try:
                files.rename(new, path)
            except OSError:
                if old.exists():
                    files.rename(old, path)
                raise
            files.fsync_dir(path.parent)
    finally:
        for left in (new, old):
            with suppress(OSError):
                files.remove(left)


def temp_name() -> str:
    """A new name for an unfinished file or directory, which tells whose it is."""
    me = this_process()
    return f"{me.place}-{me.pid}-{me.started}-{secrets.token_hex(8)}.tmp"


def clean_temp(files: Files, directory: Path, prefix: str = "") -> int:
    """Remove what killed processes left unfinished in `directory`; the number of removed entries.

    What a running process writes stays. Where its process cannot be checked from here (another host or container),
    it goes when `GRACE` has passed since its last change.
    """
    removed = 0
    for name in os.listdir(directory) if directory.is_dir() else ():
        named = _TEMP.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if named is None:
            continue
        owner = Process("", named["place"], int(named["pid"]), int(named["started"]))
        if _is_abandoned(owner, directory / name):
            with suppress(OSError):  # a store that we may only read
                files.remove(directory / name)
                removed += 1
    return removed


@contextmanager
def disk_errors(path: Path, size: int = 0) -> Generator[None, None, None]:
    """Turn the system's refusal to write at `path` into an error that says what to do.

    Raises:
        OutOfCapacity: no space, or over the quota.
        StoreUnwritable: everything else: read-only, no permission, a failing disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfCapacity(
                f"the disk is full: {size:,} bytes were to be written, {_free_space(path):,} are free; "
                "free some space or move to a larger disk, then try again"
            ) from error
        raise StoreUnwritable(f"{path} cannot be written ({error.strerror}); check its permissions and disk") from error


def _write_synced(files: Files, path: Path, data: bytes) -> None:
    descriptor = files.create(path)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[files.write(descriptor, rest) :]
        files.fsync(descriptor)
    finally:
        files.close(descriptor)


def _is_abandoned(owner: Process, path: Path) -> bool:
    running = owner.is_running()
    if running is not None:
        return not running
    try:
        return time.time() - path.stat().st_mtime > GRACE
    except FileNotFoundError:
        return False


def _free_space(path: Path) -> int:
    here = next(p for p in (path, *path.parents) if p.exists())
    return shutil.disk_usage(here).free
