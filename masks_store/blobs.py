"""Content-addressed files: `blobs/sha256/ab/abcdef…`, written once, verified whenever they are read.

A blob's name is the digest of its bytes, so a blob is never changed: it is absent or right. Blobs of deleted versions
stay where they are; only `gc` (a later command) removes what nothing refers to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import StoreCorrupt
from .files import Files, clean_temp, disk_errors, write_whole

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK = 1 << 20


class Blobs:
    """The blobs under one directory.

    Args:
        root: the directory `blobs/`, made by `create`.
        files: the steps by which it is changed.
    """

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self._root = root
        self._all = root / "sha256"
        self._temp = root / "tmp"
        self.files = files or Files()

    def create(self) -> None:
        """Make the empty directories."""
        with disk_errors(self._root):
            for path in (self._root, self._all, self._temp):
                self.files.make_dir(path)
                self.files.fsync_dir(path.parent)

    def path(self, digest: str) -> Path:
        """Where the blob lies, whether it is there or not."""
        if not _DIGEST.fullmatch(digest):
            raise StoreCorrupt(f"{digest!r} is not the digest of a blob (sha256: and 64 hex digits)")
        name = digest.removeprefix("sha256:")
        return self._all / name[:2] / name

    def put(self, data: bytes) -> str:
        """Store bytes and return their digest; on disk for good when this returns.

        Bytes that are there already are not written again, unless the stored ones are damaged: then they are replaced.

        Raises:
            OutOfCapacity: the disk is full; nothing is left behind.
        """
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        with disk_errors(path, len(data)):
            self.files.make_dir(path.parent)
            if self.fault(digest) is None:
                self.files.touch(path)  # so that gc takes it for new
                self.files.fsync_dir(path.parent)  # another process may have renamed it a moment ago
            else:
                write_whole(self.files, path, data, self._temp)
            self.files.fsync_dir(self._all)
        return digest

    def get(self, digest: str) -> bytes:
        """The blob's bytes.

        Raises:
            StoreCorrupt: it is missing, cannot be read, or its bytes are not those that were stored.
        """
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreCorrupt(_unreadable(digest, path, error)) from error
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise StoreCorrupt(_damaged(digest, path))
        return data

    def open(self, digest: str) -> BinaryIO:
        """The blob's file at its start, its bytes verified in one pass that takes little memory; the caller closes it.

        A blob that is put anew is another file, so what is read from this one is what was verified.

        Raises:
            StoreCorrupt: it is missing, cannot be read, or its bytes are not those that were stored.
        """
        path = self.path(digest)
        try:
            file = path.open("rb")
        except OSError as error:
            raise StoreCorrupt(_unreadable(digest, path, error)) from error
        try:
            if "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise StoreCorrupt(_damaged(digest, path))
            file.seek(0)
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                raise StoreCorrupt(_unreadable(digest, path, error)) from error
            raise
        return file

    def fault(self, digest: str) -> str | None:
        """What is wrong with a blob, or None; takes little memory whatever its size."""
        path = self.path(digest)
        found = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    found.update(chunk)
        except OSError as error:
            return _unreadable(digest, path, error)
        return None if "sha256:" + found.hexdigest() == digest else _damaged(digest, path)

    def __iter__(self) -> Iterator[str]:
        """The digests of all blobs, whether or not a version refers to them."""
        for path in sorted(self._all.glob("??/*")):
            if _HEX.fullmatch(path.name):
                yield f"sha256:{path.name}"

    def faults(self) -> list[str]:
        """What is wrong with any blob, and every file that has no business among them."""
        found = [self.fault(digest) for digest in self]
        known = {self.path(digest) for digest in self}
        strays = [path for path in sorted(self._all.glob("*/*")) if path not in known]
        return [fault for fault in found if fault] + [f"{path} is not a blob; remove it" for path in strays]

    def clean_temp(self) -> int:
        """Remove what killed processes left unfinished; how many there were."""
        return clean_temp(self.files, self._temp)


def _damaged(digest: str, path: Path) -> str:
    return f"blob {digest} is damaged: {path} holds other bytes; restore this file from a backup, or push it again"


def _unreadable(digest: str, path: Path, error: OSError) -> str:
    why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return f"blob {digest} {why}: {path}; restore this file from a backup, or push it again"
