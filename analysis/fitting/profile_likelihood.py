"""Intervals from the objective itself: profiles of each parameter, and the quick quadratic approximation to them.

A parameter is held at each of a row of values and the rest refitted; the interval ends where the objective has risen by
what chance allows. The rise is scaled by how the slopes of the points vary against how they answer to a shift (Kent
1982), which for squares of equal noise is the likelihood ratio; the answer is taken over a shift of the residuals' own
size, since a Huber zone of 1e-3 holds few of them. The rise is never taken to be less than what the likelihood of one
noise for all points allows (normal for squares, Laplace for robust objectives). An interval that reaches the end of
what was tried is open there.

Not in the design's list of modules: intervals.py resamples runs, this looks at the objective.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.fitting.fit import Fit, Objective, refit_from_starts
from analysis.fitting.newton import Box, log_prediction_jacobian, theta_from_values, values_from_theta
from analysis.laws import Columns

VALUES_PER_SIDE = 21  # values at which a parameter is held, to either side of its own
FIRST_WIDTH = 6.0  # standard errors to either side
MAX_WIDENINGS = 3  # rows of values tried, each side four times as wide as before while its end is open
REFINEMENT, REFINEMENT_ROUNDS = 5, 2  # values put between the two that an end lies between, and how often
MIN_ERROR, MAX_ERROR = 1e-9, 1.0  # standard errors believed
NEGLIGIBLE_DECREASE = 1e-2  # of the rise: neighbours that lower an objective by less are done
MAX_LEVERAGE = 0.9


@dataclass(frozen=True)
class ParameterProfile:
    """One parameter held at each of `values` (ascending): the objective of the best refit of the others, and the ends.

    low, high: where the objective crosses `threshold`; infinite where it does not within what was tried or allowed.
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
        """Open ends are null."""
        ends = {name: float(v) if np.isfinite(v) else None for name, v in (("low", self.low), ("high", self.high))}
        rows = {"values": self.values.tolist(), "objective": self.objective.tolist()}
        return json.dumps({"parameter": self.parameter, **ends, "threshold": self.threshold, **rows})

    def __repr__(self) -> str:
        ends = [f"{v:.4g}" if np.isfinite(v) else "open" for v in (self.low, self.high)]
        return f"Profile({self.parameter}: {ends[0]} to {ends[1]})"


def sandwich_errors(fit: Fit, columns: Columns, response: Any) -> np.ndarray:
    """Of the parameters as searched (logarithms of those that the law bounds above zero), [parameters]; 0 where held.

    The quadratic approximation to a profile: the square roots of the diagonal of the sandwich.
    """
    free = np.array([name not in fit.fixed for name in fit.law.parameters])
    errors = np.zeros(len(free))
    errors[free] = np.sqrt(np.diag(_sandwich(fit, columns, response)[0]))
    return errors


def sandwich_intervals(fit: Fit, columns: Columns, response: Any, level: float = 0.9) -> np.ndarray:
    """Value plus or minus t standard errors, in the parameters as searched and then back: [parameters, 2]."""
    theta = theta_from_values(fit.law, fit.vector())
    freedom = max(len(np.asarray(response)) - len(theta) + len(fit.fixed), 1)
    half = stats.t.ppf((1 + level) / 2, freedom) * sandwich_errors(fit, columns, response)
    return np.stack([values_from_theta(fit.law, theta - half), values_from_theta(fit.law, theta + half)], 1)


def profile_parameters(
    fit: Fit, columns: Columns, response: Any, parameters: tuple[str, ...] | None = None, level: float = 0.9
) -> list[ParameterProfile]:
    """Profiles of the named parameters, of all free ones unless named."""
    names = parameters or tuple(name for name in fit.law.parameters if name not in fit.fixed)
    errors = sandwich_errors(fit, columns, response)
    found = []
    for name in names:
        index = fit.law.parameters.index(name)
        widths = np.full(2, FIRST_WIDTH * np.clip(errors[index], MIN_ERROR, MAX_ERROR))
        for _ in range(MAX_WIDENINGS):
            one = _profile_one(fit, columns, response, index, widths, level)
            opened = ~np.isfinite([one.low, one.high])
            if not opened.any():
                break
            widths = np.where(opened, 4 * widths, widths)
        found.append(one)
    return found


def _profile_one(
    fit: Fit, columns: Columns, response: Any, index: int, widths: np.ndarray, level: float
) -> ParameterProfile:
    theta = theta_from_values(fit.law, fit.vector())
    middle = theta[index]
    least, most = np.clip(middle + widths * np.array([-1, 1]), fit.box.low[0, index], fit.box.high[0, index])
    row = np.union1d(np.linspace(least, middle, VALUES_PER_SIDE), np.linspace(middle, most, VALUES_PER_SIDE))
    rise = _allowed_rise(fit, columns, response, index, level)
    best, values = _refit_at_values(
        fit, columns, response, index, row, np.tile(fit.vector(), (len(row), 1)), NEGLIGIBLE_DECREASE * rise
    )
    for _ in range(REFINEMENT_ROUNDS):
        outside = values > min(fit.objective_value, float(values.min())) + rise
        change = np.flatnonzero(outside[1:] != outside[:-1])
        closer = np.union1d(row, np.linspace(row[change], row[change + 1], REFINEMENT + 2))
        nearest = np.argmin(np.abs(closer[:, None] - row), axis=1)
        row, (best, values) = (
            closer,
            _refit_at_values(fit, columns, response, index, closer, best[nearest], NEGLIGIBLE_DECREASE * rise),
        )
    threshold = min(fit.objective_value, float(values.min())) + rise
    ends = _natural_ends(fit, index, *_crossings(row, values, threshold))
    held = values_from_theta(fit.law, np.where(np.arange(len(theta)) == index, row[:, None], theta))[:, index]
    return ParameterProfile(fit.law.parameters[index], held, values, threshold, *ends)


def _allowed_rise(fit: Fit, columns: Columns, response: Any, index: int, level: float) -> float:
    """What chance allows the objective to rise when that parameter is held at its true value."""
    free = [name for name in fit.law.parameters if name not in fit.fixed]
    covariance, inverse = _sandwich(fit, columns, response)
    place = free.index(fit.law.parameters[index])
    freedom = max(len(np.asarray(response)) - len(free), 1)
    units = 1.0 if fit.objective.delta is None and not fit.objective.is_absolute else 0.5
    noise = max(covariance[place, place] / inverse[place, place], fit.objective_value / freedom)
    return float(stats.f.ppf(level, 1, freedom) * units * noise)


def _refit_at_values(
    fit: Fit, columns: Columns, response: Any, index: int, row: np.ndarray, starts: np.ndarray, enough: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best refits found with one parameter held at each value of a row, as searched, and their objectives.

    Far from the optimum the fit's own values are a poor start, so each refit is followed by two that start from what
    its neighbours in the row found, until none is lowered by `enough`.
    """
    low, high = (np.repeat(bound, len(row), axis=0) for bound in fit.box)
    low[:, index] = high[:, index] = row
    place = np.arange(len(row))
    best, values = starts, np.full(len(row), np.inf)
    offered = [starts]
    for _ in row:
        box = Box(np.tile(low, (len(offered), 1)), np.tile(high, (len(offered), 1)))
        found, tried = refit_from_starts(fit.law, fit.objective, np.concatenate(offered), columns, response, box=box)
        tried = np.where(np.isfinite(tried), tried, np.inf).reshape(len(offered), -1)
        chosen = np.argmin([values, *tried], axis=0)
        before, values = values, np.min([values, *tried], axis=0)
        best = np.stack([best, *found.reshape(len(offered), len(row), -1)])[chosen, place]
        if not np.any(values < before - enough):
            break
        offered = [best[np.maximum(place - 1, 0)], best[np.minimum(place + 1, len(row) - 1)]]
    return best, values


def _natural_ends(fit: Fit, index: int, low: float, high: float) -> tuple[float, float]:
    """Ends as searched, in the parameter's own units; an open end stays infinite."""
    logged = fit.law.bounds[fit.law.parameters[index]][0] > 0
    closed = [float(np.exp(end)) if logged and np.isfinite(end) else end for end in (low, high)]
    return closed[0], closed[1]


def _crossings(row: np.ndarray, values: np.ndarray, threshold: float) -> tuple[float, float]:
    """The outermost crossings of the threshold, by straight lines between the values tried."""
    inside = np.flatnonzero(values <= threshold)
    first, last = int(inside[0]), int(inside[-1])

    def crossing(inner: int, outer: int) -> float:
        share = (threshold - values[inner]) / (values[outer] - values[inner])
        return float(row[inner] + share * (row[outer] - row[inner]))

    low = -np.inf if first == 0 else crossing(first, first - 1)
    high = np.inf if last == len(row) - 1 else crossing(last, last + 1)
    return low, high


def _sandwich(fit: Fit, columns: Columns, response: Any) -> tuple[np.ndarray, np.ndarray]:
    """(covariance of the free parameters as searched, inverse of the curvature that shifts of the points answer with).

    Each point enters with its own residual, so that noise may differ between points: slopes enlarged by their leverage
    (MacKinnon & White 1985, HC3), answers by a kernel (Powell 1991).
    """
    y = np.asarray(response, float)
    x = {name: np.asarray(columns[name], float) for name in fit.law.columns}
    predicted = fit.predict(x)
    jacobian = log_prediction_jacobian(fit.law, theta_from_values(fit.law, fit.vector()), x)
    jacobian = jacobian if fit.objective.is_log else jacobian * predicted[:, None]
    jacobian = jacobian[:, [name not in fit.fixed for name in fit.law.parameters]]
    length = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    scaled = jacobian / length
    slope, answer = _influence(fit.objective, fit.objective.residuals(predicted, y))
    inverse = np.linalg.pinv(scaled.T @ (answer[:, None] * scaled), rcond=1e-14)
    leverage = np.clip(np.einsum("pi,ij,pj,p->p", scaled, inverse, scaled, answer), 0.0, MAX_LEVERAGE)
    meat = scaled.T @ ((slope / (1 - leverage))[:, None] ** 2 * scaled)
    scale = np.outer(length, length)
    return inverse @ meat @ inverse / scale, inverse / scale


def _influence(objective: Objective, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """psi at each residual, the slope of rho as minimised (r^2 / 2 for squares), and how it answers to a shift."""

    def psi(r: np.ndarray) -> np.ndarray:
        if objective.is_absolute:
            return np.sign(r)
        return r if objective.delta is None else np.clip(r, -objective.delta, objective.delta)

    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    shift = max(spread * len(residuals) ** (-1 / 5), (objective.delta or 0.0) / 2, 1e-12)
    answer = (psi(residuals + shift) - psi(residuals - shift)) / (2 * shift)
    return psi(residuals), answer
