"""Figures of accuracy on downstream tasks; each is a pure function of studies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import beta

from analysis.downstream.decisions import Decisions
from analysis.downstream.study import Study
from analysis.fitting import bootstrap
from analysis.plots import style as plots
from analysis.plots.style import BAND, LIGHT, SMALL, WIDTH, Theme, colours_by_log, format_scientific

ACCURACY = "accuracy (share right)"
COMPUTE = "training compute (FLOPs)"
PANEL = 2.0  # height of a panel in inches
FINE = 100


def figures(studies: Sequence[Study], decided: Sequence[Decisions] = (), theme: Theme = LIGHT) -> Mapping[str, Figure]:
    """Every figure that the studies have the numbers for, by file name without suffix."""
    drawn = {"downstream_by_compute": by_compute(studies, theme)}
    if with_known_noise(studies):
        drawn["downstream_signal"] = signal_to_noise(studies, theme)
    if any(study.bits_model is not None for study in studies):
        drawn["downstream_by_bits"] = by_bits(studies, theme)
    if decided:
        drawn["downstream_decisions"] = decision_accuracy(decided, theme)
    return drawn


def by_compute(studies: Study | Sequence[Study], theme: Theme = LIGHT) -> Figure:
    """Accuracy against training compute, a panel for each task: runs with standard errors and, where the task rises,
    its law with its interval up to ten times the compute of the largest run."""
    studies = _several(studies)
    with _panels("Accuracy against training compute", theme, len(studies)) as (figure, panels):
        for axes, study in zip(panels, studies, strict=True):
            _levels(axes, study, theme)
            _law(axes, study, theme)
            _runs(axes, study, study.points["flops"].to_numpy(), theme)
            _held_out(axes, study, theme)
            axes.set_title(f"{study.task}: {study.verdict}", fontsize=plots.NORMAL)
            axes.set(xscale="log", xlabel=COMPUTE, ylabel=ACCURACY)
        _ends(panels, len(studies))
        level = f"{studies[0].level:.0%}"
        caption = (
            f"bars on runs: one standard error; colour: model size, dark is small\ncurve: law with its {level} interval"
        )
        if any(len(study.held_out) for study in studies):
            caption += f"; diamond: held out, on its {level} forecast"
        plots.add_note(figure, caption)
    return figure


def by_bits(studies: Study | Sequence[Study], theme: Theme = LIGHT) -> Figure:
    """Accuracy against bits per byte of the right answer, a panel for each task that has them: the second step of a
    two-step prediction."""
    studies = [study for study in _several(studies) if "bits_per_byte" in study.points]
    with _panels("Accuracy against bits per byte of the right answer", theme, len(studies), sharex=False) as (
        figure,
        panels,
    ):
        for axes, study in zip(panels, studies, strict=True):
            _levels(axes, study, theme)
            bits = study.points["bits_per_byte"].to_numpy()
            if study.bits_model is not None:
                x = np.linspace(bits.min() - 0.15 * np.ptp(bits), bits.max(), FINE)
                at = {"bits_per_byte": x, "chance": study.chance, "ceiling": study.ceiling}
                law = study.bits_model.model.steps[-1].law
                own, spread = (
                    law({n: rows[:, [i]] for i, n in enumerate(law.parameters)}, at)
                    for rows in (study.bits_model.values[-1], study.bits_model.draws[-1])
                )
                low, high = bootstrap.central_interval(spread[np.isfinite(spread).all(1)], study.level)
                axes.fill_between(x, low, high, color=theme.accent, alpha=BAND, linewidth=0, label="interval")
                axes.plot(x, own[0], color=theme.accent, linewidth=1.6)
            _runs(axes, study, bits, theme)
            axes.set_title(f"{study.task}: {study.verdict}", fontsize=plots.NORMAL)
            axes.set(xlabel="right answer (bits per byte)", ylabel=ACCURACY)
            axes.invert_xaxis()
        plots.add_note(figure, "better to the right; bars: one standard error; colour: model size, dark is small\n"
                   f"curve: a sigmoid with its {studies[0].level:.0%} interval")  # fmt: skip
    return figure


def with_known_noise(studies: Sequence[Study]) -> list[Study]:
    """The studies whose noise is known, sorted by signal over noise."""
    return sorted((s for s in studies if np.isfinite(s.trend.ratio)), key=lambda study: study.trend.ratio)


def signal_to_noise(studies: Study | Sequence[Study], theme: Theme = LIGHT) -> Figure:
    """How far the models of each task spread, over the noise of one: dots, and the spread that noise alone has. Tasks
    whose noise is unknown are named in the note; one at least must be `measured`."""
    unknown = [study.task for study in _several(studies) if not np.isfinite(study.trend.ratio)]
    studies = with_known_noise(_several(studies))
    height = 1.5 + 0.3 * len(studies)
    with plots.canvas("Signal over noise of each task", theme, height=height) as (figure, (axes,)):
        places = np.arange(len(studies))
        for place, study in zip(places, studies, strict=True):
            rises = study.accuracy_forecast is not None
            colour = theme.accent if rises else theme.ink
            axes.plot([1, study.trend.ratio], [place, place], color=theme.faint, linewidth=1)
            axes.scatter([study.trend.ratio], [place], color=colour, s=30, zorder=3)
            text = f"{study.verdict}, tau {study.trend.tau:+.2f}"
            end = (max(study.trend.ratio, study.trend.ratio_needed), place)
            style = {"va": "center", "fontsize": SMALL, "color": colour}
            axes.annotate(text, end, (7, 0), textcoords="offset points", **style)
            axes.plot([study.trend.ratio_needed] * 2, [place - 0.3, place + 0.3], color=theme.ink, linewidth=1.4)
        most = max(max(study.trend.ratio, study.trend.ratio_needed) for study in studies)
        axes.set(
            xscale="log",
            xlim=(1, most * 12),
            ylim=(-0.7, len(studies) - 0.3),
            xlabel="highest less lowest accuracy (noises)",
        )
        axes.set_yticks(places, [study.task for study in studies])
        axes.grid(axis="y", visible=False)
        plots.set_log_ticks(axes.xaxis, plots.format_plain)
        plots.add_note(figure, "upright mark: what equally good models exceed once in 20 such tables\n"
                   f"noise: {'; '.join(dict.fromkeys(study.trend.noise_source for study in studies))}"
                   + (f"; unknown, so not drawn: {', '.join(unknown)}" if unknown else ""))  # fmt: skip
    return figure


def decision_accuracy(decided: Sequence[Decisions], theme: Theme = LIGHT) -> Figure:
    """Share of pairs of recipes that smaller runs order as the largest runs do, against the compute of the smaller
    runs: over all tasks, by ranking and by laws, and by the loss."""
    tasks = [entry for entry in decided if entry.name != "loss"]
    groups = [("ranking on tasks", tasks, "ranking", theme.shade(0.2), "o", 0.93)]
    groups += [("laws on tasks", tasks, "laws", theme.accent, "s", 1.0)]
    groups += [("ranking by loss", [e for e in decided if e.name == "loss"], "ranking", theme.shade(0.75), "^", 1.07)]
    with plots.canvas("Which recipe is better, judged from smaller runs", theme) as (figure, (axes,)):
        axes.axhline(0.5, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
        ends = [_share(axes, *group) for group in groups if group[1]]
        axes.set(
            xscale="log",
            ylim=(0, 1.02),
            xlabel="compute of the smaller runs (FLOPs)",
            ylabel="pairs ordered rightly (share)",
        )
        axes.get_xlim()  # computes the limits, which the ticks depend on
        plots.set_log_ticks(axes.xaxis, format_scientific, most=5)
        axes.annotate("a coin", (axes.get_xlim()[0], 0.5), (3, 3), textcoords="offset points", fontsize=SMALL)
        _labels(axes, [end for end in ends if end])
        first, count = decided[0], sum(entry.pairs for entry in tasks)
        target = format_scientific(first.target["flops"])
        plots.add_note(figure, f"{first.by}: {', '.join(first.recipes)}; target {target} FLOPs\n"
                   f"{count} pairs over {len(tasks)} tasks; 90% intervals")  # fmt: skip
    return figure


def _share(
    axes: Axes, name: str, entries: Sequence[Decisions], column: str, colour: str, marker: str, aside: float
) -> tuple[float, float, str, str] | None:
    """One series pooled over entries and levels within half a power of ten, with its end: (x, y, label, colour)."""
    rows = pd.concat([entry.levels.assign(pairs=entry.pairs) for entry in entries]).dropna(subset=[column])
    if rows.empty:
        return None
    rows = rows.assign(good=rows[column] * rows["pairs"], log_flops=np.log10(rows["flops"]))
    bins = rows.groupby(np.floor(2 * rows["log_flops"]).astype(int)).agg(
        {"good": "sum", "pairs": "sum", "log_flops": "mean"}
    )
    good, total, x = bins["good"].to_numpy(), bins["pairs"].to_numpy(), aside * 10 ** bins["log_flops"].to_numpy()
    share = good / total
    low, high = (beta.ppf(side, good + 0.5, total - good + 0.5) for side in (0.05, 0.95))
    bars = np.array([np.maximum(share - low, 0), np.maximum(high - share, 0)])
    style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.4, "elinewidth": 0.8}
    axes.errorbar(x, share, yerr=bars, label="interval", **style)
    return float(x[-1]), float(share[-1]), name, colour


def _labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes names to the right of the axes at the heights of their ends; those that would overlap are moved up."""
    gap, heights = 0.06, []
    for _, y, name, colour in sorted(ends, key=lambda end: end[1]):
        heights.append(max(y / axes.get_ylim()[1], heights[-1] + gap) if heights else y / axes.get_ylim()[1])
        axes.text(1.012, heights[-1], name, transform=axes.transAxes, color=colour, va="center", fontsize=SMALL)


def _several(studies: Study | Sequence[Study]) -> list[Study]:
    return [studies] if isinstance(studies, Study) else list(studies)


@contextmanager
def _panels(title: str, theme: Theme, count: int, sharex: bool = True) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yields a figure with `count` panels in up to two columns, all on one scale of accuracy."""
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    with mpl.rc_context(theme.settings):
        figure = Figure(figsize=(WIDTH * (1 if columns == 1 else 1.25), 1.0 + PANEL * rows), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, sharey=True, sharex=sharex, squeeze=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        for spare in grid.ravel()[count:]:
            spare.remove()
        yield figure, list(grid.ravel()[:count])
        for axes in figure.axes:
            axes.set_ylim(-0.03, 1.07)
        for inner in grid[:, 1:].ravel():
            inner.set_ylabel("")


def _ends(panels: Sequence[Axes], count: int) -> None:
    """Sets ticks and label of the compute axis, shown only on the lowest panel of each column."""
    for index, axes in enumerate(panels):
        axes.get_xlim()  # computes the limits, which the ticks depend on
        plots.set_log_ticks(axes.xaxis, format_scientific, most=4)
        last = index + 2 >= count
        axes.tick_params(axis="x", labelbottom=last)
        axes.set_xlabel(axes.get_xlabel() if last else "")


def _levels(axes: Axes, study: Study, theme: Theme) -> None:
    """Draws and labels the lines of chance and ceiling."""
    below = -3 if study.accuracy_forecast is not None else -9  # runs without a trend lie along the line of chance
    paper = {"boxstyle": "square,pad=0.1", "facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8}
    for value, name, up in ((study.chance, "chance", study.chance < 0.1), (study.ceiling, "ceiling", True)):
        axes.axhline(value, color=theme.ink, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        style: dict[str, Any] = {"xytext": (-2, 3 if up else below), "va": "bottom" if up else "top", "ha": "right"}
        style |= {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "zorder": 1}
        axes.annotate(f"{name} {value:.3g}", (1, value), fontsize=SMALL, bbox=paper, **style)


def _runs(axes: Axes, study: Study, x: np.ndarray, theme: Theme) -> None:
    points = study.points
    params, y = points["params"].to_numpy(), points["accuracy"].to_numpy()
    colours = colours_by_log(theme, params, params)
    if "standard_error" in points:
        bars = {"fmt": "none", "elinewidth": 0.8, "zorder": 2}
        for index, colour in enumerate(colours):
            axes.errorbar(x[index], y[index], yerr=points["standard_error"].iloc[index], ecolor=colour, **bars)
    axes.scatter(x, y, c=colours, s=14, edgecolors=theme.paper, linewidths=0.4, zorder=3)


def _law(axes: Axes, study: Study, theme: Theme) -> None:
    """Draws the law and its interval, dashed beyond the largest run; without a law, writes why there is none."""
    if study.accuracy_forecast is None or study.backtest is None:
        known = np.isfinite(study.trend.ratio)
        noise = f"signal {study.trend.ratio:.1f} noises" if known else "noise unknown"
        reason = f"p = {study.trend.p:.2g}, {noise}"
        axes.text(0.03, 0.87, f"no law: {reason}", transform=axes.transAxes, va="top", fontsize=SMALL)
        return
    curve = study.curve()
    x, in_range = curve["flops"].to_numpy(), (curve["flops"] <= study.points["flops"].max() * 1.02).to_numpy()
    axes.fill_between(x, curve["low"], curve["high"], color=theme.accent, alpha=BAND, linewidth=0, label="interval")
    axes.plot(x[in_range], curve["predicted"][in_range], color=theme.accent, linewidth=1.6)
    axes.plot(x[~in_range], curve["predicted"][~in_range], color=theme.accent, linewidth=1.3, linestyle=(0, (3, 2)))
    error = f"\noff by {study.backtest.error:.3f}" if np.isfinite(study.backtest.error) else ""
    axes.text(0.03, 0.87, f"{study.backtest.best.name}{error}", transform=axes.transAxes, va="top", fontsize=SMALL,
              color=theme.accent)  # fmt: skip


def _held_out(axes: Axes, study: Study, theme: Theme) -> None:
    test_runs = study.held_out
    if test_runs.empty:
        return
    if "predicted" in test_runs:
        bars = np.array([test_runs["predicted"] - test_runs["low"], test_runs["high"] - test_runs["predicted"]])
        style = {"fmt": "none", "ecolor": theme.accent, "elinewidth": 1.4, "capsize": 3, "zorder": 5}
        axes.errorbar(test_runs["flops"], test_runs["predicted"], yerr=np.maximum(bars, 0), **style)
    plots.draw_held_out(axes, test_runs["flops"], test_runs["accuracy"], theme)
