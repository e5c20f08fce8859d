"""Intervals of parameters from the objective itself: profile likelihood, and the sandwich approximation to it.

A profile fixes one parameter at each of a series of values and refits the others. Its interval ends where the objective
of the refits has risen by more than chance allows. The allowed rise is the F quantile of the likelihood ratio, scaled
by the ratio of the sandwich variance to the inverse curvature (Kent 1982), so that it holds for robust objectives too;
for squares of equal noise it is the likelihood ratio's own. The curvature is that of a shift of the residuals by their
own spread, since a Huber zone of 1e-3 contains few of them. The allowed rise is never less than that of the
likelihood with one noise level for all points (normal for squares, Laplace for robust objectives). An interval that
reaches the last value tried is open at that end. Used by `scaling fit --profile`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from analysis.fitting.fit import Fit, Objective, refit_from_starts
from analysis.fitting.newton import Box, log_prediction_jacobian, theta_from_values, values_from_theta
from analysis.laws import Columns

VALUES_PER_SIDE = 21  # values at which a parameter is fixed, on either side of its fitted value
FIRST_WIDTH = 6.0  # standard errors that they span on either side
MAX_WIDENINGS = 3  # series of values tried: each side spans four times as much as before while its end is open
REFINEMENT, REFINEMENT_ROUNDS = 5, 2  # values added between the two that an end lies between, and how often
MIN_ERROR, MAX_ERROR = 1e-9, 1.0  # standard errors are clipped to this range before they set the span
NEGLIGIBLE_DECREASE = (
    1e-2  # share of the allowed rise: refits from neighbours stop when they lower no objective by more
)
MAX_LEVERAGE = 0.9  # leverages are clipped to it, because HC3 divides by one minus the leverage


class _Points(NamedTuple):
    """What a fit was fitted to: the law's columns, the response, and the weights, [points] each."""

    columns: dict[str, np.ndarray]
    response: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class ParameterProfile:
    """The objective as a function of one parameter, minimised over the others.

    values: those at which the parameter was fixed, ascending. objective: of the best refit of the others at each.
    threshold: the objective at the ends of the interval. low, high: those ends; infinite where the objective does not
    reach the threshold within the values tried or the parameter's bounds.
    """

    parameter: str
    values: np.ndarray
    objective: np.ndarray
    threshold: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return bool(self.low <= value <= self.high)

    def to_json(self) -> str:
        """The profile as JSON; open ends are null."""
        ends = {name: float(v) if np.isfinite(v) else None for name, v in (("low", self.low), ("high", self.high))}
        curve = {"values": self.values.tolist(), "objective": self.objective.tolist()}
        return json.dumps({"parameter": self.parameter, **ends, "threshold": self.threshold, **curve})

    def __repr__(self) -> str:
        ends = [f"{end:.4g}" if np.isfinite(end) else "open" for end in (self.low, self.high)]
        return f"ParameterProfile({self.parameter}: {ends[0]} to {ends[1]})"


def sandwich_errors(fit: Fit, columns: Columns, response: Any, weights: Any = None) -> np.ndarray:
    """Standard errors of theta by the sandwich estimator, the quadratic approximation to profiles: [parameters].

    Those of the logarithm of a parameter that the law bounds above zero; 0 for fixed parameters.

    Args:
      columns, response, weights: what the fit was fitted to; weights are ones unless given.
    """
    free = np.array([name not in fit.fixed for name in fit.law.parameters])
    errors = np.zeros(len(free))
    errors[free] = np.sqrt(np.diag(_sandwich(fit, _points(fit, columns, response, weights))[0]))
    return errors


def sandwich_intervals(fit: Fit, columns: Columns, response: Any, level: float = 0.9) -> np.ndarray:
    """Intervals of plus or minus t standard errors in theta, as parameter values: [parameters, 2]."""
    theta = theta_from_values(fit.law, fit.vector())
    freedom = max(len(np.asarray(response)) - len(theta) + len(fit.fixed), 1)
    half = stats.t.ppf((1 + level) / 2, freedom) * sandwich_errors(fit, columns, response)
    return np.stack([values_from_theta(fit.law, theta - half), values_from_theta(fit.law, theta + half)], 1)


def profile_parameters(
    fit: Fit,
    columns: Columns,
    response: Any,
    parameters: tuple[str, ...] | None = None,
    level: float = 0.9,
    *,
    weights: Any = None,
) -> list[ParameterProfile]:
    """Profiles of parameters, with intervals of nominal probability `level`.

    Args:
      columns, response, weights: what the fit was fitted to; weights are ones unless given.
      parameters: names of free parameters; all of them unless given.
    """
    points = _points(fit, columns, response, weights)
    names = parameters or tuple(name for name in fit.law.parameters if name not in fit.fixed)
    errors = sandwich_errors(fit, columns, response, weights)
    profiles = []
    for name in names:
        index = fit.law.parameters.index(name)
        widths = np.full(2, FIRST_WIDTH * np.clip(errors[index], MIN_ERROR, MAX_ERROR))
        for _ in range(MAX_WIDENINGS):
            profile = _profile_one(fit, points, index, widths, level)
            is_open = ~np.isfinite([profile.low, profile.high])
            if not is_open.any():
                break
            widths = np.where(is_open, 4 * widths, widths)
        profiles.append(profile)
    return profiles


def _points(fit: Fit, columns: Columns, response: Any, weights: Any) -> _Points:
    x = {name: np.asarray(columns[name], float) for name in fit.law.columns}
    y = np.asarray(response, float)
    return _Points(x, y, np.ones(len(y)) if weights is None else np.asarray(weights, float))


def _profile_one(fit: Fit, points: _Points, index: int, widths: np.ndarray, level: float) -> ParameterProfile:
    """The profile of parameter number `index`, tried over `widths` [2] of theta below and above its fitted value."""
    theta = theta_from_values(fit.law, fit.vector())
    middle = theta[index]
    least, most = np.clip(middle + widths * np.array([-1, 1]), fit.box.low[0, index], fit.box.high[0, index])
    grid = np.union1d(np.linspace(least, middle, VALUES_PER_SIDE), np.linspace(middle, most, VALUES_PER_SIDE))
    rise = _allowed_rise(fit, points, index, level)
    best, values = _refit_at_values(
        fit, points, index, grid, np.tile(fit.vector(), (len(grid), 1)), NEGLIGIBLE_DECREASE * rise
    )
    for _ in range(REFINEMENT_ROUNDS):
        # Values are added where the objective crosses the threshold, each searched from the refit nearest to it.
        outside = values > min(fit.objective_value, float(values.min())) + rise
        change = np.flatnonzero(outside[1:] != outside[:-1])
        refined_grid = np.union1d(grid, np.linspace(grid[change], grid[change + 1], REFINEMENT + 2))
        nearest = np.argmin(np.abs(refined_grid[:, None] - grid), axis=1)
        grid, (best, values) = (
            refined_grid,
            _refit_at_values(fit, points, index, refined_grid, best[nearest], NEGLIGIBLE_DECREASE * rise),
        )
    threshold = min(fit.objective_value, float(values.min())) + rise
    ends = _natural_ends(fit, index, *_crossings(grid, values, threshold))
    fixed_at = values_from_theta(fit.law, np.where(np.arange(len(theta)) == index, grid[:, None], theta))[:, index]
    return ParameterProfile(fit.law.parameters[index], fixed_at, values, threshold, *ends)


def _allowed_rise(fit: Fit, points: _Points, index: int, level: float) -> float:
    """How far the objective rises, with probability `level` at most, when a parameter is fixed at its true value.

    In units of the noise, twice the rise of a sum of rho (of r^2 / 2) is F-distributed with 1 and `freedom` degrees of
    freedom. The noise is the ratio of sandwich to inverse curvature, or the objective per degree of freedom if larger.
    """
    free = [name for name in fit.law.parameters if name not in fit.fixed]
    covariance, inverse = _sandwich(fit, points)
    at = free.index(fit.law.parameters[index])
    freedom = max(len(points.response) - len(free), 1)
    # Squares are summed without the factor 1/2 of Huber's function.
    units = 1.0 if fit.objective.delta is None and not fit.objective.is_absolute else 0.5
    noise = max(covariance[at, at] / inverse[at, at], fit.objective_value / freedom)
    return float(stats.f.ppf(level, 1, freedom) * units * noise)


def _refit_at_values(
    fit: Fit, points: _Points, index: int, grid: np.ndarray, starts: np.ndarray, min_decrease: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fixes a parameter at each theta of a grid and refits the others: values [grid, parameters], objectives [grid].

    Far from the optimum the fit's own values are a poor start, so each refit is followed by two that start from the
    refits of its neighbours in the grid, until none is lowered by `min_decrease`.
    """
    low, high = (np.repeat(bound, len(grid), axis=0) for bound in fit.box)
    low[:, index] = high[:, index] = grid
    at = np.arange(len(grid))
    best, lowest_objectives = starts, np.full(len(grid), np.inf)
    start_sets = [starts]
    for _ in grid:
        box = Box(np.tile(low, (len(start_sets), 1)), np.tile(high, (len(start_sets), 1)))
        values, objectives = refit_from_starts(
            fit.law, fit.objective, np.concatenate(start_sets), *points[:2], points.weights[None], box
        )
        objectives = np.where(np.isfinite(objectives), objectives, np.inf).reshape(len(start_sets), -1)
        lowest = np.argmin([lowest_objectives, *objectives], axis=0)
        before, lowest_objectives = lowest_objectives, np.min([lowest_objectives, *objectives], axis=0)
        best = np.stack([best, *values.reshape(len(start_sets), len(grid), -1)])[lowest, at]
        if not np.any(lowest_objectives < before - min_decrease):
            break
        start_sets = [best[np.maximum(at - 1, 0)], best[np.minimum(at + 1, len(grid) - 1)]]
    return best, lowest_objectives


def _natural_ends(fit: Fit, index: int, low: float, high: float) -> tuple[float, float]:
    """Ends in theta as values of the parameter; an open end stays infinite."""
    is_log = fit.law.bounds[fit.law.parameters[index]][0] > 0
    closed = [float(np.exp(end)) if is_log and np.isfinite(end) else end for end in (low, high)]
    return closed[0], closed[1]


def _crossings(grid: np.ndarray, values: np.ndarray, threshold: float) -> tuple[float, float]:
    """Where the objective first and last crosses the threshold, by linear interpolation in the grid; infinite where the
    end of the grid lies below the threshold."""
    inside = np.flatnonzero(values <= threshold)
    first, last = int(inside[0]), int(inside[-1])

    def crossing(inner: int, outer: int) -> float:
        share = (threshold - values[inner]) / (values[outer] - values[inner])
        return float(grid[inner] + share * (grid[outer] - grid[inner]))

    low = -np.inf if first == 0 else crossing(first, first - 1)
    high = np.inf if last == len(grid) - 1 else crossing(last, last + 1)
    return low, high


def _sandwich(fit: Fit, points: _Points) -> tuple[np.ndarray, np.ndarray]:
    """(covariance of the free entries of theta, inverse curvature of the objective), [free, free] each.

    The covariance is inverse @ meat @ inverse. The meat sums the squared slope of each point, with its own residual, so
    that noise may differ between points, divided by one minus its leverage (HC3: MacKinnon & White 1985). The curvature
    sums J'J weighted by how each slope changes with a shift of the residual, a kernel estimate (Powell 1991).
    """
    x, y, weights = points
    predicted = fit.predict(x)
    jacobian = log_prediction_jacobian(fit.law, theta_from_values(fit.law, fit.vector()), x)
    jacobian = jacobian if fit.objective.is_log else jacobian * predicted[:, None]
    jacobian = jacobian[:, [name not in fit.fixed for name in fit.law.parameters]]
    length = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    scaled = jacobian / length
    slope, curvature = (weights * each for each in _influence(fit.objective, fit.objective.residuals(predicted, y)))
    inverse = np.linalg.pinv(scaled.T @ (curvature[:, None] * scaled), rcond=1e-14)
    # Leverage of point p: curvature_p j_p' inverse j_p, j_p being its row of the scaled Jacobian (i, j: parameters).
    leverage = np.clip(np.einsum("pi,ij,pj,p->p", scaled, inverse, scaled, curvature), 0.0, MAX_LEVERAGE)
    meat = scaled.T @ ((slope / (1 - leverage))[:, None] ** 2 * scaled)
    scale = np.outer(length, length)
    return inverse @ meat @ inverse / scale, inverse / scale


def _influence(objective: Objective, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """psi = rho' at each residual (r for squares), and its mean derivative over a shift of the residual: [points] each.

    The shift is the spread of the residuals times points^(-1/5), half of Huber's delta at least.
    """

    def psi(r: np.ndarray) -> np.ndarray:
        if objective.is_absolute:
            return np.sign(r)
        return r if objective.delta is None else np.clip(r, -objective.delta, objective.delta)

    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    shift = max(spread * len(residuals) ** (-1 / 5), (objective.delta or 0.0) / 2, 1e-12)
    curvature = (psi(residuals + shift) - psi(residuals - shift)) / (2 * shift)
    return psi(residuals), curvature
