"""Figures of the loss curves of a sweep, and of their collapse onto one curve."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.style import (
    LIGHT,
    Theme,
    add_note,
    canvas,
    colours_by_log,
    format_count,
    label_curve_ends,
    set_log_ticks,
    set_plain_ticks,
)
from analysis.tables.curve_collapse import ALARM_SIGMAS, RUN_SHARES, Collapse

NAMED = 10
SPREAD = 0.9
Line = tuple[int, dict[str, Any]]


def curves(comparison: Collapse, theme: Theme = LIGHT, *, off: Collection[str] | None = None) -> Figure:
    """Smoothed training loss against tokens. Colour stands for size; runs off the collapse are in the accent colour.

    off: run_ids of the runs off the collapse; by default those that the comparison itself reports.
    """
    with canvas("Loss curves", theme) as (figure, (axes,)):
        for cell, style in _lines(comparison, theme, _off_collapse(comparison, off)):
            axes.plot(RUN_SHARES * comparison.cells["tokens"][cell], comparison.smoothed[cell], **style)
        axes.set(xscale="log", yscale="log", xlabel="training data (tokens)", ylabel="training loss (nats per token)")
        set_plain_ticks(axes)
        _sizes(axes, comparison, theme)
        add_note(
            figure,
            "a curve: one run, smoothed over a tenth of it; colour: model size\naccent: off the collapse, if any",
        )
    return figure


def normalised_curves(comparison: Collapse, theme: Theme = LIGHT, *, off: Collection[str] | None = None) -> Figure:
    """Normalised loss, without its trend over runs, against progress of the run; the middle of the runs is shaded.

    Runs off the collapse are in the accent colour and named at the ends of their curves; where there are more than ten,
    only the ten that end furthest off.

    off: as for `curves`.
    """
    cells, is_off = comparison.cells, _off_collapse(comparison, off)
    with canvas("The same, normalised", theme) as (figure, (axes,)):
        low, high = np.quantile(comparison.normalised, [(1 - SPREAD) / 2, (1 + SPREAD) / 2], axis=0)
        axes.fill_between(RUN_SHARES, low, high, color=theme.faint, alpha=0.35, linewidth=0, label="interval", zorder=1)
        for cell, style in _lines(comparison, theme, is_off):
            axes.plot(RUN_SHARES, comparison.normalised[cell], **style)
        label = f"(loss - {comparison.floor:.3g}) over expected end (ratio)"
        axes.set(xlabel="progress of the run (share of its tokens)", ylabel=label, yscale="log")
        axes.set_xlim(RUN_SHARES[0], RUN_SHARES[-1])
        set_log_ticks(axes.yaxis, lambda value: f"{value:g}")
        worst = np.flatnonzero(is_off)[np.argsort(-np.abs(cells["away"][is_off]), kind="stable")][:NAMED]
        ends = [(comparison.normalised[at, -1], _name(cells.iloc[at]), theme.accent) for at in worst]
        if ends:
            label_curve_ends(axes, ends, "run: size, tokens", theme)
        caption = f"shaded: the middle {SPREAD:.0%} of {len(cells)} runs; colour: model size"
        caption += (
            f"\naccent: off by more than {ALARM_SIGMAS:g} sigmas"
            if is_off.any()
            else f"\nno run is off by {ALARM_SIGMAS:g} sigmas"
        )
        add_note(figure, caption)
    return figure


def _off_collapse(comparison: Collapse, off: Collection[str] | None) -> np.ndarray:
    return comparison.cells["run_id"].isin(list(comparison.explain_outliers() if off is None else off)).to_numpy()


def _lines(comparison: Collapse, theme: Theme, is_off: np.ndarray) -> Iterator[Line]:
    """The index of each run with the style of its curve; runs off the collapse come last, so that they lie on top."""
    params = comparison.cells["params"].to_numpy()
    colours = colours_by_log(theme, params, params)
    for cell in np.argsort(is_off, kind="stable"):
        style: dict[str, Any] = (
            {"color": theme.accent, "linewidth": 2.0} if is_off[cell] else {"color": colours[cell], "linewidth": 1.0}
        )
        yield int(cell), style | {"alpha": 1.0 if is_off[cell] else 0.8, "label": comparison.cells["run_id"][cell]}


def _sizes(axes: Axes, comparison: Collapse, theme: Theme) -> None:
    """Labels the smallest and the largest size, and some between them, at the end of their longest curve."""
    longest = comparison.cells.sort_values("tokens").groupby("params").tail(1).sort_values("params")
    some = longest.iloc[np.unique(np.linspace(0, len(longest) - 1, min(len(longest), 6)).astype(int))]
    colours = colours_by_log(theme, some["params"].to_numpy(), comparison.cells["params"].to_numpy())
    ends = [
        (comparison.smoothed[at, -1], format_count(size), colour)
        for at, size, colour in zip(some.index, some["params"], colours, strict=True)
    ]
    label_curve_ends(axes, ends, "parameters", theme)


def _name(cell: pd.Series) -> str:
    return f"{cell['run_id'][:6]}: {format_count(cell['params'])}, {format_count(cell['tokens'])}"
