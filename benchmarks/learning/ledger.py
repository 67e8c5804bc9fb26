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
            other = differing(kept["setting"], self._setting)
            if other:
                raise SystemExit(f"{folder} holds a run with another {', '.join(other)}; give --work another folder")
            self._found = kept["found"]
        else:
            self._keep()  # before the first step, which may be killed when it has left something in the folder

    def __contains__(self, name: str) -> bool:
        """Whether a step has been taken."""
        return name in self._found

    def once(self, name: str, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step found: now, or when it was taken."""
        if name not in self._found:
            self._found[name] = step()
            self._keep()
        return self._found[name]

    def _keep(self) -> None:
        write(self._path, {"setting": self._setting, "found": self._found})


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two settings, as JSON has them, say differently: names, as `part.name` where they stand inside a part.

    What is not there is None: a run that was made before a choice could be made was made without it.
    """
    names: list[str] = []
    for name in sorted(one.keys() | other.keys()):
        here, there = one.get(name), other.get(name)
        inside = isinstance(here, dict) and isinstance(there, dict)
        names += (
            [f"{name}.{own}" for own in differing(here, there)] if inside else [name] if not _alike(here, there) else []
        )
    return names


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return not differing(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one == other


@contextmanager
def workplace(work: Path | None, name: str) -> Generator[Path]:
    """A folder for one store and its ledger: `name` in `work`, made where it is missing; or a temporary one."""
    if work is not None:
        (work / name).mkdir(parents=True, exist_ok=True)
        yield work / name
        return
    with tempfile.TemporaryDirectory(prefix="taskpack-learning-") as temporary:
        yield Path(temporary)
