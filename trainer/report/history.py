"""What a store's `runs/` remembers: runs, finished or not, and comparisons.

What cannot be read is told, never raised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from masks_store import InvalidInput

from ..predictions import Predictions, from_csv
from ..results import Row
from ..results import from_csv as rows_from_csv
from ..runs import COMPARISON, REPORT, RESULTS, SETTINGS, predictions_file
from ..sparsify import Candidate

SPLITS = ("test", "val")  # what a page shows, the first that is there


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        name: of the folder; it begins with the time at which the run began, so names sort by time.
        task, method: what was trained.
        data: digest of the source and its split.
        prune: share that was given back; None where nothing was taken, or it was still to be chosen.
        turn: t and T of the t-th of T tasks that share equally (`--prune equal:T`); None for another share.
        claimed: shared weights that it took; None for a run that is not finished, or does not say.
        finished: whether it came to its end.
        version: digest of the artifact; None for a run that is not finished, or makes none.
        val_top1, test_top1: of the finished artifact.
        trials: (share, validation accuracy) of what was tried before one was taken; empty where it was given.
        judged_from: accuracy before pruning that these were compared with: by folds, that of the folds' networks.
        scan: the thresholds that a clnp run tried; empty for the others.
        rows: an entry per epoch.
        split, predictions: what the artifact says of the test split, or of validation; None where it was not kept.
    """

    name: str
    task: str
    method: str
    data: str
    prune: float | None
    turn: tuple[int, int] | None
    claimed: int | None
    finished: bool
    version: str | None
    val_top1: float | None
    test_top1: float | None
    trials: tuple[tuple[float, float], ...]
    judged_from: float | None
    scan: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    split: str | None
    predictions: Predictions | None


@dataclass(frozen=True)
class Compared:
    """One method of a comparison."""

    name: str
    task: str
    data: str
    method: str
    val_top1: float
    test_top1: float | None


@dataclass(frozen=True)
class History:
    """All of `runs/`, the oldest first.

    Attributes:
        runs, compared: what could be read.
        faults: a line for every folder that could not.
    """

    runs: tuple[Run, ...]
    compared: tuple[Compared, ...]
    faults: tuple[str, ...]


def read_history(runs: Path) -> History:
    """Read every folder of `runs/`; folders of something else are left alone."""
    found: list[Run] = []
    compared: list[Compared] = []
    faults: list[str] = []
    for path in sorted(path for path in (runs.iterdir() if runs.is_dir() else ()) if path.is_dir()):
        try:
            if (path / COMPARISON).exists():
                compared += _comparison(path)
            elif (path / SETTINGS).exists():
                found.append(_run(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidInput) as error:
            said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            faults.append(f"{path.name}: cannot be read ({said.replace(str(path), path.name)})")
    return History(tuple(found), tuple(compared), tuple(faults))


def _run(path: Path) -> Run:
    settings = _json(path / SETTINGS)
    report = _json(path / REPORT) if (path / REPORT).exists() else {}
    split, predictions = _predictions(path)
    results = path / RESULTS
    return Run(
        name=path.name,
        task=str(settings["task"]),
        method=str(settings["method"]),
        data=str(settings["data"]),
        prune=_share(report.get("prune", settings["prune"])),
        turn=_turn(settings.get("turn")),
        claimed=int(report["claimed"]) if report.get("claimed") is not None else None,
        finished=bool(report),
        version=str(report["version"]) if report and report["version"] is not None else None,
        val_top1=_number(report["val_top1"]) if report else None,
        test_top1=_number(report["test_top1"]) if report else None,
        trials=tuple((float(one["share"]), float(one["val_top1"])) for one in report.get("trials", ())),
        judged_from=_judged_from(report.get("trials", ())),
        scan=_scan(report.get("scan", ())),
        rows=tuple(rows_from_csv(results.read_text(encoding="utf-8"))) if results.exists() else (),
        split=split,
        predictions=predictions,
    )


def _predictions(path: Path) -> tuple[str | None, Predictions | None]:
    for split in SPLITS:
        file = path / predictions_file(split)
        if file.exists():
            return split, from_csv(file.read_text(encoding="utf-8"), file.name)
    return None, None


def _comparison(path: Path) -> list[Compared]:
    told = _json(path / COMPARISON)
    methods = cast(Sequence[dict[str, Any]], told["methods"])
    return [
        Compared(
            name=path.name,
            task=str(told["task"]),
            data=str(told["data"]),
            method=str(one["method"]),
            val_top1=float(one["val_top1"]),
            test_top1=_number(one["test_top1"]),
        )
        for one in methods
    ]


def _share(value: Any) -> float | None:
    """A share; None for a word, such as `auto`, which says how one is chosen."""
    return None if isinstance(value, str) else _number(value)


def _turn(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    turn, tasks = value
    return int(turn), int(tasks)


def _judged_from(trials: Sequence[Mapping[str, Any]]) -> float | None:
    """None where nothing was tried, or the drop was not noted."""
    drop = trials[0].get("drop") if trials else None
    return None if drop is None else float(trials[0]["val_top1"]) + float(drop)


def _scan(told: Sequence[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    scan = tuple(_candidate(one) for one in told)
    if scan and not (scan[0].accepted and scan[0].units > 0):
        raise ValueError("the scan for a threshold does not begin with the network before it")
    return scan


def _candidate(told: Mapping[str, Any]) -> Candidate:
    return Candidate(
        threshold=_number(told["threshold"]),
        val_top1=float(told["val_top1"]),
        units=int(told["units"]),
        accepted=bool(told["accepted"]),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _json(path: Path) -> dict[str, Any]:
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return cast(dict[str, Any], fields)
