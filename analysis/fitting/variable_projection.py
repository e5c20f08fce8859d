"""Variable projection (Golub & Pereyra 1973): solves for the parameters that a law is linear in, given the others.

For constant nonlinear parameters the linear ones are the solution of a least-squares problem with coefficients that may
not be negative. It is so small that every subset of coefficients is solved in closed form and the best feasible one is
taken, which is exact and has no branches under vmap. One or two exponents are left to search. `project_linear` makes
the starts of analysis.fitting.fit; `fit_separable` is an independent estimator that tests compare it with.
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

NEWTON_STEPS = 80  # of fit_separable, from each start
BATCH = 64  # settings projected side by side


def project_linear(
    law: Law,
    linear: tuple[str, ...],
    values: Mapping[str, np.ndarray],
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    weight: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns non-negative least-squares values of the linear parameters for many settings of the others.

    Residuals are relative to the response. Where a coefficient comes out as zero, one whose term is about a twentieth
    of the response is returned, because a search in its logarithm starts from it.

    Args:
      linear: names of the parameters to solve for.
      values: the other parameters, [settings] each.
      x: the law's columns, [points] each.
      y, weight: response and weight, [points].
    Returns:
      name of each linear parameter -> [settings].
    """
    fill = padded_length(len(y)) - len(y)
    columns = {name: np.pad(column, (0, fill), mode="edge") for name, column in x.items()}
    with jax.enable_x64(True):
        settings = {name: np.asarray(value, np.float64) for name, value in values.items()}
        loss = np.pad(y, (0, fill), mode="edge")
        solved = _project_linear(law, linear, settings, columns, loss, np.pad(weight, (0, fill)))
        return {name: np.asarray(column) for name, column in zip(linear, jax.device_get(solved).T, strict=True)}


@partial(jax.jit, static_argnums=(0, 1))
def _project_linear(law: Law, linear: tuple[str, ...], values: Any, x: Any, y: Any, weight: Any) -> jax.Array:
    """project_linear on the device: [settings, linear]."""

    def project_one(value: Any) -> jax.Array:
        basis, offset = _basis(law, linear, value, x)
        scaled, target = basis / y[:, None], (y - offset) / y
        coefficients, _ = nonnegative_least_squares(scaled, target, weight)
        length = jnp.sqrt(jnp.sum(weight[:, None] * scaled**2, 0))
        small = 0.05 * jnp.sqrt(jnp.sum(weight * target**2)) / jnp.maximum(length, 1e-300)
        return jnp.where(coefficients > 0, coefficients, small)

    return jax.lax.map(project_one, values, batch_size=BATCH)


def _basis(law: Law, linear: tuple[str, ...], values: Any, x: Any) -> tuple[jax.Array, jax.Array]:
    """The law as offset + basis @ linear parameters: basis [points, linear], offset [points].

    A column of the basis is the prediction with one linear parameter at 1 and the others at 0, less that with all at 0.
    """
    columns = SimpleNamespace(**x)

    def predict(**ones: float) -> jax.Array:
        predicted = law.predict(SimpleNamespace(**{**values, **dict.fromkeys(linear, 0.0), **ones}), columns)
        return predicted + jnp.zeros_like(next(iter(x.values())))

    offset = predict()
    return jnp.stack([predict(**{name: 1.0}) - offset for name in linear], 1), offset


def nonnegative_least_squares(basis: jax.Array, target: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimises sum weight (target - basis c)^2 over c >= 0, exactly: (c [columns], the minimum).

    Solves the normal equations of every subset of columns, the other coefficients being 0; the minimum is the best of
    those without a negative coefficient.
    """
    length = jnp.sqrt(jnp.sum(weight[:, None] * basis**2, 0)) + 1e-300
    scaled = basis / length
    gram, right = scaled.T @ (weight[:, None] * scaled), scaled.T @ (weight * target)
    subset = np.array(list(itertools.product((False, True), repeat=basis.shape[1])))  # [2^columns, columns]
    both = subset[:, :, None] & subset[:, None, :]
    # Columns outside a subset get a row of the identity and a right side of 0, so that all systems have one shape.
    square = jnp.where(both, gram, 0.0) + np.where(both, 1e-14, 1.0) * np.eye(basis.shape[1])
    solved = jnp.linalg.solve(square, jnp.where(subset, right, 0.0)[..., None])[..., 0]
    errors = jnp.sum(weight * (target - solved @ scaled.T) ** 2, axis=1)
    errors = jnp.where(jnp.all(solved >= 0, axis=1), errors, jnp.inf)
    best = jnp.argmin(errors)
    return solved[best] / length, errors[best]


def fit_separable(law: Law, columns: Any, response: Any, weights: Any = None) -> tuple[dict[str, float], float]:
    """Fits squared errors of the response by variable projection, from every start: (values, sum of squares).

    Finds the optimum of fit_law with `mse` by another method: Newton's method on the reduced objective, whose only
    unknowns are the parameters that the law is not linear in. Tests compare the two.

    Raises ValueError for a law whose starts are a function, or that is linear in no parameter.
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

    """fit_separable on the device: (nonlinear parameters, sum of squares, linear parameters), one row per start.

    In the Newton step the eigenvalues of the Hessian enter by their absolute value, plus damping relative to the
    largest; damping falls after a step that lowers the objective and rises after one that does not.
    """

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

    def search(start: jax.Array) -> tuple[jax.Array, ...]:
        theta, value, _ = jax.lax.fori_loop(0, NEWTON_STEPS, advance, (start, inner(start)[1], jnp.array(1e-2)))
        return theta, value, inner(theta)[0]

    return jax.vmap(search)(grid)
