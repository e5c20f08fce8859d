"""Variable projection: the parameters that a law is linear in are solved for, not searched.

For fixed nonlinear parameters the rest is a least-squares problem with coefficients that may not be negative. It is
small, so every subset of the coefficients is solved in closed form and the best feasible one taken: exact, and the same
for every lane of a vmap. What is left to search is one or two exponents (Golub & Pereyra 1973).

Not in the design's list of modules: it gives fit.py its starts, and is an estimator of its own for squared errors of
loss, which must find the same optimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.fitting.newton import padded_length
from analysis.laws.law import Law

NEWTON_STEPS = 80
BATCH = 64


def project_linear(
    law: Law,
    linear: tuple[str, ...],
    values: Mapping[str, np.ndarray],
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
) -> dict[str, np.ndarray]:
    """Non-negative least-squares values of the linear parameters for many settings of the others: [settings] each.

    Residuals are taken relative to the response. A coefficient that comes out zero is given a small share of the
    response instead, since it is to start a search in its logarithm.
    """
    fill = padded_length(len(y)) - len(y)
    columns = {name: np.pad(column, (0, fill), mode="edge") for name, column in x.items()}
    with jax.enable_x64(True):
        settings = {name: np.asarray(value, np.float64) for name, value in values.items()}
        loss = np.pad(y, (0, fill), mode="edge")
        found = _project_linear(law, linear, settings, columns, loss, np.pad(weight, (0, fill)))
        return {name: np.asarray(column) for name, column in zip(linear, jax.device_get(found).T, strict=True)}


@partial(jax.jit, static_argnums=(0, 1))
def _project_linear(law: Law, linear: tuple[str, ...], values: Any, x: Any, y: Any, weight: Any) -> jax.Array:
    def one(value: Any) -> jax.Array:
        basis, offset = _basis(law, linear, value, x)
        scaled, target = basis / y[:, None], (y - offset) / y
        found, _ = nonnegative_least_squares(scaled, target, weight)
        length = jnp.sqrt(jnp.sum(weight[:, None] * scaled**2, 0))
        small = 0.05 * jnp.sqrt(jnp.sum(weight * target**2)) / jnp.maximum(length, 1e-300)
        return jnp.where(found > 0, found, small)

    return jax.lax.map(one, values, batch_size=BATCH)


def _basis(law: Law, linear: tuple[str, ...], values: Any, x: Any) -> tuple[jax.Array, jax.Array]:
    """Columns that multiply the linear parameters, [points, linear], and what the law is without them, [points]."""
    columns = SimpleNamespace(**x)

    def at(**chosen: float) -> jax.Array:
        predicted = law.predict(SimpleNamespace(**{**values, **dict.fromkeys(linear, 0.0), **chosen}), columns)
        return predicted + jnp.zeros_like(next(iter(x.values())))

    offset = at()
    return jnp.stack([at(**{name: 1.0}) - offset for name in linear], 1), offset


def nonnegative_least_squares(basis: jax.Array, target: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """min over c >= 0 of sum weight (target - basis c)^2, exactly, by every subset: ([columns], its value)."""
    length = jnp.sqrt(jnp.sum(weight[:, None] * basis**2, 0)) + 1e-300
    scaled = basis / length
    gram, right = scaled.T @ (weight[:, None] * scaled), scaled.T @ (weight * target)
    chosen = np.array(list(itertools.product((False, True), repeat=basis.shape[1])))
    both = chosen[:, :, None] & chosen[:, None, :]
    square = jnp.where(both, gram, 0.0) + np.where(both, 1e-14, 1.0) * np.eye(basis.shape[1])
    solved = jnp.linalg.solve(square, jnp.where(chosen, right, 0.0)[..., None])[..., 0]
    errors = jnp.sum(weight * (target - solved @ scaled.T) ** 2, axis=1)
    errors = jnp.where(jnp.all(solved >= 0, axis=1), errors, jnp.inf)
    best = jnp.argmin(errors)
    return solved[best] / length, errors[best]


def fit_separable(law: Law, columns: Any, response: Any, weights: Any = None) -> tuple[dict[str, float], float]:
    """Squared errors of the response by variable projection, from every start: (values, sum of squares).

    The same optimum as fit_law with `mse`, by another road: Newton's method on the reduced objective, whose only
    unknowns are the parameters that the law is not linear in. Needs law.starts as a mapping, and law.linear_in.
    """
    if callable(law.starts) or not law.linear_in:
        raise ValueError(f"{law.name} is not separable with a plain grid of starts")
    x = {name: np.asarray(columns[name], np.float64) for name in law.columns}
    y = np.asarray(response, np.float64)
    weight = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    grid = np.array(list(itertools.product(*law.starts.values())), np.float64)
    with jax.enable_x64(True):
        thetas, values, linear = jax.device_get(_minimise_reduced(law, tuple(law.starts), grid, x, y, weight))
    best = int(np.nanargmin(values))
    named = dict(zip(law.starts, thetas[best], strict=True)) | dict(zip(law.linear_in, linear[best], strict=True))
    return {name: float(named[name]) for name in law.parameters}, float(values[best])


@partial(jax.jit, static_argnums=(0, 1))
def _minimise_reduced(
    law: Law, names: tuple[str, ...], grid: Any, x: Any, y: Any, weight: Any
) -> tuple[jax.Array, ...]:
    low, high = (jnp.array([law.bounds[name][side] for name in names]) for side in (0, 1))

    def inner(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        basis, offset = _basis(law, law.linear_in, dict(zip(names, theta, strict=True)), x)
        return nonnegative_least_squares(basis, y - offset, weight)

    def advance(_: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        theta, value, damping = state
        gradient = jax.grad(lambda t: inner(t)[1])(theta)
        hessian = jax.hessian(lambda t: inner(t)[1])(theta)
        eigenvalues, vectors = jnp.linalg.eigh(hessian)
        curvature = jnp.abs(eigenvalues) + damping * jnp.max(jnp.abs(eigenvalues)) + 1e-300
        move = jnp.clip(theta - vectors @ ((vectors.T @ gradient) / curvature), low, high)
        new = inner(move)[1]
        better = new < value
        damping = jnp.clip(jnp.where(better, damping * 0.2, damping * 5.0), 1e-12, 1e12)
        return jnp.where(better, move, theta), jnp.where(better, new, value), damping

    def one(start: jax.Array) -> tuple[jax.Array, ...]:
        theta, value, _ = jax.lax.fori_loop(0, NEWTON_STEPS, advance, (start, inner(start)[1], jnp.array(1e-2)))
        return theta, value, inner(theta)[0]

    return jax.vmap(one)(grid)
