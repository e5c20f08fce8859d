"""The style of every figure of the project. It does not use pyplot, so there is no global state and no display.

The rules, which tests/support/figure_style.py checks on every figure:

- Every axis with numbers has a label with the unit in brackets at the end: "loss (nats per token)".
- Ticks of log axes are plain numbers (20k, 1.5, or a power of ten with a superscript).
- Curves are labelled at their ends and points beside them; there are no legends.
- Colour stands for size (or horizon, or budget) on one perceptually uniform scale that is safe for colour-blind
  readers; on white, dark is small. One accent colour marks what a reader should look at. No fact is
  shown by colour alone.
- Intervals are drawn at the level of the fit: bands around fitted curves, bars on points.
- Held-out points, and only they, are hollow diamonds in the accent colour.
- No text is smaller than 8 points on a canvas 4.8 inches wide, so that it is legible on a phone, and none is cut off.

A figure is a pure function (data, theme) -> Figure. Every colour comes from the theme: the report draws a figure once
with a theme of placeholders, and its style sheet gives each placeholder a colour for light and for dark mode
(analysis/report/html.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from analysis import files

WIDTH, HEIGHT = 4.8, 3.9  # inches: a phone shows it at its own size, a page of two columns half as large again
SMALL, NORMAL = 8.0, 9.0  # points
MOST_CURVES = 8
FINE = 200
BAND = 0.16  # opacity


@dataclass(frozen=True)
class Theme:
    """Colours of text (ink), of lines (faint), of the background (paper) and of the accent; `stretch` is the part of
    the colour map that is legible on the background, as two numbers from 0 to 1."""

    ink: str
    faint: str
    paper: str
    accent: str
    stretch: tuple[float, float]
    colours: str | Colormap = "viridis"

    @property
    def settings(self) -> dict[str, Any]:
        ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), self.ink)
        lines = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), self.faint)
        paper = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.paper)
        spines = {"axes.spines.top": False, "axes.spines.right": False}
        text = {"font.family": "DejaVu Sans", "font.size": NORMAL, "axes.titlesize": 10, "axes.titlelocation": "left"}
        text |= {"xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.titlepad": 8.0}
        grid = {"axes.grid": True, "grid.linewidth": 0.5, "grid.alpha": 0.5, "axes.axisbelow": True}
        return {**ink, **lines, **paper, **spines, **text, **grid, "svg.hashsalt": "figure"}

    def shade(self, position: float) -> str:
        """The colour at a position of the scale, from 0 to 1, as a hex string."""
        return to_hex(
            mpl.colormaps.get_cmap(self.colours)(self.stretch[0] + (self.stretch[1] - self.stretch[0]) * position)
        )


LIGHT = Theme(ink="#1c1d21", faint="#b4b7bf", paper="#ffffff", accent="#c2410c", stretch=(0.05, 0.82))
DARK = Theme(ink="#e7e8ec", faint="#565b66", paper="#16181d", accent="#fb923c", stretch=(0.4, 0.97))


@contextmanager
def canvas(
    title: str, theme: Theme, *, panels: int = 1, width: float = WIDTH, height: float = HEIGHT
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yields a figure of this style with its axes; `panels` axes stand side by side. The style holds inside the block.

    title: of the first panel, or above all of them where there are several. width, height: inches.
    """
    with mpl.rc_context(theme.settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(np.atleast_1d(figure.subplots(1, panels, sharey=False)))
        if panels == 1:
            axes[0].set_title(title)
        else:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        yield figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure by rename, in the format of the path's suffix. Equal figures give equal bytes."""
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else None
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        return files.write_by_rename(path, lambda to: figure.savefig(to, format=kind, dpi=200, metadata=metadata))


def format_count(count: float) -> str:
    """33000 -> 33k; 1.2e9 -> 1.2B: two or three significant digits."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{float(f'{count / size:.3g}'):g}{unit}"
    return f"{count:.3g}"


def format_scientific(value: float) -> str:
    """1.2e15 -> 1.2×10¹⁵."""
    power = math.floor(math.log10(value) + 1e-9)
    digits = f"{value / 10**power:.2g}"
    superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{superscript}" if digits == "1" else f"{digits}×10{superscript}"


def format_plain(value: float) -> str:
    """1.25 -> 1.25, 0.0031 -> 0.0031: three significant digits."""
    return f"{value:.3g}"


def colours_by_log(theme: Theme, values: Any, every: Any) -> list[str]:
    """A colour for each value by its logarithm; the scale spans the range of `every`."""
    low, high = np.log(np.min(every)), np.log(np.max(every))
    positions = (np.log(values) - low) / (high - low) if high > low else np.full(len(values), 0.5)
    return [theme.shade(float(position)) for position in positions]


def set_plain_ticks(
    axes: Axes, x: Callable[[float], str] = format_count, y: Callable[[float], str] = format_plain
) -> None:
    """Sets plain-number ticks on both logarithmic axes. Call it after the limits are set."""
    set_log_ticks(axes.xaxis, x)
    set_log_ticks(axes.yaxis, y)


def set_log_ticks(axis: Axis, show: Callable[[float], str] = format_count, most: int = 7) -> None:
    """Sets at most `most` ticks on a logarithmic axis whose limits are set.

    They are powers of ten, with 2 and 5 or 3 between them where they fit, or round numbers in equal steps where the
    axis spans less than a power of ten.
    """
    low, high = sorted(axis.get_view_interval())
    for digits in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [d * 10.0**p for p in powers for d in digits if low * 0.999 <= d * 10.0**p <= high * 1.001]
        if len(ticks) <= most:
            break
    every = max(1, math.ceil(len(ticks) / most))
    ticks = ticks[::every]
    if len(ticks) < 4 and (high < 10 * low or len(ticks) < 2):
        even = MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = [float(tick) for tick in even if low <= tick <= high and tick > 0]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def label_curve_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], heading: str, theme: Theme) -> None:
    """Writes labels to the right of axes with a logarithmic y axis, at the ends of curves.

    ends: (y, text, colour) of each label. Labels that would overlap are moved apart. heading: a title above them.
    """
    gap = 0.056
    bottom, top = np.log(axes.get_ylim())
    labels = sorted(((np.log(y) - bottom) / (top - bottom), text, colour) for y, text, colour in ends)
    heights = np.array([height for height, _, _ in labels])
    for _ in range(200):  # neighbours closer than the gap push each other apart until none is
        push = np.maximum(gap - np.diff(heights), 0) / 2
        heights[:-1] -= push
        heights[1:] += push
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        axes.text(1.012, height, text, transform=axes.transAxes, color=colour, va="center", fontsize=SMALL)
    if heading:
        style = {"transform": axes.transAxes, "va": "center", "fontsize": SMALL}
        axes.text(1.012, heights[-1] + 1.1 * gap, heading, color=theme.ink, alpha=0.75, **style)


def draw_held_out(axes: Axes, x: Any, y: Any, theme: Theme) -> None:
    """Draws the points that a fit did not see: hollow diamonds in the accent colour."""
    style = {"facecolors": theme.paper, "edgecolors": theme.accent, "linewidths": 1.6, "zorder": 6}
    axes.scatter(x, y, s=40, marker="D", label="held out", **style)


def add_note(figure: Figure, text: str) -> None:
    """Writes what the marks mean in one or two lines below the axes."""
    figure.supxlabel(text, x=0.012, ha="left", fontsize=SMALL, linespacing=1.35)


def curve_levels(values: np.ndarray) -> np.ndarray:
    """The distinct values, or MOST_CURVES - 1 values over their range where there are too many to draw a curve each."""
    distinct = np.unique(values)
    if len(distinct) <= MOST_CURVES:
        return distinct
    return np.geomspace(distinct[0], distinct[-1], MOST_CURVES - 1)
