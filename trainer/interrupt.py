"""Ctrl-C and SIGTERM between two steps: finish the step, keep a checkpoint, stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

from .ranks import ProcessLost

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint has been kept.

    Attributes:
        number: the signal that came.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


def stopped(folder: Path, number: int) -> Interrupted:
    """What a run that was asked to stop ends with: says where its checkpoint is, and how to go on.

    Args:
        folder: the run's.
        number: the signal that came.
    """
    text = f"stopped; the checkpoint is kept in {folder}. The same command with --resume goes on from it"
    return Interrupted(text, number=number)


@contextlib.contextmanager
def stop_requests() -> Generator[Callable[[], int]]:
    """While the block runs, the first signal is noted and the second interrupts at once.

    Yields:
        A function that gives the number of the signal that came, 0 for none. Outside of the main thread, where
        handlers cannot be set, always 0.

    Raises:
        ProcessLost: came from the block. The handlers stay: torchrun ends this process too, once it has told why.
    """
    came = 0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    lost = False
    try:
        yield lambda: came
    except ProcessLost:
        lost = True
        raise
    finally:
        for number, handler in before.items() if not lost else ():  # torchrun's SIGTERM must not outrun the error
            signal.signal(number, handler)
