"""What the steps of a long experiment found, kept in a file, so that one that was stopped goes on where it was."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from .record import write


@final
class Ledger:
    """Steps by name, with what each found.

    Args:
        folder: is made where it is missing; the file is `ledger.json` in it.
        setting: all that the steps depend on.

    Raises:
        SystemExit: the folder is of another setting.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any]) -> None:
        self.folder, self._path = folder, folder / "ledger.json"
        self._setting = json.loads(json.dumps(setting))
        self._found: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if kept["setting"] != self._setting:
                names = kept["setting"].keys() | self._setting.keys()
                other = sorted(name for name in names if kept["setting"].get(name) != self._setting.get(name))
                raise SystemExit(f"{folder} holds a run with another {', '.join(other)}; give --work another folder")
            self._found = kept["found"]

    def __contains__(self, name: str) -> bool:
        """Whether a step has been taken."""
        return name in self._found

    def once(self, name: str, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step found: now, or when it was taken."""
        if name not in self._found:
            self._found[name] = step()
            write(self._path, {"setting": self._setting, "found": self._found})
        return self._found[name]


@contextmanager
def workplace(work: Path | None, name: str) -> Generator[Path]:
    """A folder for one store and its ledger: `name` in `work`, made where it is missing; or a temporary one."""
    if work is not None:
        (work / name).mkdir(parents=True, exist_ok=True)
        yield work / name
        return
    with tempfile.TemporaryDirectory(prefix="taskpack-learning-") as temporary:
        yield Path(temporary)
