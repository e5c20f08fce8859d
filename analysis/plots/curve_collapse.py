"""Figures of loss curves and of their collapse, pure functions of the comparison. Beside `fit_plot`, whose figures are
of a fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.style import LIGHT, Theme, canvas, compact, end_labels, log_ticks, note, plain_ticks, shaded
from analysis.tables.curve_collapse import ALARM_SIGMAS, RUN_SHARES, Collapse

NAMED = 10
SPREAD = 0.9
Line = tuple[int, dict[str, Any]]


def curves(found: Collapse, theme: Theme = LIGHT, *, off: Collection[str] | None = None) -> Figure:
    """Smoothed training loss against tokens. Colour runs with size; cells off the collapse are in the accent.

    off: run_ids of the cells off the collapse; those of the comparison's own alarms unless given.
    """
    with canvas("Loss curves", theme) as (figure, (axes,)):
        for cell, style in _lines(found, theme, _away(found, off)):
            axes.plot(RUN_SHARES * found.cells["tokens"][cell], found.smoothed[cell], **style)
        axes.set(xscale="log", yscale="log", xlabel="training data (tokens)", ylabel="training loss (nats per token)")
        plain_ticks(axes)
        _sizes(axes, found, theme)
        note(
            figure,
            "a curve: one run, smoothed over a tenth of it; colour: model size\naccent: off the collapse, if any",
        )
    return figure


def collapse(found: Collapse, theme: Theme = LIGHT, *, off: Collection[str] | None = None) -> Figure:
    """The same normalised, trend out, against the share of the run, with the middle of the cells shaded.

    Cells off the collapse are drawn in the accent, and named beside their curve's end: the ten that end furthest from
    where they should, where they are more.

    off: as for `curves`.
    """
    cells, away = found.cells, _away(found, off)
    with canvas("The same, normalised", theme) as (figure, (axes,)):
        low, high = np.quantile(found.normalised, [(1 - SPREAD) / 2, (1 + SPREAD) / 2], axis=0)
        axes.fill_between(RUN_SHARES, low, high, color=theme.faint, alpha=0.35, linewidth=0, label="interval", zorder=1)
        for cell, style in _lines(found, theme, away):
            axes.plot(RUN_SHARES, found.normalised[cell], **style)
        label = f"(loss - {found.floor:.3g}) over expected end (ratio)"
        axes.set(xlabel="progress of the run (share of its tokens)", ylabel=label, yscale="log")
        axes.set_xlim(RUN_SHARES[0], RUN_SHARES[-1])
        log_ticks(axes.yaxis, lambda value: f"{value:g}")
        worst = np.flatnonzero(away)[np.argsort(-np.abs(cells["away"][away]), kind="stable")][:NAMED]
        ends = [(found.normalised[at, -1], _name(cells.iloc[at]), theme.accent) for at in worst]
        if ends:
            end_labels(axes, ends, "run: size, tokens", theme)
        said = f"shaded: the middle {SPREAD:.0%} of {len(cells)} runs; colour: model size"
        said += (
            f"\naccent: off by more than {ALARM_SIGMAS:g} sigmas"
            if away.any()
            else f"\nno run is off by {ALARM_SIGMAS:g} sigmas"
        )
        note(figure, said)
    return figure


def _away(found: Collapse, off: Collection[str] | None) -> np.ndarray:
    return found.cells["run_id"].isin(list(found.explain_outliers() if off is None else off)).to_numpy()


def _lines(found: Collapse, theme: Theme, away: np.ndarray) -> Iterator[Line]:
    """Each cell with the style of its curve, those off the collapse last."""
    params = found.cells["params"].to_numpy()
    colours = shaded(theme, params, params)
    for cell in np.argsort(away, kind="stable"):
        style: dict[str, Any] = (
            {"color": theme.accent, "linewidth": 2.0} if away[cell] else {"color": colours[cell], "linewidth": 1.0}
        )
        yield int(cell), style | {"alpha": 1.0 if away[cell] else 0.8, "label": found.cells["run_id"][cell]}


def _sizes(axes: Axes, found: Collapse, theme: Theme) -> None:
    """The smallest and largest size, and some between them, at the end of their longest curve."""
    longest = found.cells.sort_values("tokens").groupby("params").tail(1).sort_values("params")
    some = longest.iloc[np.unique(np.linspace(0, len(longest) - 1, min(len(longest), 6)).astype(int))]
    colours = shaded(theme, some["params"].to_numpy(), found.cells["params"].to_numpy())
    ends = [
        (found.smoothed[at, -1], compact(size), colour)
        for at, size, colour in zip(some.index, some["params"], colours, strict=True)
    ]
    end_labels(axes, ends, "parameters", theme)


def _name(cell: pd.Series) -> str:
    return f"{cell['run_id'][:6]}: {compact(cell['params'])}, {compact(cell['tokens'])}"
