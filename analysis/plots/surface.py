"""Figures of the fitted loss surface: contours, slices at fixed compute, the compute-optimal frontier.

Budgets are training FLOPs as the runs count them: C = c N D, where c is the median over the runs, about 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fitting import bootstrap, compute_optimal
from analysis.forecasting.saved_fit import SavedFit
from analysis.plots.style import (
    BAND,
    FINE,
    LIGHT,
    SMALL,
    Theme,
    add_note,
    canvas,
    colours_by_log,
    draw_held_out,
    format_count,
    format_scientific,
    set_log_ticks,
    set_plain_ticks,
)

AHEAD = 10.0  # the frontier is drawn to this many times the FLOPs of the largest run
COARSE = 48  # number of points of an interval along a curve
SLICES = 5  # number of budgets
SPAN = 8.0  # a slice spans this factor in parameters to either side of its minimum
RULE = 20.0  # tokens a parameter: Hoffmann et al. 2022, as it is usually rounded


def params_label(fit: SavedFit) -> str:
    """Label of an axis of model sizes, with the parameter count that the fit uses."""
    column = fit.document["params_column"]
    if column == "params":
        return "model size (parameters)"
    return f"model size (parameters, {column.removeprefix('params_').replace('_', '-')})"


def flops_per_product(fit: SavedFit) -> float:
    """Training FLOPs over N D, as the median of the fitted runs; about 6."""
    points = fit.points
    return float(np.median(points["flops"] / (points["params"] * points["tokens"])))


def optimal_point(fit: SavedFit, flops: Any) -> tuple[Any, Any, Any]:
    """Compute-optimal (params, tokens, flops) at training FLOPs as the runs count them."""
    params, tokens = compute_optimal.optimal_allocation(
        fit.law, fit.values, np.asarray(flops) * 6 / flops_per_product(fit)
    )
    return params, tokens, flops


def optimal_params_interval(fit: SavedFit, flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval of compute-optimal params at each budget, from the bootstrap draws of the fit, at its level: two arrays
    [budgets]."""
    draws = {name: fit.draws[:, [i]] for i, name in enumerate(fit.law.parameters)}
    params = compute_optimal.optimal_allocation(fit.law, draws, np.asarray(flops)[None] * 6 / flops_per_product(fit))[0]
    return bootstrap.central_interval(params[np.isfinite(params).all(1)], fit.document["level"])


def draw_band(axes: Axes, fit: SavedFit, columns: dict[str, np.ndarray], x: np.ndarray, colour: str) -> None:
    """Draws the interval for one more run along a curve of the surface, at the level of the fit."""
    some = np.unique(np.linspace(0, len(x) - 1, COARSE).astype(int))
    at = {name: values[some] for name, values in columns.items()}
    flops = flops_per_product(fit) * at["params"] * at["tokens"]
    level, seed = fit.document["level"], fit.document["seed"]
    low, high = fit.predictive.interval(fit.predict(at), at, flops, level, seed=seed)
    axes.fill_between(x[some], low, high, color=colour, alpha=BAND, linewidth=0, label="interval")


def surface(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Contours of the fitted loss over parameters and tokens, the runs, and the compute-optimal frontier with its
    interval; budgets as thin lines."""
    with canvas("The loss surface, and the best split of compute", theme) as (figure, (axes,)):
        points, test_points = fit.points, fit.held_out
        n, d = (np.concatenate([points[name], test_points[name]]) for name in ("params", "tokens"))
        x, y = (np.geomspace(v.min() / 1.8, v.max() * 3.2, FINE // 2) for v in (n, d))
        grid_n, grid_d = np.meshgrid(x, y)
        loss = fit.predict({"params": grid_n.ravel(), "tokens": grid_d.ravel()}).reshape(grid_n.shape)
        steps = np.geomspace(loss.min(), loss.max(), 11)[1:-1]
        steps = np.unique(
            [float(f"{step:.2g}") if loss.max() / loss.min() > 1.5 else float(f"{step:.3g}") for step in steps]
        )
        lines = axes.contour(
            grid_n, grid_d, loss, steps, colors=colours_by_log(theme, steps, steps)[::-1], linewidths=1.2
        )
        axes.set(xscale="log", yscale="log", xlabel=params_label(fit), ylabel="training data (tokens)")
        axes.clabel(lines, fmt=lambda value: f"{value:.3g}", fontsize=SMALL, inline_spacing=4)
        product = flops_per_product(fit)
        budgets = np.geomspace(product * x[0] * y[0], product * x[-1] * y[-1], FINE)
        best, tokens, _ = optimal_point(fit, budgets)
        low, high = optimal_params_interval(fit, budgets)
        ring = [np.concatenate([low, high[::-1]]), np.concatenate([budgets / low, (budgets / high)[::-1]]) / product]
        axes.fill(*ring, color=theme.accent, alpha=BAND, linewidth=0, label="interval", zorder=1.5)
        axes.plot(best, tokens, color=theme.accent, linewidth=1.8, label="frontier")
        axes.scatter(
            points["params"], points["tokens"], s=16, color=theme.ink, edgecolors=theme.paper, linewidths=0.5, zorder=3
        )
        if len(test_points):
            draw_held_out(axes, test_points["params"], test_points["tokens"], theme)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        set_plain_ticks(axes, format_count, format_count)
        caption = f"lines: loss (nats per token); dots: runs{'; diamond: held out' if len(test_points) else ''}"
        add_note(figure, f"{caption}\norange: compute-optimal, with its {fit.document['level']:.0%} interval")
    return figure


def isoflop(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Slices of the fitted surface at fixed budgets, and the compute-optimal frontier through their minima.

    A slice is solid where both its parameters and its tokens lie in the range of the runs, thin where it extrapolates.
    """
    with canvas("Slices at fixed compute, and their minima", theme) as (figure, (axes,)):
        params, tokens = (fit.points[name].to_numpy() for name in ("params", "tokens"))
        product = flops_per_product(fit)
        budgets = np.geomspace(np.min(product * params * tokens), np.max(product * params * tokens), SLICES + 1)[1:]
        best, best_tokens, _ = optimal_point(fit, budgets)
        for budget, at, colour in zip(budgets, best, colours_by_log(theme, budgets, budgets), strict=True):
            n = at * np.geomspace(1 / SPAN, SPAN, FINE + 1)
            columns = {"params": n, "tokens": budget / product / n}
            loss = fit.predict(columns)
            in_range = _within(n, params) & _within(columns["tokens"], tokens)
            axes.plot(n, loss, color=colour, linewidth=0.8, alpha=0.65, linestyle=(0, (4, 2)))
            axes.plot(n, np.where(in_range, loss, np.nan), color=colour, linewidth=2.0, label=f"{budget:.4g}")
            draw_band(axes, fit, columns, n, colour)
            style = {"textcoords": "offset points", "color": colour, "fontsize": SMALL, "va": "center"}
            axes.annotate(format_scientific(budget), (n[-1], loss[-1]), (4, 0), annotation_clip=False, **style)
        lowest = fit.predict({"params": best, "tokens": best_tokens})
        low, high = optimal_params_interval(fit, budgets)
        bars = {"fmt": "none", "ecolor": theme.accent, "elinewidth": 1.2, "capsize": 2.5, "zorder": 4}
        axes.errorbar((low + high) / 2, lowest, xerr=(high - low) / 2, label="interval", **bars)
        axes.plot(best, lowest, color=theme.accent, linewidth=1.5, marker="o", markersize=4, label="frontier", zorder=4)
        axes.set(xscale="log", yscale="log", xlabel=params_label(fit), ylabel="loss (nats per token)")
        set_plain_ticks(axes)
        level = f"{fit.document['level']:.0%}"
        caption = f"a curve: one budget of FLOPs, solid where runs reach; shaded: {level} interval"
        add_note(figure, f"{caption}\norange: the best size for the budget, with its {level} interval")
    return figure


def frontier(fit: SavedFit, theme: Theme = LIGHT) -> Figure:
    """Compute-optimal parameters against compute, with their interval, to ten times the largest run's FLOPs; the sizes
    of the runs, and the rule of 20 tokens a parameter."""
    with canvas("Compute-optimal model size", theme) as (figure, (axes,)):
        points, test_points = fit.points, fit.held_out
        largest = float(points["flops"].max())
        budgets = np.geomspace(points["flops"].min(), AHEAD * max(largest, *test_points["flops"], 0.0), FINE)
        best, _, _ = optimal_point(fit, budgets)
        low, high = optimal_params_interval(fit, budgets)
        axes.fill_between(budgets, low, high, color=theme.accent, alpha=BAND, linewidth=0, label="interval")
        in_range = budgets <= largest
        axes.plot(budgets[in_range], best[in_range], color=theme.accent, linewidth=2.0, label="frontier")
        axes.plot(budgets[~in_range], best[~in_range], color=theme.accent, linewidth=1.4, linestyle=(0, (4, 2)))
        rule = np.sqrt(budgets / flops_per_product(fit) / RULE)
        axes.plot(budgets, rule, color=theme.ink, linewidth=0.9, linestyle=(0, (1, 2)))
        style = {"textcoords": "offset points", "fontsize": SMALL, "va": "center", "annotation_clip": False}
        axes.annotate(f"{RULE:.0f} tokens\na parameter", (budgets[-1], rule[-1]), (4, 0), color=theme.ink, **style)
        axes.annotate("optimum", (budgets[-1], best[-1]), (4, 0), color=theme.accent, **style)
        axes.scatter(points["flops"], points["params"], s=14, color=theme.ink, alpha=0.7, linewidths=0, zorder=3)
        if len(test_points):
            draw_held_out(axes, test_points["flops"], test_points["params"], theme)
        axes.set(xscale="log", yscale="log", xlabel="training compute (FLOPs)", ylabel=params_label(fit))
        axes.set_xlim(budgets[0], budgets[-1])
        set_log_ticks(axes.xaxis, format_scientific)
        set_log_ticks(axes.yaxis, format_count)
        a, level = fit.document["exponent_a"], f"{fit.document['level']:.0%}"
        low_a, high_a = fit.document["intervals"]["exponent_a"]
        caption = f"optimum: N* grows as compute to the power {a:.2f} ({level} interval {low_a:.2f} to {high_a:.2f})"
        add_note(figure, f"{caption}\nshaded: its {level} interval; dashed: beyond the runs, which are the dots")
    return figure


def _within(values: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Whether each value lies in the range of the fitted ones, up to .1 %."""
    return (values >= fitted.min() * 0.999) & (values <= fitted.max() * 1.001)
