"""The figures of a result: throughput and memory against the number of tasks, and latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from .runs import PERCENTILES, Run
from .servers import KINDS
from .tables import MIB, counts_of, middle, names_of, of

OURS, MARKS = "#C85200", "osD^vX"
SHADES = {"as written fp32": "#A2C8EC", "tuned fp32": "#5F9ED1", "tuned bf16": "#006BA4"}


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write PNGs into a folder.

    Returns:
        Their paths: `peers-throughput`, `peers-memory` (where there is more than one number of tasks), `peers-latency`.
    """
    drawn: list[tuple[str, Figure]] = []
    if len(counts_of(runs)) > 1:
        drawn.append(("throughput", _by_tasks(runs, "requests a second", lambda run: run.rate)))
        drawn.append(("memory", _by_tasks(runs, "memory of all processes, MiB", lambda run: run.memory / MIB)))
    drawn.append(("latency", _latency(runs)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"peers-{name}.png" for name, _ in drawn]
    for path, (_, figure) in zip(paths, drawn, strict=True):
        figure.savefig(path, dpi=120)
    return paths


def _look(name: str) -> tuple[str, str, str]:
    """Colour by precision and tuning, mark by program, line by whether it is ours."""
    kind = name.rsplit(" as written ")[0].rsplit(" tuned ")[0]
    if name.startswith("taskpack"):
        return OURS, "*" if name.endswith("bf16") else "P", "-." if "sparing" in name else "-"
    way = name.removeprefix(kind).strip()
    return SHADES[way], MARKS[KINDS.index(kind) - 2], ":" if way.startswith("as") else "--"


def _by_tasks(runs: Sequence[Run], label: str, figure: Callable[[Run], float]) -> Figure:
    """A line per server; both axes logarithmic."""
    drawing = Figure(figsize=(9, 5.5), layout="constrained")
    axes: Axes = drawing.add_subplot()
    counts = counts_of(runs)
    for name in names_of(runs):
        there = [count for count in counts if of(runs, name, count)]
        colour, mark, line = _look(name)
        wide = 2.4 if name.startswith("taskpack") else 1.2
        values = [middle(of(runs, name, count), figure) for count in there]
        axes.plot(there, values, line, color=colour, marker=mark, label=name, linewidth=wide, markersize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.set_xlabel("tasks, asked for in equal shares")
    axes.set_ylabel(label)
    axes.grid(True, which="both", alpha=0.25)
    drawing.legend(loc="outside right upper", frameon=False, fontsize=8)
    return drawing


def _latency(runs: Sequence[Run]) -> Figure:
    """From the middle request to the slowest hundredth, a bar per server, the number of tasks nearest to eight."""
    count = min(counts_of(runs), key=lambda n: abs(n - 8))
    names = [name for name in names_of(runs) if of(runs, name, count)]
    spread = {
        name: [middle(of(runs, name, count), lambda run, p=p: run.latency_ms[f"p{p}"]) for p in PERCENTILES]
        for name in names
    }
    names.sort(key=lambda name: spread[name][0], reverse=True)  # the best on top
    drawing = Figure(figsize=(9, 0.8 + 0.36 * len(names)), layout="constrained")
    axes: Axes = drawing.add_subplot()
    for at, name in enumerate(names):
        low, most, high = spread[name]
        colour = _look(name)[0]
        axes.plot([low, high], [at, at], color=colour, linewidth=6, solid_capstyle="butt")
        axes.plot([low, most], [at, at], "|", color="#1b1b1b", markersize=11)
        axes.annotate(f" {low:.0f} / {high:.0f}", (high, at), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"milliseconds of a request, p50 to p99 (marks: p50, p90), {count} tasks")
    axes.set_xlim(0, 1.12 * max(values[-1] for values in spread.values()))
    axes.grid(True, axis="x", alpha=0.25)
    return drawing
