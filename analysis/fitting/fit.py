"""Fits of a law to points, from every start of a grid at once.

The objective is the SUM over points; its mean stops optimisers early (Besiroglu et al. 2024). Parameters that a law
bounds above zero are searched in their logarithm, which for a law that is a sum of powers is the log-sum-exp form of
Hoffmann et al. 2022. Parameters in which the law is linear start from a non-negative least-squares projection.
Resamples are weights on the points. Search coordinates are called theta (analysis.fitting.newton).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.fitting.identifiability import condition_ratio, describe_unidentified
from analysis.fitting.least_absolute import descend_to_vertex
from analysis.fitting.newton import (
    LARGE_TABLE,
    Box,
    Problems,
    log_prediction_jacobian,
    solve,
    theta_from_values,
    values_from_theta,
)
from analysis.fitting.objective import LAD_ZONE, Objective, huber, lad, mse, mse_log
from analysis.fitting.variable_projection import project_linear
from analysis.laws import Columns, Law

__all__ = [
    "Fit",
    "Objective",
    "compute_weights",
    "fit_each_weighting",
    "fit_law",
    "huber",
    "lad",
    "mse",
    "mse_log",
    "refit",
    "refit_from_starts",
    "refit_with_objectives",
]

# Widths of Huber's zone to go through, in units of delta: from a start of the grid, and from near the optimum.
COLD_ZONES, WARM_ZONES = (100.0, 10.0, 3.0, 1.0), (3.0, 1.0)
MAX_STARTS = 32  # starts of a grid that are searched: those of the lowest objective
MAX_SEARCHED_POINTS = 2048
"""Points on which starts are searched where a table has more than LARGE_TABLE; the best is then refined on all."""
MAX_STARTS_PER_ROW = 10  # the same where many weightings are fitted at once
SAME_OPTIMUM = 1e-6  # relative difference from the best objective within which a start counts as having reached it


@dataclass(frozen=True)
class Fit:
    """A law's fitted values, and diagnostics of the search that found them."""

    law: Law
    values: Mapping[str, float]
    objective: Objective
    objective_value: float
    starts: int
    starts_at_optimum: int
    """How many starts ended within SAME_OPTIMUM of the best objective."""
    bounds_hit: tuple[str, ...]
    identifiability_warning: str
    """Which parameters the points do not determine, why, and a run to add; empty when they determine all."""
    condition_ratio: float
    """Smallest over largest singular value of the Jacobian of log predictions, columns scaled to unit length."""
    points: int
    fixed: tuple[str, ...] = ()
    box: Box = field(default=Box(np.zeros(0), np.zeros(0)), repr=False)

    def predict(self, columns: Columns) -> np.ndarray:
        """Predictions of the response, [points]."""
        return self.law(self.values, columns)

    def residuals(self, columns: Columns, response: Any) -> np.ndarray:
        """Log of measured over predicted, [points]."""
        return np.log(np.asarray(response) / self.predict(columns))

    def vector(self) -> np.ndarray:
        """Values in the order of law.parameters, [parameters]."""
        return np.array([self.values[name] for name in self.law.parameters])

    def warnings(self) -> list[str]:
        """Doubts about the fit: a parameter at a bound, parameters undetermined, an optimum that few starts reached."""
        notes = []
        if self.bounds_hit:
            names = ", ".join(self.bounds_hit)
            notes.append(f"the optimum is at a bound of {names}; widen it with --bound NAME=LOW:HIGH")
        if self.identifiability_warning:
            notes.append(self.identifiability_warning)
        if self.starts_at_optimum < max(2, self.starts // 20):
            notes.append(f"only {self.starts_at_optimum} of {self.starts} starts reached the optimum")
        return notes

    def facts(self) -> dict[str, Any]:
        """The fit as JSON, under the keys that fit.json has."""
        delta = self.objective.delta
        return {
            "law": self.law.name,
            "formula": self.law.describe(self.values),
            "source": self.law.source,
            "objective": {"name": self.objective.name, "delta": delta, "value": self.objective_value},
            "parameters": dict(self.values),
            "fixed": list(self.fixed),
            "bounds_hit": list(self.bounds_hit),
            "warnings": self.warnings(),
            "n": self.points,
            "starts": self.starts,
            "reached": self.starts_at_optimum,
            "conditioning": self.condition_ratio,
        }

    def to_json(self) -> str:
        return json.dumps(self.facts(), indent=1)

    def __repr__(self) -> str:
        o = self.objective
        width = "" if o.delta is None else f" (delta {o.delta:g})"
        law = self.law.describe(self.values)
        return f"Fit({law}; {o.name}{width} {self.objective_value:.6g} over {self.points} points)"


def fit_law(
    law: Law,
    columns: Columns,
    response: Any,
    objective: Objective | None = None,
    *,
    weights: Any = None,
    fixed: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Fit:
    """Fits a law to points and returns the best minimum over the starts of its grid.

    Args:
      columns: an array [points] for each of law.columns, positive; params and tokens are counts.
      response: measured values of law.response, [points], positive.
      objective: Huber of log residuals with delta 1e-3 unless given.
      weights: a factor on each point's term, [points]; 1 unless given. See compute_weights.
      fixed: parameters that keep a given value.
      bounds: lowest and highest values, in place of the law's own. A parameter that the law bounds above zero stays
        above the law's lower bound.
    Raises:
      ValueError: fixed or bounds name a parameter that the law lacks, or leave one an empty range; or no start has a
        finite objective.
    """
    objective = objective or huber()
    x, y = _points(law, columns, response)
    weight = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    box = law_box(law, fixed or {}, bounds or {})
    sample = searched_points(len(y))
    sample_x, sample_y, sample_weight = {name: column[sample] for name, column in x.items()}, y[sample], weight[sample]
    all_starts = _starts(law, sample_x, sample_y, sample_weight, box)
    starts = _lowest_starts(law, objective, sample_x, sample_y, sample_weight, all_starts, MAX_STARTS)
    problems = Problems(starts, sample_weight[None], sample_y[None], box)
    thetas, values = solve(law, objective.is_log, sample_x, problems, objective.zone_widths(COLD_ZONES))
    if not np.isfinite(values).any():
        raise ValueError(f"{law.name}: no start gave a finite objective; are all columns positive and in plain counts?")
    best = int(np.nanargmin(values))
    theta = thetas[best]
    if len(sample) < len(y):
        problem = Problems(theta[None], weight[None], y[None], box)
        theta = solve(law, objective.is_log, x, problem, objective.zone_widths(WARM_ZONES))[0][0]
    elif objective.is_absolute:
        theta = descend_to_vertex(law, objective.is_log, x, y, weight, theta, box)
    low, high = box.low[0], box.high[0]
    free = low < high
    at_bound = free & ((theta <= low + 1e-9) | (theta >= high - 1e-9))
    vector = values_from_theta(law, theta)
    named = dict(zip(law.parameters, map(float, vector), strict=True))
    return Fit(
        law=law,
        values=named,
        objective=objective,
        objective_value=objective.value(objective.residuals(law(named, x), y), weight),
        starts=len(starts),
        starts_at_optimum=int(np.sum(values <= values[best] * (1 + SAME_OPTIMUM) + 1e-20)),
        bounds_hit=tuple(n for n, hit in zip(law.parameters, at_bound, strict=True) if hit),
        identifiability_warning=describe_unidentified(law, theta, x, y, free & ~at_bound),
        condition_ratio=condition_ratio(log_prediction_jacobian(law, theta, x)[:, free]),
        points=len(y),
        fixed=tuple(n for n, is_free in zip(law.parameters, free, strict=True) if not is_free),
        box=box,
    )


def fit_each_weighting(
    law: Law,
    columns: Columns,
    response: Any,
    objective: Objective,
    weights: np.ndarray,
    *,
    fixed: Mapping[str, float] | None = None,
    keep: int = MAX_STARTS_PER_ROW,
    refine: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits a law anew for each row of weights, as hold-outs, windows and weightings of one table.

    Args:
      weights: [rows, points]; 0 leaves a point out.
      keep: how many starts of the grid are searched for each row, those of the lowest objective.
      refine: whether values that were searched on a sample of a large table are refined on all its points.
    Returns:
      Values, [rows, parameters], NaN where no start has a finite objective; and the objectives as the solver has them
      (up to a constant factor), [rows], infinite there.
    """
    x, y = _points(law, columns, response)
    box = law_box(law, fixed or {}, {})
    all_points, all_weights = (x, y), weights
    sample = searched_points(len(y))
    x, y, weights = {name: column[sample] for name, column in x.items()}, y[sample], weights[:, sample]
    rows = []
    for weight in weights:
        rows.append(_lowest_starts(law, objective, x, y, weight, _starts(law, x, y, weight, box), keep))
    lengths = [len(starts) for starts in rows]
    problems = Problems(np.concatenate(rows), np.repeat(weights, lengths, axis=0), y[None], box)
    thetas, values = solve(law, objective.is_log, x, problems, objective.zone_widths(COLD_ZONES))
    values = np.where(np.isfinite(values), values, np.inf)
    ends = np.cumsum(lengths)
    best = [
        end - length + int(np.argmin(values[end - length : end])) for end, length in zip(ends, lengths, strict=True)
    ]
    thetas, values = thetas[best], values[best]
    if refine and len(sample) < len(all_points[1]):
        x, y = all_points
        problems = Problems(thetas, all_weights, y[None], box)
        thetas, values = solve(law, objective.is_log, x, problems, objective.zone_widths(WARM_ZONES))
    return np.where(np.isfinite(values)[:, None], values_from_theta(law, thetas), np.nan), values


def searched_points(count: int) -> np.ndarray:
    """Indices of the points on which starts are searched: all, or of a large table a random sample, always the same."""
    if count <= LARGE_TABLE:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MAX_SEARCHED_POINTS, replace=False))


def refit(fit: Fit, columns: Columns, response: Any, weights: Any = None, *, box: Box | None = None) -> np.ndarray:
    """Fits the law to other problems, each searched from the values of a fit: [problems, parameters].

    Args:
      response: [points], or [problems, points] for simulated responses.
      weights: [problems, points]; ones unless given.
      box: bounds of theta, one row per problem, as profiles need; the fit's own unless given.
    """
    return refit_with_objectives(fit, columns, response, weights, box=box)[0]


def refit_with_objectives(
    fit: Fit, columns: Columns, response: Any, weights: Any = None, *, box: Box | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `refit`, with the objectives: values [problems, parameters], objectives [problems]."""
    count = max(
        len(np.atleast_2d(response)), 1 if weights is None else len(weights), 1 if box is None else len(box.low)
    )
    starts = np.tile(fit.vector(), (count, 1))
    return refit_from_starts(fit.law, fit.objective, starts, columns, response, weights, box or fit.box)


def refit_from_starts(
    law: Law,
    objective: Objective,
    starts: np.ndarray,
    columns: Columns,
    response: Any,
    weights: Any = None,
    box: Box | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Solves problems that start near their optimum: values [problems, parameters], objectives [problems].

    Args:
      starts: parameter values, [problems, parameters].
      response: [points], or [problems, points].
      weights: [problems, points]; ones unless given.
      box: bounds of theta, one row, or one per problem; the law's own unless given.
    """
    x, y = _points(law, columns, np.atleast_2d(np.asarray(response, np.float64)))
    weights = np.ones((1, y.shape[1])) if weights is None else np.asarray(weights, np.float64)
    problems = Problems(theta_from_values(law, starts), weights, y, box or law_box(law, {}, {}))
    thetas, values = solve(law, objective.is_log, x, problems, objective.zone_widths(WARM_ZONES))
    # The solver minimises Huber's function, LAD_ZONE |r| for least absolute deviations and r^2 / 2 for squares.
    scale = 1 / LAD_ZONE if objective.is_absolute else 2.0 if objective.delta is None else 1.0
    return values_from_theta(law, thetas), values * scale


def compute_weights(flops: Any, power: float) -> np.ndarray:
    """Weights (C / Cmax)^power, scaled to mean 1: more weight on the runs nearest to the target of a forecast."""
    flops = np.asarray(flops, np.float64)
    weights = (flops / flops.max()) ** power
    return weights / weights.mean()


def _points(law: Law, columns: Columns, response: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {name: np.asarray(columns[name], np.float64) for name in law.columns}, np.asarray(response, np.float64)


def law_box(law: Law, fixed: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> Box:
    """Bounds of theta, one row: the law's, or those given; both ends equal for a fixed parameter."""
    for name in (*fixed, *bounds):
        if name not in law.parameters:
            raise ValueError(f"{law.name} has no parameter {name}; it has {', '.join(law.parameters)}")
    ranges = []
    for name in law.parameters:
        low, high = law.bounds[name]
        if name in bounds:
            given_low, given_high = bounds[name]
            low, high = (max(given_low, low) if low > 0 else given_low), given_high
        if name in fixed:
            if law.bounds[name][0] > 0 >= fixed[name]:
                raise ValueError(f"{name} = {fixed[name]:g}: {law.name} needs it above zero")
            low = high = fixed[name]
        if not low <= high:
            raise ValueError(f"{name}: the range {low:g} to {high:g} is empty")
        ranges.append((low, high))
    low, high = np.array(ranges, np.float64).T
    return Box(theta_from_values(law, low)[None], theta_from_values(law, high)[None])


def _starts(law: Law, x: Mapping[str, np.ndarray], y: np.ndarray, weight: np.ndarray, box: Box) -> np.ndarray:
    """theta of every start of the law, with its linear parameters solved for, within the box: [starts, parameters]."""
    if callable(law.starts):
        weighted = SimpleNamespace(**{name: column[weight > 0] for name, column in x.items()})
        values = {name: np.asarray(v, np.float64) for name, v in law.starts(weighted, y[weight > 0]).items()}
    else:
        grid = np.array(list(itertools.product(*law.starts.values())), np.float64)
        values = dict(zip(law.starts, grid.T, strict=True))
    count = len(next(iter(values.values())))
    fixed = {
        n: float(values_from_theta(law, box.low[0])[i])
        for i, n in enumerate(law.parameters)
        if box.low[0, i] == box.high[0, i]
    }
    values |= {name: np.full(count, value) for name, value in fixed.items()}
    linear = tuple(name for name in law.linear_in if name not in fixed)
    if linear:
        values |= project_linear(law, linear, values, x, y, weight)
    stacked = np.stack([values[name] for name in law.parameters], 1)
    return np.unique(np.clip(theta_from_values(law, stacked), box.low, box.high), axis=0)


def _lowest_starts(
    law: Law,
    objective: Objective,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
    starts: np.ndarray,
    keep: int,
) -> np.ndarray:
    """The `keep` starts of lowest objective, or all when there are no more: [starts, parameters], theta."""
    if len(starts) <= keep:
        return starts
    vectors = values_from_theta(law, starts)
    with np.errstate(all="ignore"):
        predicted = law({name: vectors[:, [i]] for i, name in enumerate(law.parameters)}, x)
        values = np.array([objective.value(objective.residuals(row, y), weight) for row in predicted])
    return starts[np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")[:keep]]
