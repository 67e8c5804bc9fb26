"""The directory of one run: `runs/<id>/` with settings.json, results.csv and the last checkpoint; when it is finished
report.json and `predictions-<split>.csv` in place of the checkpoint.

A run's process holds a lock on its directory, so an unfinished run whose lock is free was killed and can be resumed.
The id says when a run began; the task's name stands in settings.json, never in a path.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from masks_store import InvalidInput, write_file

from .checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from .plan import Plan
from .predictions import Predictions
from .predictions import as_csv as predictions_csv
from .progress import Reporter
from .results import Row, as_csv

SETTINGS, RESULTS, CHECKPOINT, REPORT, LOCK = (
    "settings.json",
    "results.csv",
    "checkpoint.safetensors",
    "report.json",
    "lock",
)
COMPARISON = "compare.json"


@dataclass(frozen=True)
class RunFolder:
    """A run's directory, held by this process."""

    path: Path
    lock: int

    @property
    def checkpoint(self) -> Path:
        """Where the last checkpoint stands while the run goes on."""
        return self.path / CHECKPOINT

    def write(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint in place of the last one."""
        write_checkpoint(self.checkpoint, checkpoint)

    def write_results(self, rows: Sequence[Row]) -> None:
        """Write results.csv anew: after a resume it holds no row that was lost and made again."""
        write_file(self.path / RESULTS, as_csv(rows).encode())

    def write_predictions(self, split: str, predictions: Predictions) -> None:
        """Write what the finished artifact says of a split's pictures; `taskpack report` draws from it."""
        write_file(self.path / predictions_file(split), predictions_csv(predictions).encode())

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write report.json, and drop the checkpoint: it is as large as the network several times over."""
        write_file(self.path / REPORT, _json(report))
        self.checkpoint.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others resume the run, if it is unfinished."""
        os.close(self.lock)


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint in a run's directory; None where the run was killed before its first."""
    path = folder / CHECKPOINT
    return read_checkpoint(path) if path.exists() else None


def predictions_file(split: str) -> str:
    """The name in a run's directory of what the artifact says of a split."""
    return f"predictions-{split}.csv"


def new_run(runs: Path, plan: Plan) -> RunFolder:
    """Make a run's directory and write its resolved settings."""
    path = _new_folder(runs)
    lock = _lock(path)
    assert lock is not None, "nobody else knows the new name"
    write_file(path / SETTINGS, _json(plan.as_json()))
    return RunFolder(path, lock)


@contextlib.contextmanager
def open_run(runs: Path, plan: Plan, reporter: Reporter, *, resume: bool) -> Generator[RunFolder]:
    """The directory of a run while the block runs: with `resume` the unfinished one that there may be, else a new one.

    Raises:
        InvalidInput: the unfinished run has other settings.
    """
    folder = resume_run(runs, plan) if resume else None
    if resume:
        reporter.say(
            f"going on with run {folder.path.name}" if folder else "no unfinished run to go on with: starting anew"
        )
    folder = folder or new_run(runs, plan)
    try:
        yield folder
    finally:
        folder.close()


def keep_comparison(runs: Path, comparison: Mapping[str, Any]) -> Path:
    """Make a directory that holds the result of a comparison, and no run; returns it."""
    path = _new_folder(runs)
    try:
        write_file(path / COMPARISON, _json(comparison))
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


def _new_folder(runs: Path) -> Path:
    runs.mkdir(exist_ok=True)
    path = runs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    path.mkdir()
    return path


def resume_run(runs: Path, plan: Plan) -> RunFolder | None:
    """The newest unfinished run of the plan's task that no process is at; None where there is none.

    Raises:
        InvalidInput: it ran under other settings; every difference is named.
    """
    for path, settings in _unfinished(runs, plan.task):
        lock = _lock(path)
        if lock is None:
            continue
        differences = _differences(settings, cast(dict[str, Any], json.loads(_json(plan.as_json()))))
        if differences:
            os.close(lock)
            raise InvalidInput(
                f"the unfinished run {path.name} of {plan.task!r} has other settings; give the same ones to go on with "
                "it, or leave --resume out to start anew",
                differences,
            )
        _remove_temporary(path)
        return RunFolder(path, lock)
    return None


def drop_superseded(runs: Path, finished: RunFolder, task: str) -> None:
    """Remove what dead runs of a task left, now that the task has been trained: nobody will go on with them.

    Also removes directories whose run was killed before it could write its settings.
    """
    dead = [path for path, _ in _unfinished(runs, task)]
    dead += [path for path in runs.iterdir() if (path / LOCK).exists() and not (path / SETTINGS).exists()]
    for path in dead:
        if path == finished.path:
            continue
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def remove_runs(runs: Path) -> None:
    """Remove all runs that no process is at, and the folder if none is left."""
    for path in runs.iterdir() if runs.is_dir() else ():
        lock = _lock(path) if (path / LOCK).exists() else None  # what is no run is not ours
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    with contextlib.suppress(OSError):  # another process's run is in it, or something else
        runs.rmdir()


def _unfinished(runs: Path, task: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Unfinished runs of a task, the newest first, with their settings."""
    for path in sorted(runs.iterdir() if runs.is_dir() else (), reverse=True):
        if (path / REPORT).exists() or not (path / SETTINGS).is_file():
            continue
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        if settings.get("task") == task:
            yield path, settings


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    old, new = _by_phase(old), _by_phase(new)
    return [
        f"{name}: {old.get(name)!r} then, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _by_phase(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of each phase under names of their own: a difference is then one line, not two long lists."""
    phases: list[dict[str, Any]] = settings.get("phases", [])
    fields = {
        f"phase {place} ({phase['name']}) {name}": value
        for place, phase in enumerate(phases, 1)
        for name, value in phase.items()
        if name != "name"
    }
    return {**settings, "phases": [phase["name"] for phase in phases], **fields}


def _lock(path: Path) -> int | None:
    """Hold a directory until the descriptor is closed or the process ends; None where another process holds it."""
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_temporary(path: Path) -> None:
    for leftover in path.glob("*.tmp"):  # what the killed process was writing; the lock says that nobody is now
        leftover.unlink(missing_ok=True)


def _json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
