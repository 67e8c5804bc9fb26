"""A signal to this very process at a moment that a file tells: starting another costs more than the test itself."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path


def wait_for(folder: Path, pattern: str, holding: str = "") -> None:
    """Until a file of that name is there, and holds a text."""
    deadline = time.monotonic() + 100
    while not any(not holding or holding in path.read_text() for path in folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} with {holding!r}"
        time.sleep(0.01)


@contextlib.contextmanager
def signalled(number: signal.Signals, folder: Path, pattern: str) -> Generator[None]:
    """Send the signal to this process as soon as the file is there; one that nobody waits for any more does nothing."""

    def send() -> None:
        wait_for(folder, pattern)
        os.kill(os.getpid(), number)

    before = signal.signal(number, lambda *_: None)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(number, before)
