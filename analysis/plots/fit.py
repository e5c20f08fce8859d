"""Figures of one saved fit. The style is in analysis/plots/style.py, the figures of the optimum in
analysis/plots/surface.py.

Not in the design's list of modules: with the style, which every figure shares, they were two concepts in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import errors
from analysis.fitting import bootstrap
from analysis.forecasting.saved_fit import SavedFit
from analysis.plots import surface
from analysis.plots.style import (
    BAND,
    FINE,
    LIGHT,
    SMALL,
    Theme,
    canvas,
    compact,
    end_labels,
    held_out,
    levels,
    log_ticks,
    note,
    plain_ticks,
    scientific,
    shaded,
)
from analysis.plots.surface import band, params_label
from analysis.tables import results

PANEL: Mapping[str, tuple[str, str]] = {
    "alpha": ("alpha", "exponent of N (no unit)"),
    "beta": ("beta", "exponent of D (no unit)"),
    "exponent_a": ("a of N* ~ C^a", "exponent of C (no unit)"),
    "E": ("E, the floor", "loss (nats per token)"),
    "forecast": ("forecast at 10x", "loss (nats per token)"),
}


def loss_by_tokens(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Loss against training tokens: measured points, one fitted curve a size, held-out runs with their forecast."""
    return _curves(fit, theme, along="tokens", by="params", title="Loss against tokens, one curve a model size")


def loss_by_params(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Loss against parameters: measured points, one fitted curve a horizon, held-out runs with their forecast."""
    return _curves(fit, theme, along="params", by="tokens", title="Loss against size, one curve a horizon")


def residuals(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Measured over predicted less one, in percent, against training FLOPs: no trend should be left. Held-out runs
    stand on the interval that was forecast for them."""
    with canvas("What the law leaves unexplained", theme) as (figure, (axes,)):
        percent = 100 * np.expm1(fit.residuals)
        axes.axhline(0, color=theme.ink, linewidth=0.9)
        low, high = bootstrap.central_interval(percent, fit.document["level"])
        axes.axhspan(float(low), float(high), color=theme.faint, alpha=0.22, linewidth=0, label="interval")
        sizes = fit.points["params"].to_numpy()
        shades = shaded(theme, sizes, sizes)
        axes.scatter(fit.points["flops"], percent, c=shades, s=28, edgecolors=theme.paper, linewidths=0.6, zorder=3)
        axes.set(xscale="log", xlabel="training compute (FLOPs)", ylabel="measured over predicted (%)")
        if len(fit.held_out):
            rows = fit.forecast(fit.held_out)
            predicted, low, high = (np.array([row[key] for row in rows]) for key in ("predicted", "low", "high"))
            held, flops = fit.held_out["loss"].to_numpy(), fit.held_out["flops"]
            ends = [100 * (each / predicted - 1) for each in (predicted, low, high)]
            _bars(axes, flops.to_numpy(), ends[0], ends[1], ends[2], theme)
            held_out(axes, flops, 100 * (held / predicted - 1), theme)
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, -top) - 0.4 * top, max(top, -bottom))
        log_ticks(axes.xaxis, scientific)
        level = f"{fit.document['level']:.0%}"
        said = f"shaded: central {level} of the fitted points; colour: model size"
        note(figure, said + ("; diamond: held out,\non the interval of its forecast" if len(fit.held_out) else ""))
    return figure


def sensitivity(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """How exponents, floor and forecast move when the runs are fitted otherwise: one row a variant, one panel a number.

    Shaded: the interval of the fit as it stands. A dot outside it is a convention that matters more than the noise.
    """
    rows = fit.document["sensitivity"]
    names = [name for name in PANEL if any(row[name] is not None for row in rows)]
    size = {"width": 1.6 * len(names) + 2.3, "height": 0.25 * len(rows) + 1.5}
    with canvas("The same runs, fitted otherwise", theme, panels=len(names), **size) as (figure, every):
        places = -np.arange(len(rows))
        for axes, name in zip(every, names, strict=True):
            title, label = PANEL[name]
            span = _spread(fit, name)
            if span is not None:
                axes.axvspan(*span, color=theme.accent, alpha=BAND, linewidth=0, label="interval")
            values = [np.nan if row[name] is None else row[name] for row in rows]
            axes.axvline(values[0], color=theme.accent, linewidth=1)
            axes.scatter(values, places, s=24, color=[theme.accent, *[theme.ink] * (len(rows) - 1)], zorder=3)
            axes.set_title(title, fontsize=9, fontweight="bold")
            axes.set_xlabel(label, fontsize=SMALL)
            axes.set_yticks(places, [f"{row['dial']}: {row['setting']}" if axes is every[0] else "" for row in rows])
            axes.set_ylim(places[-1] - 0.6, 0.6)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(axis="y", length=0)
    return figure


def _spread(fit: SavedFit, name: str) -> tuple[float, float] | None:
    """The interval of one number of the panel; of its forecast, that of the forecast for one run."""
    if name in fit.document["intervals"]:
        low, high = fit.document["intervals"][name]
        return low, high
    if name != "forecast":
        return None
    params, tokens, flops = surface.optimal(fit, surface.AHEAD * float(fit.points["flops"].max()))
    place = {"params": np.array([params]), "tokens": np.array([tokens])}
    level, seed = fit.document["level"], fit.document["seed"]
    low, high = fit.predictive.interval(fit.predict(place), place, flops, level, seed=seed)
    return float(low[0]), float(high[0])


FIGURES: Mapping[str, Callable[[SavedFit, Theme], Figure]] = {
    "loss_by_tokens": loss_by_tokens,
    "loss_by_params": loss_by_params,
    "surface": surface.surface,
    "isoflop": surface.isoflop,
    "frontier": surface.frontier,
    "residuals": residuals,
    "sensitivity": sensitivity,
}


def drawable(fit: SavedFit) -> list[str]:
    """The figures that a fit has the numbers for. Raises TableError for a law not of loss in params and tokens."""
    if fit.law.columns != results.SURFACE_COLUMNS or fit.law.response != "loss":
        raise errors.TableError(f"{fit.law.name}: figures are of laws of loss in params and tokens; this one is not")
    return [name for name in FIGURES if name != "sensitivity" or fit.document.get("sensitivity")]


def _curves(fit: SavedFit, theme: Theme, *, along: str, by: str, title: str) -> Figure:
    with canvas(title, theme) as (figure, (axes,)):
        points, held = fit.points, fit.held_out
        every = np.concatenate([points[by], held[by]]) if len(held) else points[by].to_numpy()
        reach = np.concatenate([points[along], held[along]]) if len(held) else points[along].to_numpy()
        x = np.geomspace(reach.min() / 1.15, reach.max() * 1.15, FINE)
        curves = levels(every)
        ends = []
        for level, colour in zip(curves, shaded(theme, curves, every), strict=True):
            loss = fit.predict({along: x, by: np.full_like(x, level)})
            axes.plot(x, loss, color=colour, linewidth=1.5, label=f"{level:.6g}")
            band(axes, fit, {along: x, by: np.full_like(x, level)}, x, colour)
            ends.append((float(loss[-1]), compact(level), colour))
        shades = shaded(theme, points[by].to_numpy(), every)
        axes.scatter(points[along], points["loss"], c=shades, s=24, edgecolors=theme.paper, linewidths=0.6, zorder=3)
        names = {"tokens": "training data (tokens)", "params": params_label(fit)}
        axes.set(xscale="log", yscale="log", xlabel=names[along], ylabel="loss (nats per token)")
        axes.set_xlim(x[0], x[-1])
        level = f"{fit.document['level']:.0%}"
        said = f"shaded: {level} interval for one more run"
        if len(held):
            rows = fit.forecast(held)
            at, predicted, low, high = (np.array([row[k] for row in rows]) for k in (along, "predicted", "low", "high"))
            _bars(axes, at, predicted, low, high, theme)
            held_out(axes, at, held["loss"], theme)
            said += f"\ndiamond: held out, not seen by the fit; bar: {level} interval of its forecast"
        plain_ticks(axes)
        note(figure, said)
        end_labels(axes, ends, {"params": "parameters", "tokens": "tokens"}[by], theme)
    return figure


def _bars(axes: Axes, x: np.ndarray, predicted: np.ndarray, low: np.ndarray, high: np.ndarray, theme: Theme) -> None:
    style = {"fmt": "none", "ecolor": theme.accent, "elinewidth": 1.5, "capsize": 3.5, "zorder": 4}
    axes.errorbar(x, predicted, yerr=[predicted - low, high - predicted], label="interval", **style)
