"""Compute-optimal sizes without a fitted surface: approaches 1 and 2 of Hoffmann et al. 2022, and Porian et al. 2024.

All three find the compute-optimal params N* and tokens D* of each budget C, then power laws N* ~ C^a and D* ~ C^b by
log-log regression. They are biased: a parabola in log N is not the shape of a loss surface, so its vertex lies beside
the optimum by an amount that grows with the range of sizes. Each result therefore states the error of the same method
on the same grid of a noise-free Chinchilla surface, whose optimum is known.

Units: params and tokens are counts, flops are training FLOPs; loss is nats per token, though any unit gives the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import Akima1DInterpolator

from analysis.errors import TableError
from analysis.tables.results import select_points
from analysis.tables.schema import COLUMNS, DEFAULT_PARAMS_COLUMN

ALPHA, BETA = 0.34, 0.28  # Hoffmann et al. 2022, table A3, as printed
BIAS_FLOPS = 1e24  # FLOPs at which the bias of N* and D* is stated, as is usual for this comparison
SUBDIVISIONS = 25  # points of the fine grid between two neighbouring sizes (Porian et al. 2024)
MIN_SPACINGS = 0.33  # smallest standard deviation of log N*, in spacings of the sizes (Porian et al. 2024)
SAME_BUDGET = 0.05  # largest relative difference in training FLOPs between neighbouring runs of one budget

MAX_BUDGET_FACTOR = 10.0  # largest factor between a column of budgets and 6 params tokens
_BUDGET_NAME = re.compile(r"flop|budget|compute|^c$", re.IGNORECASE)

Minimum = Callable[[np.ndarray, np.ndarray], float]
MedianAndStd = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * flops^exponent."""

    coefficient: float
    exponent: float

    def __call__(self, flops: float | np.ndarray) -> float | np.ndarray:
        return self.coefficient * np.asarray(flops, np.float64) ** self.exponent

    def __repr__(self) -> str:
        return f"{self.coefficient:.4g} C^{self.exponent:.4f}"


@dataclass(frozen=True)
class Bias:
    """The error of a method on a noise-free Chinchilla surface that is sampled on the user's grid.

    at: FLOPs at which the optimum is forecast. params, tokens: relative error of N* and D* there (-0.05 is 5 % low).
    exponent: error of a in N* ~ C^a. alpha, beta: exponents of the surface; its E, A and B do not move a parabola.
    """

    at: float
    params: float
    tokens: float
    exponent: float
    alpha: float = ALPHA
    beta: float = BETA

    def __repr__(self) -> str:
        return (
            f"on a noise-free surface (alpha {self.alpha:g}, beta {self.beta:g}) this grid gives "
            f"N* {self.params:+.2%}, D* {self.tokens:+.2%} at {self.at:.3g} FLOPs, exponent a {self.exponent:+.4f}"
        )


@dataclass(frozen=True)
class Frontier:
    """The compute-optimal runs of several budgets, and power laws through them.

    flops, params, tokens, loss: [budgets], the optimum of each. log_std: [budgets], standard deviation of log N*; empty
    where no noise was given. skipped: budgets, in FLOPs, without an optimum between their smallest and largest size.
    bias: None where the grid has no optimum on a noise-free surface.
    """

    approach: str
    flops: tuple[float, ...]
    params: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    params_law: PowerLaw
    tokens_law: PowerLaw
    log_std: tuple[float, ...] = ()
    skipped: tuple[float, ...] = ()
    bias: Bias | None = None

    def __repr__(self) -> str:
        lines = [f"{self.approach}: N* = {self.params_law}, D* = {self.tokens_law} from {len(self.flops)} budgets"]
        if self.skipped:
            shown = ", ".join(f"{flops:.3g}" for flops in self.skipped[:6]) + ", ..." * (len(self.skipped) > 6)
            lines.append(f"{len(self.skipped)} budgets have no optimum inside three sizes and more: {shown} FLOPs")
        return "\n".join([*lines, f"bias: {self.bias or 'unknown'}"])

    def facts(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """`facts` as text."""
        return json.dumps(self.facts())


def approach_1(table: pd.DataFrame, *, bins: int = 1500, at: float = BIAS_FLOPS) -> Frontier:
    """Approach 1, the envelope of training curves: the size of lowest loss in each of many FLOPs bins (Hoffmann et al.
    2022, section 3.1).

    The points of one size make a curve: log loss, interpolated in log FLOPs between its first and last point. Bins in
    which the smallest or the largest size of all is best are left out (ours), because a size beyond might be better.

    Args:
      table: columns params, tokens, loss, and flops where they are not 6 params tokens.
      bins: number of FLOPs bins, equal in log FLOPs.
      at: FLOPs at which the bias is stated.
    Raises:
      TableError: an unusable table, or fewer than two sizes between the smallest and the largest are best in any bin.
    """
    points = select_points(table, parameters=1).table
    frontier = _envelope(points, bins)
    return replace(frontier, bias=_envelope_bias(points, frontier, bins, at))


def approach_2(table: pd.DataFrame, *, at: float = BIAS_FLOPS) -> Frontier:
    """Approach 2, IsoFLOP profiles: N* is the vertex of a parabola of loss in log params through the runs of a budget
    (Hoffmann et al. 2022, section 3.2).

    Args:
      table: as for approach 1, with at least three sizes a budget.
      at: FLOPs at which the bias is stated.
    Raises:
      TableError: an unusable table, or fewer than two budgets whose vertex lies between their sizes.
    """
    return _profile_frontier("approach 2 (parabolas)", select_points(table, parameters=1).table, parabola_vertex, at)


def akima(
    table: pd.DataFrame, *, noise: float = 0.0, draws: int = 1000, seed: int = 0, at: float = BIAS_FLOPS
) -> Frontier:
    """IsoFLOP profiles whose N* is the argmin of Akima's interpolation of log loss in log params (Porian et al. 2024).

    With `noise`, N* is the median, over draws of noise added to the loss, of the argmins between the smallest and the
    largest size, on a grid of 25 points between neighbouring sizes. A budget with such an argmin in fewer than half of
    the draws is skipped. The power laws weight each budget by 1 / std^2 of its log N*; that standard deviation is at
    least a third of the spacing of the sizes, and is divided by the share of draws with such an argmin.

    Args:
      table: as for approach 2; of several runs of one size in one budget, the one of lowest loss counts.
      noise: standard deviation of the loss between seeds, in the unit of the loss; 0 for none.
      draws: number of draws of the noise.
      at: FLOPs at which the bias is stated.
    Raises:
      TableError: an unusable table, or fewer than two budgets with an optimum between their sizes.
    """
    noisy = _noisy_argmin(noise, draws, seed) if noise else None
    return _profile_frontier(
        "Akima argmin", select_points(table, parameters=1).table, akima_argmin, at, noisy, lowest=True
    )


def parabola_vertex(log_params: np.ndarray, loss: np.ndarray) -> float:
    """Log params at the vertex of the least-squares parabola; NaN where it opens downwards."""
    centre = log_params.mean()
    square, linear, _ = np.polyfit(log_params - centre, loss, 2)
    return centre - linear / (2 * square) if square > 0 else np.nan


def akima_argmin(log_params: np.ndarray, loss: np.ndarray) -> float:
    """Log params at the exact minimum of Akima's interpolation of log loss: the lowest of its stationary points and
    knots."""
    curve = Akima1DInterpolator(log_params, np.log(loss))
    candidates = np.append(log_params, curve.derivative().roots(extrapolate=False))
    return float(candidates[np.nanargmin(curve(candidates))])


def symmetric_bias(
    span: float, sizes: int = 15, *, alpha: float = ALPHA, beta: float = BETA, at: float = BIAS_FLOPS
) -> Bias:
    """Bias of approach 2 where each budget has `sizes` sizes in equal ratios from optimum / span to optimum * span.

    The vertex of every budget is then off by the same factor, so that the exponent is right and N* is not.
    """
    offsets = np.linspace(-np.log(span), np.log(span), sizes)
    shift = parabola_vertex(offsets, _surface_profile(offsets, alpha, beta))
    return Bias(at, float(np.expm1(shift)), float(np.expm1(-shift)), 0.0, alpha, beta)


def fit_power_law(flops: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> PowerLaw:
    """Fits a power law by weighted least squares of log values on log flops; weights are ones unless given."""
    root = None if weights is None else np.sqrt(weights)
    exponent, constant = np.polyfit(np.log(flops), np.log(values), 1, w=root)
    return PowerLaw(float(np.exp(constant)), float(exponent))


def _surface_profile(offsets: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Loss of a Chinchilla surface along flops = 6 N D, as a function of log(N / N*).

    At the optimum alpha A N*^-alpha = beta B D*^-beta, so that with the common factor left out the two terms are
    beta e^(-alpha offset) and alpha e^(beta offset). The irreducible loss is as large as both at the optimum.
    """
    return beta * np.exp(-alpha * offsets) + alpha * np.exp(beta * offsets) + alpha + beta


def _profile_frontier(
    name: str,
    points: pd.DataFrame,
    minimum: Minimum,
    at: float,
    noisy: MedianAndStd | None = None,
    *,
    lowest: bool = False,
) -> Frontier:
    """The frontier by IsoFLOP profiles.

    Args:
      minimum: maps (log params, loss) of one budget to the log params of its optimum, or NaN.
      noisy: maps the same to the median and the standard deviation of the optimum under noise.
      lowest: whether only the lowest loss counts of several runs of one size in one budget.
    """
    budgets = [_lowest_per_size(budget) if lowest else budget for budget in _split_budgets(points)]
    rows, skipped, shifts = [], [], []
    for budget in budgets:
        log_params, loss = np.log(budget["params"].to_numpy()), budget["loss"].to_numpy()
        flops = float(np.exp(np.log(budget["flops"]).mean()))
        best = minimum(log_params, loss) if budget["params"].nunique() >= 3 else np.nan
        inside = log_params.min() < best < log_params.max()
        median, std = noisy(log_params, loss) if noisy and inside else (best, np.nan)
        if not (inside and np.isfinite(median)):
            skipped.append(flops)
            continue
        log_tokens, log_loss = (np.interp(median, log_params, np.log(budget[key])) for key in ("tokens", "loss"))
        rows.append((flops, np.exp(median), np.exp(log_tokens), np.exp(log_loss), std))
        shifts.append(_vertex_shift(log_params - best, minimum))
    if len(rows) < 2:
        raise TableError(
            f"{name}: {len(rows)} of {len(budgets)} FLOPs budgets have three sizes and the optimum between them, at "
            "least 2 are needed; add sizes on both sides of the optimum"
        )
    frontier = _make_frontier(name, np.array(rows), tuple(skipped), weighted=noisy is not None)
    # The shift of the optimum, log(found / true), is continued linearly in log FLOPs to the FLOPs of the bias.
    exponent, constant = np.polyfit(np.log(frontier.flops), shifts, 1)
    shift = constant + exponent * np.log(at)
    return replace(frontier, bias=Bias(at, float(np.expm1(shift)), float(np.expm1(-shift)), float(exponent)))


def _make_frontier(name: str, rows: np.ndarray, skipped: tuple[float, ...], *, weighted: bool) -> Frontier:
    """A frontier with its power laws. rows: [budgets, 5], flops, params, tokens, loss, standard deviation of log N*."""
    flops, params, tokens, loss, std = (tuple(map(float, column)) for column in rows.T)
    weights = rows[:, 4] ** -2.0 if weighted else None
    params_law, tokens_law = (fit_power_law(rows[:, 0], rows[:, column], weights) for column in (1, 2))
    return Frontier(name, flops, params, tokens, loss, params_law, tokens_law, std if weighted else (), skipped)


def _vertex_shift(offsets: np.ndarray, minimum: Minimum) -> float:
    """log(found / true optimum) on a noise-free surface, when the optimum is found where it was in the user's grid.

    The true optimum within the grid is unknown: a fixed-point iteration moves the grid along the surface until the
    method finds its optimum at the place in the grid where it found that of the data.

    Args:
      offsets: log(N / found N) of the grid's sizes.
    """
    shift = 0.0
    for _ in range(50):
        shift = minimum(offsets + shift, _surface_profile(offsets + shift, ALPHA, BETA))
    return shift


def _noisy_argmin(noise: float, draws: int, seed: int) -> MedianAndStd:
    """A function of (log params, loss) that returns median and standard deviation of the argmin under noise, or NaN."""
    random = np.random.default_rng(seed)

    def median_and_std(log_params: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
        fine = np.linspace(log_params.min(), log_params.max(), SUBDIVISIONS * (len(log_params) - 1))
        noisy = loss[:, None] + noise * random.standard_normal((len(loss), draws))
        best = np.argmin(Akima1DInterpolator(log_params, np.log(noisy))(fine), axis=0)
        inside = fine[best[(best > 0) & (best < len(fine) - 1)]]  # log params of the interior argmins
        floor = MIN_SPACINGS * SUBDIVISIONS * (fine[1] - fine[0])
        enough = len(inside) >= draws / 2
        return (np.median(inside), max(inside.std(), floor) * draws / len(inside)) if enough else (np.nan, np.nan)

    return median_and_std


def budget_warnings(table: pd.DataFrame) -> list[str]:
    """A warning where runs are grouped by 6 params tokens, or by flops, though another column holds their budgets.

    Such a column is named as one of FLOPs, compute or a budget, has at least two values, each of three rows or more,
    and every value lies within MAX_BUDGET_FACTOR of 6 params tokens.

    table: columns params (or params_matmul) and tokens, and perhaps flops.
    """
    own = "flops" if "flops" in table else "6 params tokens"
    params = table["params"] if "params" in table else table.get(DEFAULT_PARAMS_COLUMN)
    if params is None or "tokens" not in table:
        return []
    flops = pd.to_numeric(table[own] if own in table else 6 * params * table["tokens"], errors="coerce")
    for name in (str(column) for column in table if _BUDGET_NAME.search(str(column)) and column not in COLUMNS):
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        counts = values.value_counts()
        ratio = values / flops
        is_budget = len(counts) >= 2 and counts.min() >= 3 and len(counts) < len(table) / 2
        if not is_budget or not ratio.between(1 / MAX_BUDGET_FACTOR, MAX_BUDGET_FACTOR).all():
            continue
        group = (flops.sort_values().pct_change() > SAME_BUDGET).cumsum()
        groups = int(group.iloc[-1]) + 1
        pairs = len(pd.DataFrame({"group": group, "value": values}).drop_duplicates())
        if own == "flops" and groups == pairs == len(counts):
            continue  # the budgets of both columns hold the same runs
        return [
            f"runs are grouped into {groups} budgets by {own}, and the table has a column {name} with {len(counts)} "
            f"values of about that size: --columns flops={name} groups by it"
        ]
    return []


def _split_budgets(points: pd.DataFrame) -> list[pd.DataFrame]:
    """Splits runs, in order of training FLOPs, wherever FLOPs rise by more than SAME_BUDGET; each group by size."""
    ordered = points.sort_values(["flops", "params"], kind="stable")
    label = (ordered["flops"].pct_change() > SAME_BUDGET).cumsum()
    return [group.sort_values("params", kind="stable") for _, group in ordered.groupby(label)]


def _lowest_per_size(budget: pd.DataFrame) -> pd.DataFrame:
    """The run of lowest loss of each size, sorted by size."""
    return budget.sort_values("loss", kind="stable").drop_duplicates("params").sort_values("params")


def _envelope(points: pd.DataFrame, bins: int) -> Frontier:
    """The frontier by approach 1, without its bias. log_loss and log_tokens are [sizes, bins]."""
    sizes = np.sort(points["params"].unique())
    flops = np.geomspace(points["flops"].min(), points["flops"].max(), bins)
    log_loss, log_tokens = np.empty((2, len(sizes), bins))
    for i, size in enumerate(sizes):
        curve = np.log(points[points["params"] == size].groupby("flops")[["tokens", "loss"]].min().reset_index())
        for name, rows in (("loss", log_loss), ("tokens", log_tokens)):
            rows[i] = np.interp(np.log(flops), curve["flops"], curve[name], left=np.nan, right=np.nan)
    best = np.argmin(np.where(np.isnan(log_loss), np.inf, log_loss), axis=0)
    is_contested = np.isfinite(log_loss).sum(axis=0) > 1  # [bins]: more than one size has a curve there
    used_bins = np.flatnonzero(is_contested & (best > 0) & (best < len(sizes) - 1))
    if len(np.unique(best[used_bins])) < 2:
        raise TableError(
            f"approach 1: of {len(sizes)} sizes fewer than 2 between the smallest and the largest win at any FLOPs; "
            "it needs training curves, or many horizons a size, that overlap in FLOPs"
        )
    at = best[used_bins], used_bins
    columns = (
        flops[used_bins],
        sizes[best[used_bins]],
        np.exp(log_tokens[at]),
        np.exp(log_loss[at]),
        np.full(len(used_bins), np.nan),
    )
    return _make_frontier("approach 1 (envelope)", np.stack(columns, axis=1), (), weighted=False)


def _envelope_bias(points: pd.DataFrame, frontier: Frontier, bins: int, at: float) -> Bias | None:
    """The bias of approach 1: its error on the same (params, tokens) of a noise-free surface.

    The surface has the optimum of the frontier at its middle budget. None where fewer than two interior sizes are best.
    """
    middle = float(np.exp(np.log(frontier.flops).mean()))
    a = BETA / (ALPHA + BETA)
    factor = frontier.params_law(middle) / (middle / 6) ** a  # G of N* = G (C/6)^a

    best = factor * (at / 6) ** a
    params, tokens = points["params"].to_numpy(), points["tokens"].to_numpy()
    loss = 1 + BETA * factor**ALPHA * params**-ALPHA + ALPHA * factor**-BETA * tokens**-BETA
    try:
        planted = _envelope(points.assign(loss=loss, flops=6 * params * tokens), bins)
    except TableError:
        return None
    errors = float(planted.params_law(at) / best - 1), float(planted.tokens_law(at) / (at / 6 / best) - 1)
    return Bias(at, *errors, planted.params_law.exponent - a)
