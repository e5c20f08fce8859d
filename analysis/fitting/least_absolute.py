"""Least absolute deviations, to the vertex: successive linear programs.

The sum of absolute residuals has its optimum where as many residuals are zero as there are parameters, a kink that
Newton's method on a rounded objective approaches and does not reach. Linearised, the problem is a linear program; a
trust region makes the sequence of them converge, quadratically near a vertex (Osborne & Watson 1971).

Not in the design's list of modules: no other objective needs it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from analysis.fitting.newton import Box, log_prediction_jacobian, values_from_theta
from analysis.laws.law import Law

MAX_PROGRAMS = 60
SMALLEST_MOVE = 1e-12


def descend_to_vertex(
    law: Law, log: bool, x: Mapping[str, np.ndarray], y: np.ndarray, weight: np.ndarray, theta: np.ndarray, box: Box
) -> np.ndarray:
    """Parameters as searched, moved from a point near the optimum to it.

    log: residuals of the log response instead of the response.
    """

    def predicted(t: np.ndarray) -> np.ndarray:
        return law(dict(zip(law.parameters, values_from_theta(law, t), strict=True)), x)

    def residual(t: np.ndarray) -> np.ndarray:
        return np.log(predicted(t) / y) if log else predicted(t) - y

    kept = weight > 0
    radius, value = 0.1, float(np.sum(weight * np.abs(residual(theta))))
    for _ in range(MAX_PROGRAMS):
        slopes = log_prediction_jacobian(law, theta, x) * (1.0 if log else predicted(theta)[:, None])
        move = _solve_linear_program(
            slopes[kept], residual(theta)[kept], weight[kept], box.low[0] - theta, box.high[0] - theta, radius
        )
        new = float(np.sum(weight * np.abs(residual(theta + move))))
        if new < value:
            theta, value, radius = theta + move, new, min(2 * radius, 1.0)
        else:
            radius /= 4
        if radius < SMALLEST_MOVE or np.max(np.abs(move)) < SMALLEST_MOVE:
            break
    return theta


def _solve_linear_program(
    slopes: np.ndarray, residual: np.ndarray, weight: np.ndarray, low: np.ndarray, high: np.ndarray, radius: float
) -> np.ndarray:
    """min over |move| <= radius of sum weight |residual + slopes move|, in unknowns (move, size of each residual)."""
    count, width = slopes.shape
    length = np.max(np.abs(slopes), axis=0) + 1e-300
    scaled, eye = slopes / length, sparse.identity(count)
    rows = sparse.vstack([sparse.hstack([scaled, -eye]), sparse.hstack([-scaled, -eye])]).tocsr()
    ranges = np.stack([np.maximum(low, -radius) * length, np.minimum(high, radius) * length], 1)
    limits = [*map(tuple, ranges), *[(0, None)] * count]
    cost = np.concatenate([np.zeros(width), weight])
    solved = linprog(cost, A_ub=rows, b_ub=np.concatenate([-residual, residual]), bounds=limits, method="highs")
    return np.zeros(width) if solved.x is None else solved.x[:width] / length
