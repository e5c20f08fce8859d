"""Figures of one saved fit; those of the loss surface and the compute optimum are in surface.py."""

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
    add_note,
    canvas,
    colours_by_log,
    curve_levels,
    draw_held_out,
    format_count,
    format_scientific,
    label_curve_ends,
    set_log_ticks,
    set_plain_ticks,
)
from analysis.plots.surface import draw_band, params_label
from analysis.tables import results

PANEL: Mapping[str, tuple[str, str]] = {
    "alpha": ("alpha", "exponent of N (no unit)"),
    "beta": ("beta", "exponent of D (no unit)"),
    "exponent_a": ("a of N* ~ C^a", "exponent of C (no unit)"),
    "E": ("E, the floor", "loss (nats per token)"),
    "forecast": ("forecast at 10x", "loss (nats per token)"),
}


def loss_by_tokens(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Loss against training tokens: measured points, a fitted curve for each size, held-out runs with forecasts."""
    return _curves(fit, theme, along="tokens", by="params", title="Loss against tokens, one curve a model size")


def loss_by_params(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Loss against parameters: measured points, a fitted curve for each horizon, held-out runs with forecasts."""
    return _curves(fit, theme, along="params", by="tokens", title="Loss against size, one curve a horizon")


def residuals(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Measured loss over predicted loss minus one, in percent, against training FLOPs; a good law leaves no trend.
    Held-out runs are drawn on the interval of their forecast."""
    with canvas("What the law leaves unexplained", theme) as (figure, (axes,)):
        percent = 100 * np.expm1(fit.residuals)
        axes.axhline(0, color=theme.ink, linewidth=0.9)
        low, high = bootstrap.central_interval(percent, fit.document["level"])
        axes.axhspan(float(low), float(high), color=theme.faint, alpha=0.22, linewidth=0, label="interval")
        sizes = fit.points["params"].to_numpy()
        shades = colours_by_log(theme, sizes, sizes)
        axes.scatter(fit.points["flops"], percent, c=shades, s=28, edgecolors=theme.paper, linewidths=0.6, zorder=3)
        axes.set(xscale="log", xlabel="training compute (FLOPs)", ylabel="measured over predicted (%)")
        if len(fit.held_out):
            rows = fit.forecast(fit.held_out)
            predicted, low, high = (np.array([row[key] for row in rows]) for key in ("predicted", "low", "high"))
            measured, flops = fit.held_out["loss"].to_numpy(), fit.held_out["flops"]
            ends = [100 * (each / predicted - 1) for each in (predicted, low, high)]
            _bars(axes, flops.to_numpy(), ends[0], ends[1], ends[2], theme)
            draw_held_out(axes, flops, 100 * (measured / predicted - 1), theme)
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, -top) - 0.4 * top, max(top, -bottom))
        set_log_ticks(axes.xaxis, format_scientific)
        level = f"{fit.document['level']:.0%}"
        caption = f"shaded: central {level} of the fitted points; colour: model size"
        add_note(
            figure, caption + ("; diamond: held out,\non the interval of its forecast" if len(fit.held_out) else "")
        )
    return figure


def sensitivity(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """How exponents, floor and forecast change with the conventions of the fit: a row for each variant, a panel for
    each number.

    The interval of the fit itself is shaded. A dot outside it marks a convention that matters more than the noise.
    """
    rows = fit.document["sensitivity"]
    names = [name for name in PANEL if any(row[name] is not None for row in rows)]
    size = {"width": 1.6 * len(names) + 2.3, "height": 0.25 * len(rows) + 1.5}
    with canvas("Sensitivity of the fit to its conventions", theme, panels=len(names), **size) as (figure, every):
        heights = -np.arange(len(rows))
        for axes, name in zip(every, names, strict=True):
            title, label = PANEL[name]
            span = _spread(fit, name)
            if span is not None:
                axes.axvspan(*span, color=theme.accent, alpha=BAND, linewidth=0, label="interval")
            values = [np.nan if row[name] is None else row[name] for row in rows]
            axes.axvline(values[0], color=theme.accent, linewidth=1)
            axes.scatter(values, heights, s=24, color=[theme.accent, *[theme.ink] * (len(rows) - 1)], zorder=3)
            axes.set_title(title, fontsize=9, fontweight="bold")
            axes.set_xlabel(label, fontsize=SMALL)
            axes.set_yticks(heights, [f"{row['dial']}: {row['setting']}" if axes is every[0] else "" for row in rows])
            axes.set_ylim(heights[-1] - 0.6, 0.6)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.tick_params(axis="y", length=0)
    return figure


def _spread(fit: SavedFit, name: str) -> tuple[float, float] | None:
    """The interval of one number of the panel, None where it has none. That of the forecast is for one run."""
    if name in fit.document["intervals"]:
        low, high = fit.document["intervals"][name]
        return low, high
    if name != "forecast":
        return None
    params, tokens, flops = surface.optimal_point(fit, surface.AHEAD * float(fit.points["flops"].max()))
    columns = {"params": np.array([params]), "tokens": np.array([tokens])}
    level, seed = fit.document["level"], fit.document["seed"]
    low, high = fit.predictive.interval(fit.predict(columns), columns, flops, level, seed=seed)
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


def available_figures(fit: SavedFit) -> list[str]:
    """Names of the figures that a fit has the numbers for. Raises TableError where the law is not of loss in
    params and tokens."""
    if fit.law.columns != results.SURFACE_COLUMNS or fit.law.response != "loss":
        raise errors.TableError(f"{fit.law.name}: figures are of laws of loss in params and tokens; this one is not")
    return [name for name in FIGURES if name != "sensitivity" or fit.document.get("sensitivity")]


def _curves(fit: SavedFit, theme: Theme, *, along: str, by: str, title: str) -> Figure:
    with canvas(title, theme) as (figure, (axes,)):
        points, test_points = fit.points, fit.held_out
        every = np.concatenate([points[by], test_points[by]]) if len(test_points) else points[by].to_numpy()
        reach = np.concatenate([points[along], test_points[along]]) if len(test_points) else points[along].to_numpy()
        x = np.geomspace(reach.min() / 1.15, reach.max() * 1.15, FINE)
        curves = curve_levels(every)
        ends = []
        for level, colour in zip(curves, colours_by_log(theme, curves, every), strict=True):
            loss = fit.predict({along: x, by: np.full_like(x, level)})
            axes.plot(x, loss, color=colour, linewidth=1.5, label=f"{level:.6g}")
            draw_band(axes, fit, {along: x, by: np.full_like(x, level)}, x, colour)
            ends.append((float(loss[-1]), format_count(level), colour))
        shades = colours_by_log(theme, points[by].to_numpy(), every)
        axes.scatter(points[along], points["loss"], c=shades, s=24, edgecolors=theme.paper, linewidths=0.6, zorder=3)
        names = {"tokens": "training data (tokens)", "params": params_label(fit)}
        axes.set(xscale="log", yscale="log", xlabel=names[along], ylabel="loss (nats per token)")
        axes.set_xlim(x[0], x[-1])
        level = f"{fit.document['level']:.0%}"
        caption = f"shaded: {level} interval for one more run"
        if len(test_points):
            rows = fit.forecast(test_points)
            at, predicted, low, high = (np.array([row[k] for row in rows]) for k in (along, "predicted", "low", "high"))
            _bars(axes, at, predicted, low, high, theme)
            draw_held_out(axes, at, test_points["loss"], theme)
            caption += f"\ndiamond: held out, not seen by the fit; bar: {level} interval of its forecast"
        set_plain_ticks(axes)
        add_note(figure, caption)
        label_curve_ends(axes, ends, {"params": "parameters", "tokens": "tokens"}[by], theme)
    return figure


def _bars(axes: Axes, x: np.ndarray, predicted: np.ndarray, low: np.ndarray, high: np.ndarray, theme: Theme) -> None:
    style = {"fmt": "none", "ecolor": theme.accent, "elinewidth": 1.5, "capsize": 3.5, "zorder": 4}
    axes.errorbar(x, predicted, yerr=[predicted - low, high - predicted], label="interval", **style)
