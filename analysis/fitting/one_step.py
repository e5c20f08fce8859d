"""Bootstrap of large tables: one Newton step on all points for each resample, in place of a search.

From the optimum of all points, the step -H^-1 g with the gradient g and the Hessian H of the resample's objective ends
within O(1/points) of the resample's own optimum, and the spread of the resamples is O(1/sqrt(points)) (Davidson &
MacKinnon 1999, who call these approximate bootstraps). Both are sums over clusters of runs, so that they are computed
once, in blocks of points, and a resample is a product with how often each cluster was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from analysis.fitting.newton import QUADRATIC_ZONE, Box, parameter_namespace, theta_from_values, values_from_theta
from analysis.fitting.objective import Objective
from analysis.laws import Columns, Law

BLOCK_POINTS = 2**15  # points whose derivatives are in memory at once
COUNTS_IN_MEMORY = 2**22  # most counts in memory at once, draws times clusters
REFINING_STEPS = 3  # Newton steps on all points before the resamples, from values fitted to a sample
MIN_EIGENVALUE = 1e-10  # of the scaled Hessian, relative to its largest: smaller ones are rounding errors


def one_step_draws(
    law: Law,
    objective: Objective,
    values: np.ndarray,
    columns: Columns,
    response: Any,
    weights: np.ndarray,
    unit: Any,
    box: Box,
    *,
    draws: int,
    seed: int,
    refine: bool = False,
) -> np.ndarray:
    """Parameter values of resampled clusters, [draws, parameters].

    Args:
      values: of the fit, [parameters].
      response, weights, unit: of each point, [points]; unit is its cluster.
      box: bounds of theta, one row.
      refine: whether the values were fitted to a sample of the points, and are first brought to the optimum of all.
    """
    x = {name: np.asarray(columns[name], np.float64) for name in law.columns}
    y, member = np.asarray(response, np.float64), pd.factorize(np.asarray(unit))[0]
    theta = np.clip(theta_from_values(law, values), box.low[0], box.high[0])
    zone = _zone_width(law, objective, theta, x, y)
    for _ in range(REFINING_STEPS if refine else 0):
        sums = _sums_by_cluster(law, objective, zone, theta, x, y, weights, np.zeros(len(y), np.int64))
        theta = _newton_step(theta, sums, box)[0]
    sums = _sums_by_cluster(law, objective, zone, theta, x, y, weights, member)
    generator, clusters = np.random.default_rng(seed), len(sums)
    rows = int(np.clip(COUNTS_IN_MEMORY // clusters, 1, draws))
    thetas = []
    for first in range(0, draws, rows):
        count = min(rows, draws - first)
        picks = (generator.integers(clusters, size=clusters) for _ in range(count))
        counts = np.stack([np.bincount(pick, minlength=clusters) for pick in picks]).astype(np.float64)
        thetas.append(_newton_step(theta, counts @ sums, box))
    return values_from_theta(law, np.concatenate(thetas))


def _zone_width(law: Law, objective: Objective, theta: np.ndarray, x: Mapping[str, np.ndarray], y: np.ndarray) -> float:
    """Width of the quadratic zone: the objective's own, or a kernel's bandwidth for least absolute deviations.

    Those have no curvature; their mean over resamples has the density of the residuals at zero, which the share of
    residuals within Silverman's bandwidth estimates.
    """
    if not objective.is_absolute:
        return QUADRATIC_ZONE if objective.delta is None else objective.delta
    predicted = law(dict(zip(law.parameters, values_from_theta(law, theta), strict=True)), x)
    size = np.abs(objective.residuals(predicted, y))
    return float(1.06 * 1.4826 * np.median(size) * len(y) ** -0.2)


def _sums_by_cluster(
    law: Law,
    objective: Objective,
    zone: float,
    theta: np.ndarray,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    weights: np.ndarray,
    member: np.ndarray,
) -> np.ndarray:
    """Gradient and Hessian of the objective, summed over each cluster: [clusters, parameters (1 + parameters)]."""
    width, clusters = len(theta), int(member.max()) + 1
    sums = np.zeros((width * (1 + width), clusters))
    for first in range(0, len(y), BLOCK_POINTS):
        block = slice(first, first + BLOCK_POINTS)
        fill = BLOCK_POINTS - len(y[block])
        columns = {name: np.pad(column[block], (0, fill), mode="edge") for name, column in x.items()}
        padded = np.pad(y[block], (0, fill), mode="edge")
        with jax.enable_x64(True):
            terms = np.asarray(_derivatives(law, objective.is_log, theta, columns, padded, zone))[:, : len(y[block])]
        for row, term in zip(sums, terms, strict=True):
            row += np.bincount(member[block], weights[block] * term, minlength=clusters)
    return sums.T


@partial(jax.jit, static_argnums=(0, 1))
def _derivatives(law: Law, log: bool, theta: Any, x: Any, y: Any, zone: Any) -> jax.Array:
    """Gradient and Hessian of each point's term, one below the other: [parameters (1 + parameters), points]."""

    def term(t: jax.Array, point: Any, measured: jax.Array) -> jax.Array:
        predicted = law.predict(parameter_namespace(law, t), SimpleNamespace(**point))
        r = jnp.log(predicted) - jnp.log(measured) if log else predicted - measured
        return jnp.where(jnp.abs(r) <= zone, r**2 / 2, zone * (jnp.abs(r) - zone / 2))

    def derivatives(point: Any, measured: jax.Array) -> jax.Array:
        gradient, hessian = jax.grad(term)(theta, point, measured), jax.hessian(term)(theta, point, measured)
        return jnp.concatenate([gradient, hessian.ravel()])

    return jax.vmap(derivatives, out_axes=1)(x, y)


def _newton_step(theta: np.ndarray, sums: np.ndarray, box: Box) -> np.ndarray:
    """theta after one Newton step for each row of sums of derivatives, within the box: [rows, parameters].

    sums: gradient and Hessian, [rows, parameters (1 + parameters)]. A fixed parameter, or one at a bound, stays.
    """
    width = len(theta)
    low, high = box.low[0], box.high[0]
    free = (theta > low + 1e-9) & (theta < high - 1e-9)
    gradient, hessian = sums[:, :width], sums[:, width:].reshape(-1, width, width)
    hessian = np.where(free[:, None] & free, hessian, np.eye(width))
    length = np.sqrt(np.abs(np.diagonal(hessian, axis1=1, axis2=2))) + 1e-300  # parameters of any scale weigh alike
    eigenvalues, vectors = np.linalg.eigh(hessian / (length[:, :, None] * length[:, None, :]))
    size = np.maximum(np.abs(eigenvalues), MIN_EIGENVALUE * np.abs(eigenvalues).max(1, keepdims=True))
    scaled = np.where(free, gradient, 0.0) / length
    step = np.einsum("rij,rj->ri", vectors, np.einsum("rji,rj->ri", vectors, scaled) / size) / length
    return np.clip(theta - step, low, high)
