"""Least absolute deviations, solution to the exact minimum by successive linear programs.

The sum of absolute residuals usually has its minimum at a vertex, where as many residuals are zero as there are free
parameters. Newton's method on the rounded objective comes close to it without reaching it. With the law linearised, the
problem is a linear program; solution again and again inside a trust region, it converges, quadratically near a vertex
(Osborne & Watson 1971). Used by `analysis.fitting.fit.fit_law` for the objective `lad`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from analysis.fitting.newton import Box, log_prediction_jacobian, values_from_theta
from analysis.laws.law import Law

MAX_PROGRAMS = 60  # most linear programs solution
SMALLEST_MOVE = 1e-12  # in theta: a step or a trust region below it ends the search


def descend_to_vertex(
    law: Law, log: bool, x: Mapping[str, np.ndarray], y: np.ndarray, weight: np.ndarray, theta: np.ndarray, box: Box
) -> np.ndarray:
    """Returns the theta of the minimum, from a theta near it.

    Args:
      log: whether residuals are those of the log response instead of the response.
      y, weight: response and weight, [points].
      theta: search coordinates, [parameters] (analysis.fitting.newton).
      box: bounds of theta, one row.
    """

    def predicted(t: np.ndarray) -> np.ndarray:
        return law(dict(zip(law.parameters, values_from_theta(law, t), strict=True)), x)

    def residual(t: np.ndarray) -> np.ndarray:
        return np.log(predicted(t) / y) if log else predicted(t) - y

    is_weighted = weight > 0
    radius, value = 0.1, float(np.sum(weight * np.abs(residual(theta))))
    for _ in range(MAX_PROGRAMS):
        # Derivatives of the residuals: of log predictions, or of predictions, which are those times the prediction.
        slopes = log_prediction_jacobian(law, theta, x) * (1.0 if log else predicted(theta)[:, None])
        step = _solve_linear_program(
            slopes[is_weighted],
            residual(theta)[is_weighted],
            weight[is_weighted],
            box.low[0] - theta,
            box.high[0] - theta,
            radius,
        )
        new_value = float(np.sum(weight * np.abs(residual(theta + step))))
        if new_value < value:
            theta, value, radius = theta + step, new_value, min(2 * radius, 1.0)
        else:
            radius /= 4
        if radius < SMALLEST_MOVE or np.max(np.abs(step)) < SMALLEST_MOVE:
            break
    return theta


def _solve_linear_program(
    slopes: np.ndarray, residual: np.ndarray, weight: np.ndarray, low: np.ndarray, high: np.ndarray, radius: float
) -> np.ndarray:
    """The step of least sum weight |residual + slopes step|, with |step| <= radius and low <= step <= high.

    The linear program has the unknowns (step, s), s being the size of each residual: minimise weight . s subject to
    -s <= residual + slopes step <= s. Columns of slopes are scaled to a largest entry of 1.
    """
    count, width = slopes.shape
    length = np.max(np.abs(slopes), axis=0) + 1e-300
    scaled, eye = slopes / length, sparse.identity(count)
    rows = sparse.vstack([sparse.hstack([scaled, -eye]), sparse.hstack([-scaled, -eye])]).tocsr()
    ranges = np.stack([np.maximum(low, -radius) * length, np.minimum(high, radius) * length], 1)
    variable_bounds = [*map(tuple, ranges), *[(0, None)] * count]
    cost = np.concatenate([np.zeros(width), weight])
    solution = linprog(
        cost, A_ub=rows, b_ub=np.concatenate([-residual, residual]), bounds=variable_bounds, method="highs"
    )
    return np.zeros(width) if solution.x is None else solution.x[:width] / length
