"""SIGTERM before the server serves: what is asked of a process that still loads is to end, with exit code 0.

Left alone the signal would kill it, and as the first process of a container, for which the kernel drops signals that
nobody handles, it would be lost. Imports nothing that takes time: it is there before all else is loaded.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class EarlyStop:
    """A handler that ends the process where it stands, and remembers, should library code have caught that."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """End with exit code 0."""
        self.asked = True
        raise SystemExit(0)


def hear() -> Callable[[], None]:
    """Handle SIGTERM from now on, until something else does; returns what puts the handler of before back.

    Outside of the main thread, where signals are not handled, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.signal(signal.SIGTERM, EarlyStop())

    def put_back() -> None:
        signal.signal(signal.SIGTERM, before)

    return put_back


def asked_to_end() -> bool:
    """Whether SIGTERM came since `hear`, and nothing else handles it yet."""
    handler = signal.getsignal(signal.SIGTERM)
    return isinstance(handler, EarlyStop) and handler.asked


def heed() -> None:
    """End with exit code 0 where SIGTERM came since `hear`.

    Raises:
        SystemExit: it came.
    """
    if asked_to_end():
        raise SystemExit(0)
