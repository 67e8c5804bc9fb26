"""What the runs say: medians for people, and the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.learning.record import table

from .runs import PERCENTILES, Run

MIB = 2**20
Figure = Callable[[Run], float]


@dataclass(frozen=True)
class Target:
    """A ratio that is wanted.

    Attributes:
        name: what is compared.
        value: the ratio, the median of the rounds'; None where a side was not measured.
        wanted: the target.
        least: whether more is better.
    """

    name: str
    value: float | None
    wanted: float
    least: bool

    @property
    def verdict(self) -> str:
        """Reached, short, or not measured."""
        if self.value is None:
            return "not measured"
        return "reached" if (self.value >= self.wanted if self.least else self.value <= self.wanted) else "short"

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "value": self.value, "wanted": self.wanted, "verdict": self.verdict}


def servers_table(runs: Sequence[Run]) -> str:
    """A line per server and number of tasks: medians over the rounds."""
    head = ["server", "tasks", "requests/s", *(f"p{p} ms" for p in PERCENTILES), "MiB", "answers as the reference's"]
    lines = [
        [
            name,
            str(count),
            f"{middle(own, lambda run: run.rate):.1f}",
            *(f"{middle(own, lambda run, p=p: run.latency_ms[f'p{p}']):.0f}" for p in PERCENTILES),
            f"{middle(own, lambda run: run.memory / MIB):.0f}",
            f"{own[0].same}/{own[0].answers} ({max(run.error for run in own):.4f})",
        ]
        for count in counts_of(runs)
        for name in names_of(runs)
        if (own := of(runs, name, count))
    ]
    return table(head, lines)


def targets(runs: Sequence[Run]) -> list[Target]:
    """Speed at the number of tasks nearest to eight; memory there, and what each further task takes."""
    if not runs:
        return []
    counts = counts_of(runs)
    count = min(counts, key=lambda n: abs(n - 8))
    written = [name for name in names_of(runs) if " as written " in name]
    tuned = [name for name in names_of(runs) if " tuned " in name]
    equal = "tuned, of the same precision"
    found = [
        _speed("taskpack fp32", "as written", written, runs, count, 1.5),
        _speed("taskpack bf16", "as written", written, runs, count, 2.6),
        _speed("taskpack fp32", equal, [name for name in tuned if name.endswith("fp32")], runs, count, 1.2),
        _speed("taskpack bf16", equal, [name for name in tuned if name.endswith("bf16")], runs, count, 1.2),
    ]
    for ours in ("taskpack fp32", "taskpack bf16", "taskpack sparing fp32", "taskpack sparing bf16"):
        dtype = ours.split()[-1]
        rivals = [name for name in (*written, *tuned) if name.endswith(dtype)]
        found.append(_memory(ours, rivals, runs, count))
        if counts[0] < count:
            found.append(_slope(ours, rivals, runs, counts[0], count))
    return found


def _speed(ours: str, kind: str, rivals: Sequence[str], runs: Sequence[Run], count: int, wanted: float) -> Target:
    """Ours × the fastest of the rivals, which are peers of that kind, round by round."""
    ratios = []
    for run in of(runs, ours, count):
        beside = [other.rate for name in rivals for other in of(runs, name, count) if other.round == run.round]
        ratios += [run.rate / max(beside)] if beside else []
    value = statistics.median(ratios) if ratios else None
    return Target(f"{ours}, {count} tasks: requests/s x the best peer {kind}", value, wanted, True)


def _memory(ours: str, rivals: Sequence[str], runs: Sequence[Run], count: int) -> Target:
    best = _fastest(rivals, runs, count)
    own = of(runs, ours, count)
    value = None
    if best and own:
        value = middle(own, lambda run: run.memory) / middle(of(runs, best, count), lambda run: run.memory)
    return Target(f"{ours}, {count} tasks: memory x the fastest peer's ({best or '-'})", value, 0.5, False)


def _slope(ours: str, rivals: Sequence[str], runs: Sequence[Run], few: int, many: int) -> Target:
    best, value = _fastest(rivals, runs, many), None
    sides = [[of(runs, name, count) for count in (few, many)] for name in (ours, best or "")]
    if all(own for side in sides for own in side):
        more = [middle(side[1], lambda run: run.memory) - middle(side[0], lambda run: run.memory) for side in sides]
        value = more[0] / more[1]
    return Target(f"{ours}, {few} to {many} tasks: memory of a further task x the fastest peer's", value, 0.1, False)


def _fastest(names: Sequence[str], runs: Sequence[Run], count: int) -> str | None:
    measured = [name for name in names if of(runs, name, count)]
    return max(measured, key=lambda name: middle(of(runs, name, count), lambda run: run.rate), default=None)


def of(runs: Sequence[Run], name: str, count: int) -> list[Run]:
    """The runs of one server with one number of tasks."""
    return [run for run in runs if run.server == name and run.tasks == count]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Servers, in the order in which they first came."""
    return list(dict.fromkeys(run.server for run in sorted(runs, key=lambda run: run.round)))


def counts_of(runs: Sequence[Run]) -> list[int]:
    """Numbers of tasks, rising."""
    return sorted({run.tasks for run in runs})


def middle(runs: Sequence[Run], figure: Figure) -> float:
    """The median of a figure."""
    return statistics.median(figure(run) for run in runs)
