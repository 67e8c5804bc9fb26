"""A lock that some hold together and one holds alone."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class Turns:
    """Readers and a writer, by other names. Who wants to be alone goes before those who come after him."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._waiting = 0
        self._owner: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether somebody waits to be alone."""
        return self._waiting > 0

    @contextmanager
    def together(self) -> Generator[None]:
        """Hold it beside others. Who holds it alone may take it once more this way."""
        mine = self._owner == threading.get_ident()
        if not mine:
            with self._changed:
                self._changed.wait_for(lambda: self._owner is None and not self._waiting)
                self._together += 1
        try:
            yield
        finally:
            if not mine:
                with self._changed:
                    self._together -= 1
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Hold it with nobody beside."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._owner is None and not self._together)
                self._owner = threading.get_ident()
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._owner = None
                self._changed.notify_all()
