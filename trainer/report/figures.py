"""The figures of a report, as PNG; each is drawn twice, for light and for dark pages.

Nothing is told by colour alone where a hatch, a mark or a number can tell it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from ..sparsify import kept_of
from .drawing import (
    COLOURS,
    ROW,
    THEMES,
    WIDTH,
    Theme,
    human_bytes,
    legend_above,
    looks,
    name_rows,
    panel_figure,
    row_figure,
    short,
    to_png,
)
from .facts import Facts, PruneCurve, TaskFacts, percent

MARKS = ("D", "s", "^", "v", "P", "X", "*", "<", ">", "h")
NUMBERED = 12  # tasks up to which the sharing matrix has a number in every cell
ALT_NAMES = 8


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: of its files, without an ending.
        alt: what it shows, in words, for those who cannot see it.
        png: theme -> the file.
    """

    name: str
    alt: str
    png: Mapping[str, bytes]


def draw_all(facts: Facts) -> dict[str, Picture]:
    """Every figure that the store has something for, by name."""
    drawn: dict[str, Picture] = {}
    measured = [task for task in facts.tasks if task.val_top1 is not None or task.test_top1 is not None]
    curves = [task for task in facts.tasks if task.rows]
    pruned = [task for task in facts.tasks if task.prune]
    scanned = [task for task in facts.tasks if task.prune and task.prune.scan]
    searched = [task for task in facts.tasks if task.prune and task.prune.trials]
    wanted: list[tuple[str, bool, str, Callable[[Theme], Figure]]] = [
        ("accuracy", bool(measured), _accuracy_alt(measured), lambda theme: _accuracy(measured, theme)),
        ("capacity", True, _capacity_alt(facts), lambda theme: _capacity(facts, theme)),
        ("owners", True, _owners_alt(facts), lambda theme: _owners(facts, theme)),
        ("sharing", len(facts.shared) > 1, _sharing_alt(facts), lambda theme: _sharing(facts, theme)),
        ("bytes", bool(facts.tasks), _bytes_alt(facts), lambda theme: _bytes(facts.tasks, theme)),
        ("curves", bool(curves), _curves_alt(curves), lambda theme: _curves(curves, theme)),
        ("pruning", bool(pruned), _pruning_alt(pruned), lambda theme: _pruning(pruned, theme)),
        ("scan", bool(scanned), _scan_alt(scanned), lambda theme: _scan(scanned, theme)),
        ("shares", bool(searched), _shares_alt(searched), lambda theme: _shares(searched, theme)),
    ]
    for name, there, alt, draw in wanted:
        if there:
            drawn[name] = Picture(name, alt, {theme.name: to_png(draw, theme) for theme in THEMES})
    return drawn


# ---------------------------------------------------------------- the figures


def _accuracy(tasks: Sequence[TaskFacts], theme: Theme) -> Figure:
    """A line per task: a dot for what the store holds, a mark for every baseline."""
    figure, axes = row_figure(len(tasks), legend=True)
    methods = sorted({baseline.method for task in tasks for baseline in task.baselines})
    marks = {method: (MARKS[n % len(MARKS)], f"C{1 + n % (COLOURS - 1)}") for n, method in enumerate(methods)}
    for place, task in enumerate(tasks):
        told = {baseline.method: _shown(baseline.val_top1, baseline.test_top1) for baseline in task.baselines}
        own = _shown(task.val_top1, task.test_top1)
        ends = [own, *told.values()]
        axes.plot([min(ends), max(ends)], [place, place], color=theme.line, zorder=1)
        for method, value in told.items():
            mark, colour = marks[method]
            axes.plot(value, place, mark, color=colour, markersize=6, zorder=2)
        axes.plot(own, place, "o", color="C0", markersize=8, zorder=3)
    axes.plot([], [], "o", color="C0", markersize=8, label="in the store")
    for method, (mark, colour) in marks.items():
        axes.plot([], [], mark, color=colour, markersize=6, label=method)
    name_rows(axes, [f"{short(task.task)} ({task.method})" for task in tasks])
    axes.set_xlabel("accuracy on the test split (validation where there is none)")
    axes.set_xlim(right=1.005)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    legend_above(figure)
    return figure


def _capacity(facts: Facts, theme: Theme) -> Figure:
    shares = _free_shares(facts)
    units = [f"{short(use.layer, 40)} ({use.units:,})" for use in facts.units]
    figure, axes = row_figure(len(shares))
    axes.barh(range(len(shares)), shares, color="C0", height=0.7)
    name_rows(axes, units or _layer_names(facts))
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"free {facts.capacity} of each layer")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _owners(facts: Facts, theme: Theme) -> Figure:
    """Stacked bars per layer: the backbone's own, every claim in the order of registration, what is free."""
    names = _owner_names(facts)
    longest = max(map(len, names), default=0)
    abreast = 6 if longest <= 10 else 4 if longest <= 18 else 3
    figure, axes = row_figure(len(facts.layers), legend=True, extra=ROW * math.ceil((len(names) + 2) / abreast))
    start = [0.0] * len(facts.layers)

    def stack(parts: Sequence[float], label: str, **look: Any) -> None:
        axes.barh(range(len(parts)), parts, left=start, height=0.8, label=label, linewidth=0.4, clip_on=False, **look)
        start[:] = [before + part for before, part in zip(start, parts, strict=True)]

    if any(layer.kept for layer in facts.layers):
        kept = [layer.kept / layer.weights for layer in facts.layers]
        stack(kept, "backbone", color=theme.quiet, edgecolor=theme.paper)
    for owner, name, look in zip(facts.owners, names, looks(len(facts.owners)), strict=True):
        shares = [layer.claimed.get(owner.version, 0) / layer.weights for layer in facts.layers]
        stack(shares, name, edgecolor=theme.paper, **look)
    if facts.free:
        free = [layer.free / layer.weights for layer in facts.layers]
        stack(free, "free", color=theme.paper, edgecolor=theme.quiet)
    name_rows(axes, _layer_names(facts))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of each layer's weights")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(False)
    legend_above(figure, abreast)
    return figure


def _sharing(facts: Facts, theme: Theme) -> Figure:
    count = len(facts.shared)
    side = min(WIDTH, 0.5 * count + 2.5)
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axes = figure.add_subplot()
    least = _least_shown(facts.sharing)
    image = axes.imshow(facts.sharing, vmin=least, vmax=1, cmap="cividis")
    size = 10.0 if count <= 25 else 7.0
    labels = [short(name) for name in facts.shared]
    axes.set_xticks(range(count), labels, rotation=90 if count > 4 else 20, ha="center" if count > 4 else "right")
    axes.set_yticks(range(count), labels)
    axes.tick_params(labelsize=size, length=0)
    axes.set_xlabel("… that this task computes with too")
    axes.set_ylabel("part of this task's weights …")
    axes.grid(False)
    if count <= NUMBERED:
        for row, shares in enumerate(facts.sharing):
            for column, share in enumerate(shares):
                ink = "#000000" if share - least > 0.5 * (1 - least) else "#ffffff"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _least_shown(sharing: Sequence[Sequence[float]]) -> float:
    """Where the colours begin: 0, or the twentieth under the least share where all are large, so that they differ."""
    least = min(share for shares in sharing for share in shares)
    return 0.0 if least < 0.5 else math.floor(min(least, 0.99) * 20) / 20


def _bytes(tasks: Sequence[TaskFacts], theme: Theme) -> Figure:
    """Two marks a task on a logarithmic scale: what it adds to the store, and a network of its own."""
    figure, axes = row_figure(len(tasks), legend=True)
    places = range(len(tasks))
    axes.hlines(places, [t.bytes for t in tasks], [t.network_bytes for t in tasks], color=theme.line, zorder=1)
    axes.plot([t.bytes for t in tasks], places, "o", color="C0", label="in the store", markersize=8)
    axes.plot([t.network_bytes for t in tasks], places, "s", color="C1", label="a network of its own")
    axes.set_xscale("log")
    axes.set_xlim(min(t.bytes for t in tasks) / 2, max(t.network_bytes for t in tasks) * 2)
    name_rows(axes, [short(task.task) for task in tasks])
    axes.xaxis.set_major_formatter(FuncFormatter(_bytes_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes that a task takes")
    legend_above(figure)
    return figure


def _curves(tasks: Sequence[TaskFacts], theme: Theme) -> Figure:
    """Small multiples: accuracy by epoch, a line where a phase begins."""
    figure, panels = panel_figure([task.task for task in tasks])
    for axes, task in zip(panels, tasks, strict=True):
        epochs = _epochs(task)
        trained = [
            (epoch, row.train_top1) for epoch, row in zip(epochs, task.rows, strict=True) if row.train_top1 is not None
        ]
        axes.plot(*zip(*trained, strict=True), "--", color="C1", linewidth=1.2, marker=".", markersize=4)
        axes.plot(epochs, [row.val_top1 for row in task.rows], color="C0", linewidth=1.8, marker=".", markersize=5)
        for epoch, row, before in zip(epochs[1:], task.rows[1:], task.rows, strict=False):
            if row.phase != before.phase:
                begins = epoch if row.epoch == 0 else epoch - 0.5
                axes.axvline(begins, color=theme.quiet, linewidth=1, linestyle=":")
        axes.set_ylim(0, 1.02)
    figure.supxlabel("epoch", fontsize=10)
    first = panels[0]
    first.plot([], [], color="C0", marker=".", label="validation")
    first.plot([], [], "--", color="C1", marker=".", label="training, augmented")
    first.plot([], [], ":", color=theme.quiet, label="next phase")
    legend_above(figure)
    return figure


def _pruning(tasks: Sequence[TaskFacts], theme: Theme) -> Figure:
    figure, axes = row_figure(len(tasks), legend=True)
    for place, task in enumerate(tasks):
        curve = task.prune
        assert curve is not None
        tried = [top1 for _, top1 in curve.trials] + [one.val_top1 for one in curve.scan[1:]]
        ends = [curve.before, curve.pruned, *tried, *([] if curve.retrained is None else [curve.retrained])]
        axes.plot([min(ends), max(ends)], [place, place], color=theme.line, zorder=1)
        axes.plot(tried, [place] * len(tried), "|", color=theme.quiet, markersize=10, zorder=2)
        axes.plot(curve.before, place, "s", color="C1", markersize=8, zorder=3)
        axes.plot(curve.pruned, place, "v", color="C3", markersize=8, zorder=4)
        if curve.retrained is not None:
            axes.plot(curve.retrained, place, "o", color="C0", markersize=6, zorder=5)
    for mark, colour, label in (
        ("s", "C1", "before pruning"),
        ("v", "C3", "right after"),
        ("o", "C0", "after retraining"),
        ("|", theme.quiet, "tried"),
    ):
        axes.plot([], [], mark, color=colour, label=label)
    name_rows(axes, [f"{short(task.task)} ({_pruned(task.prune)})" for task in tasks if task.prune])
    axes.set_xlabel("accuracy on the validation split")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    legend_above(figure)
    return figure


def _scan(tasks: Sequence[TaskFacts], theme: Theme) -> Figure:
    """Small multiples: accuracy by the units that each threshold leaves, upwards in thresholds from left to right."""
    figure, panels = panel_figure([task.task for task in tasks])
    for axes, task in zip(panels, tasks, strict=True):
        assert task.prune is not None
        scan, kept = task.prune.scan, kept_of(task.prune.scan)
        axes.plot([one.units for one in scan], [one.val_top1 for one in scan], color=theme.quiet, marker=".", zorder=2)
        axes.plot(kept.units, kept.val_top1, "o", color="C0", markersize=8, zorder=4)
        refused = [one for one in scan if not one.accepted]
        axes.plot([one.units for one in refused], [one.val_top1 for one in refused], "X", color="C3", zorder=3)
        axes.axhline(scan[0].val_top1, color=theme.quiet, linewidth=1, linestyle=":", zorder=1)
        axes.invert_xaxis()
        axes.margins(y=0.15)
    figure.supxlabel("units that stay active", fontsize=10)
    first = panels[0]
    first.plot([], [], color=theme.quiet, marker=".", label="validation accuracy at a threshold")
    first.plot([], [], "o", color="C0", markersize=8, label="kept")
    first.plot([], [], "X", color="C3", label="costs more than the margin")
    first.plot([], [], ":", color=theme.quiet, label="all units")
    legend_above(figure)
    return figure


def _shares(tasks: Sequence[TaskFacts], theme: Theme) -> Figure:
    """Small multiples: what retraining reached after each share that was tried, and which was taken."""
    figure, panels = panel_figure([task.task for task in tasks])
    for axes, task in zip(panels, tasks, strict=True):
        curve = task.prune
        assert curve is not None
        tried = sorted(curve.trials)
        axes.plot([share for share, _ in tried], [top1 for _, top1 in tried], color=theme.quiet, marker=".", zorder=2)
        taken = [(share, top1) for share, top1 in tried if share == curve.share]
        axes.plot([share for share, _ in taken], [top1 for _, top1 in taken], "o", color="C0", markersize=8, zorder=4)
        judged = curve.before if curve.judged_from is None else curve.judged_from
        axes.axhline(judged, color=theme.quiet, linewidth=1, linestyle=":", zorder=1)
        axes.set_xlim(0.2, 1.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.margins(y=0.15)
    figure.supxlabel("given back of what the task took", fontsize=10)
    first = panels[0]
    first.plot([], [], color=theme.quiet, marker=".", label="validation accuracy at a share")
    first.plot([], [], "o", color="C0", markersize=8, label="taken")
    first.plot([], [], ":", color=theme.quiet, label="before pruning")
    legend_above(figure)
    return figure


def _pruned(curve: PruneCurve) -> str:
    if not curve.scan:
        return f"gives back {100 * curve.share:.0f} %"
    return f"keeps {kept_of(curve.scan).units:,} of {curve.scan[0].units:,} units"


# ---------------------------------------------------------------- in words


def _accuracy_alt(tasks: Sequence[TaskFacts]) -> str:
    values = [_shown(task.val_top1, task.test_top1) for task in tasks]
    if not values:
        return ""
    return (
        f"Accuracy of {len(tasks)} tasks as dots, from {percent(min(values))} to {percent(max(values))}, with other "
        "methods on the same pictures where they were run. The table below has the numbers."
    )


def _capacity_alt(facts: Facts) -> str:
    shares = _free_shares(facts)
    return (
        f"Bars: the free part of the {facts.capacity} of each of {len(shares)} layers, from {percent(min(shares))} to "
        f"{percent(max(shares))}."
    )


def _owners_alt(facts: Facts) -> str:
    told = [
        f"{name} {percent(owner.weights / facts.total)}"
        for name, owner in zip(_owner_names(facts), facts.owners, strict=True)
    ]
    more = f" and {len(told) - ALT_NAMES} more" if len(told) > ALT_NAMES else ""
    owners = ", ".join(told[:ALT_NAMES]) + more if told else "no task owns any"
    free = percent(facts.free / facts.total)
    return f"Stacked bars per layer: who owns its weights. Over all layers: {owners}; free {free}."


def _sharing_alt(facts: Facts) -> str:
    apart = [share for row, shares in enumerate(facts.sharing) for column, share in enumerate(shares) if row != column]
    if not apart:
        return ""
    return (
        f"Matrix of {len(facts.shared)} tasks: the part of one's weights that another uses too, from "
        f"{percent(min(apart))} to {percent(max(apart))} between different tasks."
    )


def _bytes_alt(facts: Facts) -> str:
    own, apart = sum(task.bytes for task in facts.tasks), sum(task.network_bytes for task in facts.tasks)
    return f"Bytes per task: {human_bytes(own)} together in the store, {human_bytes(apart)} as networks of their own."


def _curves_alt(tasks: Sequence[TaskFacts]) -> str:
    return f"Training and validation accuracy by epoch, a small panel for each of {len(tasks)} tasks."


def _pruning_alt(tasks: Sequence[TaskFacts]) -> str:
    told: list[str] = []
    for task in tasks:
        assert task.prune is not None
        accuracies = (task.prune.before, task.prune.pruned, task.prune.retrained)
        told.append(f"{task.task} {', '.join(percent(top1) for top1 in accuracies if top1 is not None)}")
    more = f"; and {len(told) - ALT_NAMES} more" if len(told) > ALT_NAMES else ""
    return f"Validation accuracy before pruning, right after, after retraining: {'; '.join(told[:ALT_NAMES])}{more}."


def _scan_alt(tasks: Sequence[TaskFacts]) -> str:
    return (
        f"Validation accuracy by the units that each threshold leaves active, a small panel for each of {len(tasks)} "
        "tasks. The list below has the thresholds that were kept."
    )


def _shares_alt(tasks: Sequence[TaskFacts]) -> str:
    return (
        f"Validation accuracy by the share given back that was tried, a small panel for each of {len(tasks)} tasks. "
        "The list below has the numbers."
    )


# ---------------------------------------------------------------- parts


def _bytes_tick(value: float, _place: int | None) -> str:
    return human_bytes(value)


def _free_shares(facts: Facts) -> list[float]:
    """The free part of each layer: of its units in a store of units, else of its weights."""
    if facts.units:
        return [use.free / use.units for use in facts.units]
    return [layer.free / layer.weights for layer in facts.layers]


def _layer_names(facts: Facts) -> list[str]:
    return [f"{short(layer.name.removesuffix('.weight'), 40)} ({layer.weights:,})" for layer in facts.layers]


def _owner_names(facts: Facts) -> list[str]:
    """A task's name, with its version where it owns by several."""
    names = [owner.task for owner in facts.owners]
    return [
        short(owner.task) + (f" {owner.version[7:13]}" if names.count(owner.task) > 1 else "") for owner in facts.owners
    ]


def _epochs(task: TaskFacts) -> list[int]:
    """Each row's place on one axis over all phases; a phase's epoch 0 stands where the last one ended."""
    done, places = 0, list[int]()
    for index, row in enumerate(task.rows):
        if index and row.phase != task.rows[index - 1].phase:
            done = places[-1]
        places.append(done + row.epoch)
    return places


def _shown(val: float | None, test: float | None) -> float:
    return test if test is not None else (val or 0.0)
