"""What the figures of a report are drawn with: themes, looks, rows, legends, and the way to a PNG.

The colours are those of matplotlib's colour-blind-safe style `tableau-colorblind10` without its greys, which stand for
what is nobody's. matplotlib is imported only here and in `figures`, and never its global state (pyplot).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator, PercentFormatter

WIDTH, DPI = 9.0, 120
ROW = 0.24  # inches that a line of text takes
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++", "|||")
LONGEST_LABEL = 28
ABREAST = 4


@dataclass(frozen=True)
class Theme:
    """The colours that a page gives a figure: ink on paper, a grey for what is nobody's, lines, and the cycle."""

    name: str
    paper: str
    ink: str
    quiet: str
    line: str
    cycle: tuple[str, ...]


_BLUE, _ORANGE, _SKY, _RUST, _PALE, _SAND = "#006BA4", "#FF800E", "#5F9ED1", "#C85200", "#A2C8EC", "#FFBC79"
COLOURS = 6
THEMES = (
    Theme("light", "#ffffff", "#1b1b1b", "#9a9a9a", "#d9d9d9", (_BLUE, _ORANGE, _SKY, _RUST, _PALE, _SAND)),
    Theme("dark", "#17191c", "#e8e8e8", "#777b80", "#3a3d42", (_SKY, _ORANGE, _PALE, _RUST, _BLUE, _SAND)),
)


def human_bytes(count: float) -> str:
    """Bytes in the largest unit that leaves a number of 1 or more."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def to_png(draw: Callable[[Theme], Figure], theme: Theme) -> bytes:
    """Draw a figure in a theme's colours, whatever matplotlib is set to elsewhere; a PNG file."""
    colours = {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "legend.facecolor": theme.paper,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.quiet,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "grid.color": theme.line,
        "axes.prop_cycle": cycler(color=theme.cycle),
    }
    plain = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "text.parse_math": False,  # a name with two dollar signs is a name
        "hatch.linewidth": 0.6,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    }
    with mpl.rc_context(), style.context(["default", colours | plain]):
        file = io.BytesIO()
        draw(theme).savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return file.getvalue()


def row_figure(count: int, *, legend: bool = False, extra: float = 0.0) -> tuple[Figure, Axes]:
    """A figure whose rows are one line of text high, however many there are."""
    height = 0.9 + ROW * max(count, 2) + (0.4 if legend else 0.0) + extra
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(False, axis="y")
    return figure, axes


def panel_figure(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Small multiples with one axis of percents: a panel for each title, at most `ABREAST` in a row."""
    abreast = min(ABREAST, len(titles))
    down = math.ceil(len(titles) / abreast)
    figure = Figure(figsize=(WIDTH if abreast > 2 else 4.2 * abreast, 2.1 * down + 0.7), layout="constrained")
    panels: list[Axes] = list(figure.subplots(down, abreast, sharey=True, squeeze=False).flat)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(short(title, 22), fontsize=10)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(labelsize=8)
    return figure, panels[: len(titles)]


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=9)


def legend_above(figure: Figure, abreast: int = 4) -> None:
    """What the first axes name, so many abreast, above the figure."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    shape = {"handlelength": 2.6, "handleheight": 1.1}  # so large that hatches can be told apart
    figure.legend(handles, labels, loc="outside upper left", ncols=min(abreast, len(labels)), fontsize=9, **shape)


def looks(count: int) -> list[dict[str, Any]]:
    """A look per owner: the colours, again with each hatch; past all of these, 48, a scale from old to new."""
    if count <= COLOURS * len(HATCHES):
        return [{"color": f"C{n % COLOURS}", "hatch": HATCHES[n // COLOURS]} for n in range(count)]
    scale = mpl.colormaps["cividis"]
    return [{"color": scale(n / (count - 1))} for n in range(count)]


def short(name: str, longest: int = LONGEST_LABEL) -> str:
    """The name, or its beginning and its end: long names most often differ at the end."""
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - end - 1]}…{name[-end:]}"
