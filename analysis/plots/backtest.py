"""Figures of a back-test: forecasts of the largest runs from the rest, beside the measured losses."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.forecasting.backtest import CHOSEN
from analysis.plots.style import (
    LIGHT,
    SMALL,
    Theme,
    add_note,
    canvas,
    colours_by_log,
    draw_held_out,
    format_plain,
    set_log_ticks,
)

LEVEL = 0.9
SPREAD = 0.04  # in log10 of the factor, between the bars of laws at one factor


def forecast_errors(forecasts: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Error of each forecast of the chosen law, with its 90 % interval, against the compute of the run over the largest
    fitted compute.

    forecasts: the table of `analysis.forecasting.backtest`. A run above several cuts is shown for each.
    """
    rows = forecasts[forecasts["law"] == CHOSEN].sort_values("flops")
    with canvas("Back-test: forecasts of runs held out", theme) as (figure, (axes,)):
        beyond = (rows["flops"] / rows["limit"]).to_numpy()
        low, high, error = (
            100 * (rows["measured" if name is None else name] / rows["predicted"] - 1).to_numpy()
            for name in (f"low_{100 * LEVEL:.0f}", f"high_{100 * LEVEL:.0f}", None)
        )
        axes.axhline(0, color=theme.ink, linewidth=0.9)
        axes.vlines(beyond, low, high, color=theme.accent, alpha=0.35, linewidth=1.4, label="interval", zorder=2)
        draw_held_out(axes, beyond, error, theme)
        axes.set(
            xscale="log",
            ylabel="measured over predicted (%)",
            xlabel="compute of the run over the largest fitted (ratio)",
        )
        set_log_ticks(axes.xaxis, lambda value: f"{value:g}x")
        inside = float(np.mean((low <= error) & (error <= high)))
        cuts = ", ".join(f"{factor:g}" for factor in sorted(rows["factor"].unique()))
        caption = f"each diamond: a run held out above Cmax over {cuts}; bar: {LEVEL:.0%} interval"
        add_note(
            figure,
            f"{caption}\n{inside:.0%} of {len(rows)} lie inside; the law is chosen from the runs below the cut alone",
        )
    return figure


def errors_by_law(forecasts: pd.DataFrame, theme: Theme = LIGHT) -> Figure:
    """Mean error of each law's forecasts at each factor between the largest run and the largest fitted run. Bars span
    the middle 90 % of the errors. forecasts: as for `forecast_errors`."""
    with canvas("Back-test: the chosen law beside others", theme) as (figure, (axes,)):
        names = sorted(forecasts["law"].unique(), key=lambda name: name == CHOSEN)
        others = colours_by_log(theme, np.arange(1.0, len(names)), np.arange(1.0, max(len(names), 3)))
        ends = []
        for index, (name, colour) in enumerate(zip(names, [*others, theme.accent], strict=True)):
            rows = forecasts[forecasts["law"] == name]
            size = 100 * np.abs(rows["predicted"] / rows["measured"] - 1)
            parts = size.groupby(rows["factor"])
            mean, low, high = parts.mean(), parts.quantile((1 - LEVEL) / 2), parts.quantile((1 + LEVEL) / 2)
            x = mean.index.to_numpy() * 10 ** (SPREAD * (index - (len(names) - 1) / 2))
            bars = {"elinewidth": 1.2, "capsize": 2.5, "fmt": "none", "ecolor": colour, "label": "interval"}
            axes.errorbar(x, mean, yerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)], **bars)
            style = {"marker": "o" if name == CHOSEN else "s^v"[index % 3], "markersize": 5}
            axes.plot(x, mean, color=colour, linewidth=2.0 if name == CHOSEN else 1.2, label=name, **style)
            ends.append((x[-1], float(mean.iloc[-1]), name.removesuffix(" huber"), colour))
        axes.set(xscale="log", ylabel="size of the error (%)", xlabel="largest run over the largest fitted (ratio)")
        axes.set_ylim(bottom=0)
        _label_ends(axes, ends)
        axes.xaxis.set_major_locator(FixedLocator(sorted(forecasts["factor"].unique())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{format_plain(value)}x"))
        add_note(figure, f"mean over the runs held out; bar: middle {LEVEL:.0%} of them; less is better")
    return figure


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes labels at the right ends of the curves; those that would overlap are moved up."""
    top, gap = axes.get_ylim()[1], 0.06
    height = -np.inf
    for _, y, text, colour in sorted(ends, key=lambda end: end[1]):
        height = max(y / top, height + gap)
        axes.text(1.015, height, text, transform=axes.transAxes, color=colour, fontsize=SMALL, va="center")
