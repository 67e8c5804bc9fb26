"""Line figures of the experiments: panels side by side, one legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STYLES = (
    ("#0072B2", "o"),
    ("#009E73", "s"),
    ("#E69F00", "^"),
    ("#CC79A7", "D"),
    ("#D55E00", "v"),
    ("#000000", "x"),
    ("#56B4E9", "P"),
    ("#7F7F7F", "*"),
)
"""Colours of Okabe and Ito, which colour-blind people tell apart, and a grey, each with a marker of its own."""


@dataclass(frozen=True)
class Panel:
    """One of a figure's panels.

    Attributes:
        title: over it.
        x, y: what its axes show; `y` empty: what the panel to its left does, on the same scale.
        lines: name -> points. A name has the same colour and marker in all panels; a line without points is left out.
        ticks: on the x axis, the only ones there; None: as it comes.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    ticks: tuple[float, ...] | None = None


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write panels side by side as PNG, under one legend; needs matplotlib.

    Raises:
        ValueError: there are more names than `STYLES`.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names = dict.fromkeys(name for panel in panels for name, points in panel.lines.items() if points)
    if len(names) > len(STYLES):
        raise ValueError(f"{len(names)} lines, but {len(STYLES)} styles: two would look alike")
    styles = dict(zip(names, STYLES, strict=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.6), layout="constrained", squeeze=False)
    shown = {}
    for number, (panel, axis) in enumerate(zip(panels, axes[0], strict=True)):
        for name, points in panel.lines.items():
            if points:
                colour, marker = styles[name]
                xs, ys = zip(*points, strict=True)
                (shown[name],) = axis.plot(xs, ys, color=colour, marker=marker, markersize=5)
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        if panel.ticks is not None:
            axis.set_xticks(panel.ticks)
        if not panel.y:
            axis.sharey(axes[0][number - 1])
        axis.grid(alpha=0.3)
    columns = min(4, len(names))
    figure.legend([shown[n] for n in names], list(names), loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
