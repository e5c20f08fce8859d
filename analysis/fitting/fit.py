"""Estimators: a law fitted to points, from a full grid of starts, all at once.

The objective is the SUM over points (averaging it stops optimisers early: Besiroglu et al. 2024). Parameters that a
law bounds above zero are searched in their logarithm, which is the log-sum-exp form of a law that is a sum of powers;
those it is linear in start from a non-negative least-squares projection. Resamples are weights on points.
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
from analysis.fitting.newton import Box, Problems, log_prediction_jacobian, solve, theta_from_values, values_from_theta
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

COLD_ZONES, WARM_ZONES = (
    (100.0, 10.0, 3.0, 1.0),
    (3.0, 1.0),
)  # widths of the robust zone gone through, in units of delta
MAX_STARTS = 32  # starts kept of those that a law offers, the best by their objective
MAX_STARTS_PER_ROW = 10  # of them where many fits are made at once
SAME_OPTIMUM = 1e-6  # a start reached the optimum when its objective is this close, relatively


@dataclass(frozen=True)
class Fit:
    """A law's fitted values and how far to trust the search that found them."""

    law: Law
    values: Mapping[str, float]
    objective: Objective
    objective_value: float
    starts: int
    starts_at_optimum: int
    """Starts that ended within 1e-6 (relative) of the best objective."""
    bounds_hit: tuple[str, ...]
    identifiability_warning: str
    """Which parameters the points cannot tell apart, why, and which run would; empty when they can."""
    condition_ratio: float
    """Smallest over largest singular value of the Jacobian of log predictions, columns scaled to one length."""
    points: int
    fixed: tuple[str, ...] = ()
    box: Box = field(default=Box(np.zeros(0), np.zeros(0)), repr=False)

    def predict(self, columns: Columns) -> np.ndarray:
        return self.law(self.values, columns)

    def residuals(self, columns: Columns, response: Any) -> np.ndarray:
        """Log measured over predicted."""
        return np.log(np.asarray(response) / self.predict(columns))

    def vector(self) -> np.ndarray:
        """Values in the order of law.parameters."""
        return np.array([self.values[name] for name in self.law.parameters])

    def warnings(self) -> list[str]:
        """What a reader must know before quoting the values; empty when all is well."""
        notes = []
        if self.bounds_hit:
            notes.append(f"bound hit: {', '.join(self.bounds_hit)}; the points ask for a value outside the law's range")
        if self.identifiability_warning:
            notes.append(self.identifiability_warning)
        if self.starts_at_optimum < max(2, self.starts // 20):
            notes.append(f"only {self.starts_at_optimum} of {self.starts} starts reached the optimum")
        return notes

    def facts(self) -> dict[str, Any]:
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
    """The best fit over every start of the law's grid.

    Args:
      columns: one array for each of law.columns, positive; params as counts, tokens as counts.
      response: measured values of law.response, positive.
      objective: Huber of log residuals with delta 1e-3 unless given.
      weights: a factor on each point's term; 1 unless given. See compute_weights.
      fixed: parameters held at a value.
      bounds: ranges narrower (or wider) than the law's own. A parameter bounded above zero by the law stays so.
    Raises:
      ValueError: fixed or bounds name no parameter of the law, or leave it an empty range.
    """
    objective = objective or huber()
    x, y = _points(law, columns, response)
    weight = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    box = _box(law, fixed or {}, bounds or {})
    offered = _starts(law, x, y, weight, box)
    starts = _screened(law, objective, x, y, weight, offered, MAX_STARTS)
    thetas, values = solve(
        law, objective.is_log, x, Problems(starts, weight[None], y[None], box), objective.zone_widths(COLD_ZONES)
    )
    if not np.isfinite(values).any():
        raise ValueError(f"{law.name}: no start gave a finite objective; are all columns positive and in plain counts?")
    best = int(np.nanargmin(values))
    theta = thetas[best]
    if objective.is_absolute:
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
        fixed=tuple(n for n, loose in zip(law.parameters, free, strict=True) if not loose),
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
) -> tuple[np.ndarray, np.ndarray]:
    """A cold fit for each row of weights, as windows, hold-outs and weightings need: from the best `keep` starts each.

    Args:
      weights: [rows, points]; 0 leaves a point out.
    Returns:
      values [rows, parameters] and objectives as minimised [rows]; NaN where no start gave a finite one.
    """
    x, y = _points(law, columns, response)
    box = _box(law, fixed or {}, {})
    rows = []
    for weight in weights:
        rows.append(_screened(law, objective, x, y, weight, _starts(law, x, y, weight, box), keep))
    lengths = [len(starts) for starts in rows]
    problems = Problems(np.concatenate(rows), np.repeat(weights, lengths, axis=0), y[None], box)
    thetas, values = solve(law, objective.is_log, x, problems, objective.zone_widths(COLD_ZONES))
    values = np.where(np.isfinite(values), values, np.inf)
    ends = np.cumsum(lengths)
    best = [
        end - length + int(np.argmin(values[end - length : end])) for end, length in zip(ends, lengths, strict=True)
    ]
    found = np.where(np.isfinite(values[best])[:, None], values_from_theta(law, thetas[best]), np.nan)
    return found, values[best]


def refit(fit: Fit, columns: Columns, response: Any, weights: Any = None, *, box: Box | None = None) -> np.ndarray:
    """Values refitted to other problems, warm-started from a fit: [problems, parameters].

    Args:
      response: [points], or [problems, points] for simulated or jittered responses.
      weights: [problems, points]; ones unless given.
      box: rows of bounds, one a problem (profiles); the fit's own unless given.
    """
    return refit_with_objectives(fit, columns, response, weights, box=box)[0]


def refit_with_objectives(
    fit: Fit, columns: Columns, response: Any, weights: Any = None, *, box: Box | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """refit, and each problem's objective: [problems, parameters], [problems]."""
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
    """Values and objectives of problems that start near their optimum: [problems, parameters], [problems].

    Args:
      starts: values, [problems, parameters].
      response: [points], or [problems, points].
      weights: [problems, points]; ones unless given.
      box: one row, or one a problem; the law's own unless given.
    """
    x, y = _points(law, columns, np.atleast_2d(np.asarray(response, np.float64)))
    weights = np.ones((1, y.shape[1])) if weights is None else np.asarray(weights, np.float64)
    problems = Problems(theta_from_values(law, starts), weights, y, box or _box(law, {}, {}))
    thetas, values = solve(law, objective.is_log, x, problems, objective.zone_widths(WARM_ZONES))
    scale = 1 / LAD_ZONE if objective.is_absolute else 2.0 if objective.delta is None else 1.0
    return values_from_theta(law, thetas), values * scale


def compute_weights(flops: Any, power: float) -> np.ndarray:
    """Weights that grow with compute, (C / Cmax)^power: towards the target of a forecast. Mean 1."""
    flops = np.asarray(flops, np.float64)
    weights = (flops / flops.max()) ** power
    return weights / weights.mean()


def _points(law: Law, columns: Columns, response: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return {name: np.asarray(columns[name], np.float64) for name in law.columns}, np.asarray(response, np.float64)


def _box(law: Law, fixed: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> Box:
    """[1, parameters] each, as searched."""
    for name in (*fixed, *bounds):
        if name not in law.parameters:
            raise ValueError(f"{law.name} has no parameter {name}; it has {', '.join(law.parameters)}")
    ranges = []
    for name in law.parameters:
        low, high = law.bounds[name]
        if name in bounds:
            asked_low, asked_high = bounds[name]
            low, high = (max(asked_low, low) if low > 0 else asked_low), asked_high
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
    """Every start that the law offers, the linear parameters projected out: [starts, parameters], as searched."""
    if callable(law.starts):
        seen = SimpleNamespace(**{name: column[weight > 0] for name, column in x.items()})
        values = {name: np.asarray(v, np.float64) for name, v in law.starts(seen, y[weight > 0]).items()}
    else:
        grid = np.array(list(itertools.product(*law.starts.values())), np.float64)
        values = dict(zip(law.starts, grid.T, strict=True))
    count = len(next(iter(values.values())))
    held = {
        n: float(values_from_theta(law, box.low[0])[i])
        for i, n in enumerate(law.parameters)
        if box.low[0, i] == box.high[0, i]
    }
    values |= {name: np.full(count, value) for name, value in held.items()}
    linear = tuple(name for name in law.linear_in if name not in held)
    if linear:
        values |= project_linear(law, linear, values, x, y, weight)
    stacked = np.stack([values[name] for name in law.parameters], 1)
    return np.unique(np.clip(theta_from_values(law, stacked), box.low, box.high), axis=0)


def _screened(
    law: Law,
    objective: Objective,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
    starts: np.ndarray,
    keep: int,
) -> np.ndarray:
    """The best of many starts by their objective, all of few."""
    if len(starts) <= keep:
        return starts
    vectors = values_from_theta(law, starts)
    with np.errstate(all="ignore"):
        predicted = law({name: vectors[:, [i]] for i, name in enumerate(law.parameters)}, x)
        values = np.array([objective.value(objective.residuals(row, y), weight) for row in predicted])
    return starts[np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")[:keep]]
