"""Figures of learning rates: the scan at each size, and the rates that the runs of a fit used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from analysis.plots.style import (
    BAND,
    LIGHT,
    SMALL,
    Theme,
    add_note,
    canvas,
    colours_by_log,
    format_count,
    format_plain,
    set_log_ticks,
    set_plain_ticks,
)

if TYPE_CHECKING:
    from analysis.fitting.learning_rate_law import RateLaw

LEVEL = 0.9


def rate_scans(law: RateLaw, theme: Theme = LIGHT) -> Figure:
    """Loss above the best of the scan against learning rate, a curve for each size, with the optima and the rates of
    the law. A size at which every rate diverged has no curve."""
    scans = [scan for scan in law.scans if np.isfinite(scan.losses).any()]
    with canvas("Learning rates tried at each size", theme) as (figure, (axes,)):
        sizes = np.array([scan.params for scan in scans])
        for scan, colour in zip(scans, colours_by_log(theme, sizes, sizes), strict=True):
            above = np.array(scan.losses) - np.nanmin([scan.loss, *scan.losses])
            axes.plot(scan.rates, above, "o-", color=colour, markersize=3.5, linewidth=1.2)
            last = int(np.flatnonzero(np.isfinite(above))[-1])
            name, end = format_count(scan.params), (scan.rates[last], above[last])
            style = {"textcoords": "offset points", "annotation_clip": False}
            axes.annotate(name, end, (1, 4), color=colour, va="bottom", ha="center", fontsize=SMALL, **style)
            if not scan.at_bound:
                low, high = rate_interval(law, scan.params)
                axes.plot([low, high], [0, 0], color=colour, alpha=0.5, linewidth=4, solid_capstyle="butt", zorder=1)
                axes.plot(scan.best, 0.0, "v", color=colour, markersize=7, clip_on=False, zorder=3)
                axes.plot(law(scan.params), 0.0, "|", color=theme.accent, markersize=13, clip_on=False, zorder=4)
        axes.set(xscale="log", xlabel="peak learning rate (per step)", ylabel="loss above the best (nats per token)")
        top = axes.get_ylim()[1]
        axes.set_ylim(-0.05 * top, 1.06 * top)
        set_log_ticks(axes.xaxis, lambda value: f"{value:g}")
        add_note(
            figure,
            "a curve: one size, by its parameters; triangle: its best rate; bar: the law's\n"
            + ("" if np.isnan(law.stderr) else f"line at the foot: {LEVEL:.0%} interval of the law there"),
        )
    return figure


def rates_of_runs(runs: pd.DataFrame, law: RateLaw | None, theme: Theme = LIGHT) -> Figure:
    """Learning rate of each run against its size; with scans, also their optima and the law through them, with its
    interval.

    runs: columns params and learning_rate.
    """
    with canvas("Learning rates that the runs used", theme) as (figure, (axes,)):
        axes.set(xscale="log", yscale="log", xlabel="model size (parameters)", ylabel="peak learning rate (per step)")
        caption = "dots: the runs"
        if law is not None:
            sizes = np.array([*runs["params"], *(scan.params for scan in law.scans)])
            x = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, 60)
            axes.plot(x, law(x), color=theme.accent, linewidth=1.4, label="law")
            caption += f"; triangles: the best of scans; line: the law through them, N^{law.exponent:.2f}"
            if not np.isnan(law.stderr):
                low, high = rate_interval(law, x)
                axes.fill_between(x, low, high, color=theme.accent, alpha=BAND, linewidth=0, label="interval")
                caption += f"\nshaded: its {LEVEL:.0%} interval"
            inner_scans = [scan for scan in law.scans if not scan.at_bound]
            style = {"s": 44, "color": theme.shade(0.45), "zorder": 3}
            axes.scatter([s.params for s in inner_scans], [s.best for s in inner_scans], marker="v", **style)
        axes.scatter(runs["params"], runs["learning_rate"], s=16, color=theme.ink, linewidths=0, zorder=4)
        if runs["learning_rate"].max() < 3 * runs["learning_rate"].min():
            low, high = axes.get_ylim()
            axes.set_ylim(low / 2, high * 2)
        set_plain_ticks(axes, format_count, format_plain)
        add_note(figure, caption)
    return figure


def rate_interval(law: RateLaw, params: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the law's rate at a size: that of a straight line in logarithms, by Student's t."""
    logs = np.log([scan.params for scan in law.scans if not scan.at_bound])
    free = len(logs) - 2
    if free < 1 or np.isnan(law.stderr):
        return law(params), law(params)
    residual = law.stderr * float(np.sqrt(np.sum((logs - logs.mean()) ** 2)))
    distance = np.log(np.asarray(params, float)) - np.log(law.at)
    error = np.sqrt(residual**2 / len(logs) + (law.stderr * distance) ** 2) * stats.t.ppf((1 + LEVEL) / 2, free)
    return law(params) * np.exp(-error), law(params) * np.exp(error)
