"""Writes the page of benchmarks/transfer.py: the best learning rate of every size, its drift, and coordinate checks.

    python benchmarks/transfer_report.py     # docs/transfer.png and docs/transfer.md

The best rate of a size is the vertex of a parabola in the logarithm of the rate, through the five rates around the
least loss and all seeds, each with an offset of its own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from transfer import (  # pyrefly: ignore[missing-import]
    BASE_DEPTH,
    BASE_WIDTH,
    DEPTHS,
    HERE,
    JSON,
    WIDTHS,
    Cell,
    Parametrization,
    run_key,
)

from scaling.commands.coordinate_check import KINDS
from scaling.config.run_config import DataConfig
from scaling.model.parametrization import simplest_equivalent

COORDINATES, DOCS = HERE / "coordinates.json", HERE.parent / "docs"
AROUND = 2  # rates on each side of the least loss that a parabola is fitted to
STAYS = 0.5  # octaves over the whole range of sizes: a factor of sqrt(2)
COST = "farthest from the base's, octaves | most that the base's rate costs, nats"
SHOWN = 0.6  # nats above the least loss, in the figure
INK, ACCENT = "#1c1d21", "#c2410c"
PAGE = """# Does the best learning rate carry over?

Written by `python benchmarks/transfer_report.py` from benchmarks/transfer.json and coordinates.json; nothing is typed.

![Loss against learning rate, and the best rate against size](transfer.png)

{about}

A line through the optima: "stays" means that it moves by no more than {stays} octaves over the whole range, "moves"
that it moves by more than that and by more than two standard errors a doubling, "undecided" anything else. At the base
width muP is standard, so its depths are standard's; at the base depth CompleteP is muP, so its widths are muP's.

{drifts}

Each size. The last column is what a rate carried over from the base would cost, in nats per byte.

{optima}

## Coordinate check

![How far activations move, by width and by depth](coordinates.png)

`scaling coord-check`: {check}

{moved}
"""
SCANS: tuple[tuple[str, Parametrization], ...] = (
    ("width", "standard"),
    ("width", "mup"),
    ("depth", "standard"),
    ("depth", "completep"),
)


@dataclass(frozen=True)
class Optimum:
    """Of one size. rate: log2 of the best rate, with its standard error; rates, losses: of the scan, means of `seeds`
    seeds."""

    size: int
    rate: float
    stderr: float
    rates: np.ndarray
    losses: np.ndarray
    seeds: int

    def excess(self, rate: float) -> float:
        """Nats per token that log2 rate `rate` costs above the least loss of the scan, between its points."""
        return float(np.interp(rate, self.rates, self.losses) - self.losses.min())


def optimum(size: int, runs: list[dict[str, Any]]) -> Optimum:
    """The vertex, by least squares; its error by the delta method. Infinite error where no parabola opens upwards or
    the least loss is that of the first or last rate: then the rate is that of the least loss. A seed whose scan is not
    whole yet is left out."""
    rates = np.log2(sorted({run["learning_rate"] for run in runs}))
    count = Counter(run["seed"] for run in runs)
    seeds = sorted(seed for seed in count if count[seed] == len(rates))
    runs = [run for run in runs if run["seed"] in seeds]
    table = np.full((len(seeds), len(rates)), np.inf)
    for run in runs:
        at = int(np.argmin(np.abs(rates - np.log2(run["learning_rate"]))))
        table[seeds.index(run["seed"]), at] = np.inf if run["loss"] is None else run["loss"]
    losses = table.mean(axis=0)
    best = int(np.argmin(losses))
    near = slice(max(best - AROUND, 0), best + AROUND + 1)
    y, x = table[:, near].ravel(), np.tile(rates[near] - rates[best], len(seeds))
    design = np.column_stack([x**2, x, np.repeat(np.eye(len(seeds)), len(rates[near]), axis=0)])[np.isfinite(y)]
    y = y[np.isfinite(y)]
    (a, b, *_), *_ = np.linalg.lstsq(design, y, rcond=None)
    if a <= 0 or best in (0, len(rates) - 1):
        return Optimum(size, float(rates[best]), math.inf, rates, losses, len(seeds))
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual) / max(len(y) - design.shape[1], 1)
    slope = np.array([b / (2 * a**2), -1 / (2 * a)])
    error = math.sqrt(slope @ covariance[:2, :2] @ slope)
    return Optimum(size, float(rates[best] - b / (2 * a)), error, rates, losses, len(seeds))


def scan(facts: dict[str, Any], axis: str, parametrization: Parametrization) -> list[Optimum]:
    """The optima along one axis, smallest size first."""
    out = []
    for size in WIDTHS if axis == "width" else DEPTHS:
        width, depth = (size, BASE_DEPTH) if axis == "width" else (BASE_WIDTH, size)
        model = simplest_equivalent(Cell(parametrization, width, depth).config(DataConfig(), 1.0, 0).model)
        wanted = (model.parametrization, width, depth)
        out.append(optimum(size, [run for run in facts["runs"] if run_key(run)[:3] == wanted]))
    return out


def drift(optima: list[Optimum]) -> tuple[float, float]:
    """Octaves of the best rate per doubling of size, and the standard error: a line, weighted by the optima's errors,
    its error enlarged where they scatter about it by more."""
    good = [one for one in optima if math.isfinite(one.stderr)]
    x, y = np.log2([one.size for one in good]), np.array([one.rate for one in good])
    weight = 1 / np.array([one.stderr for one in good])
    line, covariance = np.polyfit(x, y, 1, w=weight, cov="unscaled")
    scatter = (((y - np.polyval(line, x)) * weight) ** 2).sum() / max(len(good) - 2, 1)
    return float(line[0]), math.sqrt(covariance[0, 0] * max(scatter, 1.0))


def base(optima: list[Optimum], axis: str) -> Optimum:
    return next(one for one in optima if one.size == (BASE_WIDTH if axis == "width" else BASE_DEPTH))


def verdict(optima: list[Optimum]) -> str:
    slope, error = drift(optima)
    octaves = math.log2(optima[-1].size / optima[0].size)
    if abs(slope) * octaves <= STAYS:
        return "stays"
    return "moves" if abs(slope) > 2 * error else "undecided"


def figure(facts: dict[str, Any]) -> Figure:
    """Loss against rate, a curve a size, dots at the optima; and the optima against size."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        canvas = Figure(figsize=(10.5, 6.2), layout="constrained")
        grid = canvas.subplots(2, 3)
        for row, axis in enumerate(("width", "depth")):
            for column, name in enumerate(p for a, p in SCANS if a == axis):
                optima = scan(facts, axis, name)
                _curves(grid[row, column], axis, optima, f"{name}, by {axis}: {verdict(optima)}")
                _optima(grid[row, 2], axis, optima, name, (INK, ACCENT)[column])
            least = min(one.losses.min() for a, p in SCANS if a == axis for one in scan(facts, axis, p))
            for axes in grid[row, :2]:
                axes.set_ylim(least - 0.03, least + SHOWN)
    return canvas


def _curves(axes: Axes, axis: str, optima: list[Optimum], title: str) -> None:
    for one, shade in zip(optima, mpl.colormaps["viridis"](np.linspace(0.05, 0.85, len(optima))), strict=True):
        axes.plot(one.rates, one.losses, color=shade, linewidth=1.4, label=f"{axis} {one.size}")
        axes.plot(one.rate, np.interp(one.rate, one.rates, one.losses), "o", color=shade, markersize=5)
    axes.set_title(title, loc="left", fontsize=9.5)
    axes.set(xlabel="log2 learning rate", ylabel="validation loss, nats per byte")
    axes.legend(frameon=False, fontsize=8)


def _optima(axes: Axes, axis: str, optima: list[Optimum], name: str, colour: str) -> None:
    slope, error = drift(optima)
    errors = [one.stderr if math.isfinite(one.stderr) else 0.0 for one in optima]
    label = f"{name}: {slope:+.2f} ± {error:.2f} a doubling"
    sizes = [one.size for one in optima]
    axes.errorbar(sizes, [one.rate for one in optima], errors, color=colour, marker="o", capsize=3, label=label)
    axes.set(xscale="log", xlabel=axis, ylabel="log2 best learning rate")
    axes.xaxis.set(major_locator=FixedLocator(sizes), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(frameon=False, fontsize=8)


def text(facts: dict[str, Any], coordinates: dict[str, Any]) -> str:
    """docs/transfer.md, whole."""
    c = facts["common"]
    seeds = sorted({one.seeds for axis, name in SCANS for one in scan(facts, axis, name)})
    minutes = sum(run["cpu_seconds"] for run in facts["runs"]) / 60
    set_, commit = coordinates["setting"], facts["environment"]["commit"]
    return PAGE.format(
        drifts=_table(
            "axis | parametrisation | octaves a doubling | over the range | best rate | " + COST, _drifts(facts)
        ),
        optima=_table(
            "axis | parametrisation | size | log2 best rate | least loss | loss at the base's rate", _rows(facts)
        ),
        moved=_table("axis | parametrisation | " + " | ".join(KINDS), _moved(coordinates)),
        about=f"{facts['date']}, {len(facts['runs'])} runs, {minutes:.0f} CPU-minutes, {facts['environment']['cores']} "
        f"cores, commit {commit[:7]}. Source of Python's standard library as bytes; {c['steps']} steps of "
        f"{c['batch_tokens']} tokens, AdamW, a tenth warm-up then a cosine, {' or '.join(map(str, seeds))} seeds; "
        f"heads of {c['head_width']}, queries and keys normalised; base {c['base_width']} wide, {c['base_depth']} "
        f"deep; loss on {c['validation_tokens']:,} tokens.",
        check=f"{set_['steps']} steps at rate {set_['learning_rate']:.4g}, {set_['seeds']} seeds, the same text; "
        f"slopes of log RMS change in log size, bold where beyond ±{set_['bound']}.",
        stays=f"{STAYS:g}",
    )


def _table(header: str, rows: list[str]) -> str:
    return "\n".join([f"| {header} |", "|" + "---|" * (header.count("|") + 1), *(f"| {row} |" for row in rows)])


def _drifts(facts: dict[str, Any]) -> list[str]:
    out = []
    for axis, name in SCANS:
        optima = scan(facts, axis, name)
        slope, error = drift(optima)
        octaves = math.log2(optima[-1].size / optima[0].size)
        home = base(optima, axis)
        apart = max(abs(one.rate - home.rate) for one in optima)
        cost = max(one.excess(home.rate) for one in optima)
        out.append(
            f"{axis} {optima[0].size} to {optima[-1].size} | {name} | {slope:+.2f} ± {error:.2f} | "
            f"{slope * octaves:+.2f} ± {error * octaves:.2f} | **{verdict(optima)}** | "
            f"{apart:.2f} | {cost:.3f}"
        )
    return out


def _rows(facts: dict[str, Any]) -> list[str]:
    out = []
    for axis, name in SCANS:
        optima = scan(facts, axis, name)
        home = base(optima, axis)
        for one in optima:
            rate = f"{one.rate:.2f} ± {one.stderr:.2f}" if math.isfinite(one.stderr) else f"{one.rate:.0f}, no vertex"
            out.append(f"{axis} | {name} | {one.size} | {rate} | {one.losses.min():.3f} | +{one.excess(home.rate):.3f}")
    return out


def _moved(coordinates: dict[str, Any]) -> list[str]:
    out: dict[tuple[str, str], list[str]] = {}
    for t in coordinates["trends"]:
        cell = f"{t['slope']:+.2f}" if t["verdict"] == "flat" else f"**{t['slope']:+.2f}**"
        sizes = f"{t['axis']} {t['sizes'][0]} to {t['sizes'][-1]}"
        out.setdefault((sizes, t["parametrization"]), []).append(cell)
    return [" | ".join([*where, *cells]) for where, cells in out.items()]


def page(json_file: Path = JSON, docs: Path = DOCS) -> None:
    """Draws docs/transfer.png and writes docs/transfer.md.

    Args:
      json_file: What `train` wrote.
      docs: The folder of both.
    """
    facts = json.loads(json_file.read_text())
    figure(facts).savefig(docs / "transfer.png", dpi=180)
    (docs / "transfer.md").write_text(text(facts, json.loads(COORDINATES.read_text())))


if __name__ == "__main__":
    tyro.cli(page)
