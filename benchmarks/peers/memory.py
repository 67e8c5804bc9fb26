"""The processes of a server, whatever it starts, by a mark in their environment: their memory, and their end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from service.bench.load import proportional_memory

MARK = "TASKPACK_PEER"
END_S = 5.0


def marked(mark: str, proc: Path = Path("/proc")) -> list[int]:
    """Ids of the processes that have inherited `MARK=mark`."""
    wanted = f"{MARK}={mark}".encode()
    found: list[int] = []
    for folder in proc.iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def memory_of(mark: str) -> int:
    """Bytes in memory of all of them, what processes share divided by how many share it (PSS)."""
    return sum(proportional_memory(pid) or 0 for pid in marked(mark))


def end(mark: str) -> None:
    """End all that are left: asked first, then killed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        for pid in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        until = time.monotonic() + END_S
        while marked(mark):
            if time.monotonic() > until:
                break
            time.sleep(0.1)
