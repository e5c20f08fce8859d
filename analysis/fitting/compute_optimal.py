"""Compute-optimal allocation: the split of a budget between parameters and tokens, flops = 6 params tokens, at which a
law of loss is least."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.laws import Law, Values

BISECTIONS = 100
LOG_PARAMS_RANGE = (0.0, 35.0)  # natural log of params that bisection searches: 1 to 1.6e15 parameters


def closed_form(law: Law, values: Values) -> tuple[Any, Any] | None:
    """(G, a) of the optimal params = G (flops / 6)^a, or None for a law without a closed form. Values may be arrays."""
    if law.optimum is None:
        return None
    return law.optimum(SimpleNamespace(**{name: np.asarray(values[name], np.float64) for name in law.parameters}))


def optimal_allocation(law: Law, values: Values, flops: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute-optimal (params, tokens) of each budget in FLOPs."""
    budget = np.asarray(flops, np.float64) / 6
    closed = closed_form(law, values)
    params = closed[0] * budget ** closed[1] if closed else bisect_optimum(law, values, flops)
    return params, budget / params


def bisect_optimum(law: Law, values: Values, flops: Any) -> np.ndarray:
    """Compute-optimal params of a law without a closed form.

    Bisects for the zero of d loss / d log params along flops = 6 params tokens, where the loss is taken to fall before
    the optimum and to rise after it. Values may be arrays, which broadcast against the budgets.
    """
    with jax.enable_x64(True):
        budget = jnp.asarray(flops, jnp.float64) / 6
        p = SimpleNamespace(**{name: jnp.asarray(values[name], jnp.float64) for name in law.parameters})

        def loss(log_params: jax.Array) -> jax.Array:
            params = jnp.exp(log_params)
            return law.predict(p, SimpleNamespace(params=params, tokens=budget / params))

        def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bracket
            middle = (low + high) / 2
            _, slope = jax.jvp(loss, (middle,), (jnp.ones_like(middle),))
            return jnp.where(slope < 0, middle, low), jnp.where(slope < 0, high, middle)

        shape = jnp.broadcast_shapes(budget.shape, *(value.shape for value in vars(p).values()))
        start = (jnp.full(shape, LOG_PARAMS_RANGE[0]), jnp.full(shape, LOG_PARAMS_RANGE[1]))
        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, start)
        return np.exp(np.asarray((low + high) / 2))


def allocation_exponent(law: Law, values: Values, flops: float) -> Any:
    """The exponent a of optimal params ~ flops^a: exact where the law has a closed form, else the local log-log slope
    at that budget."""
    closed = closed_form(law, values)
    if closed:
        return closed[1]
    ends = np.array([flops / 1.01, flops * 1.01])
    draws = {name: np.asarray(values[name], np.float64)[..., None] for name in law.parameters}
    slope = np.diff(np.log(bisect_optimum(law, draws, ends)))[..., 0] / np.diff(np.log(ends))[0]
    return slope if slope.ndim else float(slope)
