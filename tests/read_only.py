"""Commands to which a folder is mounted read-only, or is a full disk, which binds the superuser as well."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

_FILL = (
    'copy=$(mktemp -d) && cp -a "$0/." "$copy" && mount -t tmpfs -o size=16m tmpfs "$0" && cp -a "$copy/." "$0" '
    '&& rm -r "$copy" && { dd if=/dev/zero of="$0/filled" bs=4k 2>&-; exec "$@"; }'
)
_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def mounted(folder: Path, *words: object) -> list[str]:
    """A command line that runs `words` where `folder` is mounted read-only; the process is that of `words`.

    Skips the test where nobody but the superuser may mount.
    """
    if not _may_mount():
        pytest.skip("needs user namespaces (unshare) to mount")
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, str(folder), *map(str, words)]


def full(folder: Path, *words: object) -> list[str]:
    """A command line that runs `words` where `folder` is on a disk without a free byte; what they do there is lost."""
    if not _may_mount():
        pytest.skip("needs user namespaces (unshare) to mount")
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", _FILL, str(folder), *map(str, words)]


@cache
def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "/tmp", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
