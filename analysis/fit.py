"""Estimators: a law fitted to points by a damped Newton method, all starts and all resamples at once.

The objective is the SUM over points (averaging it stops optimisers early: Besiroglu et al. 2024). Parameters that a
law bounds above zero are searched in their logarithm; those it is linear in start from a least-squares projection. A
robust objective is reached by continuation: its quadratic zone starts wide and narrows to the one asked for. Resamples
are weights on points, so that one compiled program serves every start, every resample and every table of like size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis.laws import Columns, Law

LANES = 64  # starts or resamples solved together, and the multiple that points are padded to
QUADRATIC = 1e9  # a Huber zone that no residual leaves
STEPS = 150  # Newton steps at most, at each width of the zone
COLD, WARM = (100.0, 30.0, 10.0, 3.0, 1.0), (10.0, 3.0, 1.0, 1.0, 1.0)
REACHED = 1e-6  # a start reached the optimum when its objective is this close, relatively
SINGULAR = 1e-4  # smallest over largest singular value of the scaled Jacobian below which a fit is unidentified


@dataclass(frozen=True)
class Objective:
    """Sum over points of rho(residual); rho is r^2 / 2 up to delta and linear beyond, or r^2 without delta."""

    name: str
    delta: float | None
    log: bool

    @property
    def zone(self) -> float:
        return QUADRATIC if self.delta is None else self.delta

    @property
    def scale(self) -> float:
        return 2.0 if self.delta is None else 1.0


def huber(delta: float = 1e-3) -> Objective:
    """Huber of log residuals, in the units of log loss (Hoffmann et al. 2022 use 1e-3)."""
    return Objective("huber_log", delta, True)


mse_log = Objective("mse_log", None, True)
mse_loss = Objective("mse_loss", None, False)


@dataclass(frozen=True)
class Fit:
    """A law's fitted values and how far to trust the search that found them."""

    law: Law
    values: Mapping[str, float]
    objective: Objective
    objective_value: float
    starts: int
    reached: int
    """Starts that ended within 1e-6 (relative) of the best objective."""
    bounds_hit: tuple[str, ...]
    unidentified: tuple[str, ...]
    """Parameters in the direction that the points leave free; empty when the Hessian is well conditioned."""
    conditioning: float
    """Smallest over largest singular value of the Jacobian of log predictions, columns scaled to one length."""

    def predict(self, columns: Columns) -> np.ndarray:
        return self.law(self.values, columns)

    def residuals(self, columns: Columns, loss: np.ndarray) -> np.ndarray:
        """Log measured over predicted."""
        return np.log(np.asarray(loss) / self.predict(columns))

    def warnings(self) -> list[str]:
        """What a reader must know before quoting the values; empty when all is well."""
        notes = []
        if self.bounds_hit:
            notes.append(f"bound hit: {', '.join(self.bounds_hit)}; the points ask for a value outside the law's range")
        if self.unidentified:
            notes.append(f"{', '.join(self.unidentified)} cannot be told apart by these points (Hessian near singular)")
        if self.reached < max(2, self.starts // 20):
            notes.append(f"only {self.reached} of {self.starts} starts reached the optimum")
        return notes


def fit_law(law: Law, columns: Columns, loss: Any, objective: Objective | None = None) -> Fit:
    """The best fit over every start of the law's grid.

    Args:
      columns: one array for each of law.columns, positive; params as counts, tokens as counts.
      loss: measured losses, positive.
      objective: Huber of log residuals with delta 1e-3 unless given.
    """
    objective = objective or huber()
    x = {name: np.asarray(columns[name], np.float64) for name in law.columns}
    y = np.asarray(loss, np.float64)
    starts = _starts(law, x, y)
    thetas, values = _solve_all(law, objective, x, y, starts, np.ones((len(starts), len(y))), COLD)
    best = int(np.nanargmin(values))
    theta = thetas[best]
    low, high = _box(law)
    at_bound = (theta <= low + 1e-9) | (theta >= high - 1e-9)
    conditioning, direction = _identifiability(law, theta, x)
    return Fit(
        law=law,
        values=dict(zip(law.parameters, map(float, _natural(law, theta)), strict=True)),
        objective=objective,
        objective_value=float(values[best]) * objective.scale,
        starts=len(starts),
        reached=int(np.sum(values <= values[best] * (1 + REACHED) + 1e-20)),
        bounds_hit=tuple(np.asarray(law.parameters)[at_bound]),
        unidentified=tuple(np.asarray(law.parameters)[np.abs(direction) > 0.1]) if conditioning < SINGULAR else (),
        conditioning=conditioning,
    )


def refit(fit: Fit, columns: Columns, loss: Any, weights: np.ndarray) -> np.ndarray:
    """Values refitted to reweighted points, warm-started from a fit: [resamples, points] -> [resamples, parameters]."""
    x = {name: np.asarray(columns[name], np.float64) for name in fit.law.columns}
    theta = _searched(fit.law, np.array([fit.values[name] for name in fit.law.parameters]))
    starts = np.tile(theta, (len(weights), 1))
    thetas, _ = _solve_all(fit.law, fit.objective, x, np.asarray(loss, np.float64), starts, weights, WARM)
    return _natural(fit.law, thetas)


def _positive(law: Law) -> np.ndarray:
    return np.array([law.bounds[name][0] > 0 for name in law.parameters])


def _natural(law: Law, theta: Any) -> Any:
    return np.where(_positive(law), np.exp(np.where(_positive(law), theta, 0.0)), theta)


def _searched(law: Law, values: Any) -> Any:
    return np.where(_positive(law), np.log(np.where(_positive(law), values, 1.0)), values)


def _box(law: Law) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array([law.bounds[name] for name in law.parameters], np.float64).T
    return _searched(law, low), _searched(law, high)


def _starts(law: Law, x: Mapping[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    """Every combination of the grid, the linear parameters projected out: [starts, parameters], as searched."""
    searched = [name for name in law.parameters if name not in law.linear_in]
    grid = np.array(list(itertools.product(*(law.grid[name] for name in searched))))
    values = {name: grid[:, [i]] for i, name in enumerate(searched)}
    nothing = dict.fromkeys(law.linear_in, 0.0)
    coefficients = np.zeros((len(grid), 0))
    if law.linear_in:
        offset = np.broadcast_to(law({**values, **nothing}, x), (len(grid), len(y)))
        basis = np.stack([law({**values, **nothing, n: 1.0}, x) + 0 * offset - offset for n in law.linear_in], -1)
        basis, target = basis / y[:, None], (y - offset) / y
        length = np.linalg.norm(basis, axis=1, keepdims=True)
        solved = [np.linalg.lstsq(b, t, rcond=1e-10)[0] for b, t in zip(basis / length, target, strict=True)]
        small = 0.05 * np.linalg.norm(target, axis=1, keepdims=True)
        coefficients = np.where(np.array(solved) > 0, solved, small) / length[:, 0, :]
    values |= {name: coefficients[:, [i]] for i, name in enumerate(law.linear_in)}
    low, high = _box(law)
    return np.clip(_searched(law, np.concatenate([values[name] for name in law.parameters], 1)), low, high)


def _identifiability(law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Conditioning of the Gauss-Newton Hessian at the optimum, and the direction in which it is flattest."""
    with jax.enable_x64(True):
        columns = SimpleNamespace(**x)
        jacobian = np.asarray(jax.jacfwd(lambda t: jnp.log(law.predict(_attributes(law, t), columns)))(theta))
    length = np.linalg.norm(jacobian, axis=0)
    if not np.all(length > 0):
        return 0.0, (length == 0).astype(float)
    _, singular, directions = np.linalg.svd(jacobian / length, full_matrices=False)
    return float(singular[-1] / singular[0]), directions[-1]


def _solve_all(
    law: Law,
    objective: Objective,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    starts: np.ndarray,
    weights: np.ndarray,
    widths: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Solves in blocks of LANES, points padded with weight 0. Returns parameters as searched, and objectives."""
    points, lanes = -(-len(y) // LANES) * LANES, -(-len(starts) // LANES) * LANES
    fill = points - len(y)
    padded = {name: np.pad(column, (0, fill), mode="edge") for name, column in x.items()}
    loss = np.pad(y, (0, fill), mode="edge")
    weights = np.pad(weights, ((0, 0), (0, fill)))
    index = np.arange(lanes) % len(starts)
    zones = objective.zone * (np.asarray(widths) if objective.delta else np.ones(len(widths)))
    with jax.enable_x64(True):
        blocks = [
            jax.device_get(_solve(law, objective.log, padded, loss, starts[lane], weights[lane], zones))
            for lane in np.split(index, lanes // LANES)
        ]
    thetas, values = (np.concatenate(parts)[: len(starts)] for parts in zip(*blocks, strict=True))
    return thetas, values


def _attributes(law: Law, theta: jax.Array) -> SimpleNamespace:
    values = [jnp.exp(t) if positive else t for t, positive in zip(theta, _positive(law), strict=True)]
    return SimpleNamespace(**dict(zip(law.parameters, values, strict=True)))


class _State(NamedTuple):
    theta: jax.Array
    value: jax.Array
    damping: jax.Array
    step: jax.Array
    done: jax.Array


@partial(jax.jit, static_argnums=(0, 1))
def _solve(law: Law, log: bool, x: Any, y: Any, starts: Any, weights: Any, zones: Any) -> tuple[jax.Array, jax.Array]:
    low, high = map(jnp.asarray, _box(law))
    columns = SimpleNamespace(**x)

    def residual(theta: jax.Array) -> jax.Array:
        predicted = law.predict(_attributes(law, theta), columns)
        return jnp.log(predicted) - jnp.log(y) if log else predicted - y

    def value(theta: jax.Array, weight: jax.Array, zone: jax.Array) -> jax.Array:
        r = residual(theta)
        size = jnp.abs(r)
        return jnp.sum(weight * jnp.where(size <= zone, r**2 / 2, zone * (size - zone / 2)))

    def direction(state: _State, weight: jax.Array, zone: jax.Array) -> jax.Array:
        """Newton, blended by damping towards reweighted Gauss-Newton; saddle-free; parameters at a bound held."""
        theta = state.theta
        gradient = jax.grad(value)(theta, weight, zone)
        free = ~(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))
        jacobian = jax.jacfwd(residual)(theta)
        majorised = jnp.minimum(1.0, zone / jnp.maximum(jnp.abs(residual(theta)), 1e-300)) * weight
        gauss = jacobian.T @ (majorised[:, None] * jacobian)
        hessian = jax.hessian(value)(theta, weight, zone)
        length = jnp.sqrt(jnp.diag(gauss)) + 1e-30
        blend = hessian + state.damping * (gauss + 1e-6 * jnp.diag(length**2))
        scaled = jnp.where(free[:, None] & free[None, :], blend / (length[:, None] * length), jnp.eye(len(theta)))
        eigenvalues, vectors = jnp.linalg.eigh(scaled)
        curvature = jnp.maximum(jnp.abs(eigenvalues), 1e-14)
        return -(vectors @ ((vectors.T @ jnp.where(free, gradient / length, 0.0)) / curvature)) / length

    def advance(state: _State, weight: jax.Array, zone: jax.Array) -> _State:
        move = jnp.clip(state.theta + direction(state, weight, zone), low, high)
        new = value(move, weight, zone)
        better = new < state.value
        settled = better & (state.value - new <= 1e-15 * state.value) & (state.damping < 1e-2)
        damping = jnp.clip(jnp.where(better, state.damping * 0.2, state.damping * 5.0), 1e-9, 1e12)
        return _State(
            jnp.where(better, move, state.theta),
            jnp.where(better, new, state.value),
            damping,
            state.step + 1,
            settled | (damping > 1e8) | (state.step + 1 >= STEPS),
        )

    def solve_one(start: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        def stage(theta: jax.Array, zone: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = _State(theta, value(theta, weight, zone), jnp.array(1e-2), jnp.array(0), jnp.array(False))
            state = jax.lax.while_loop(lambda s: ~s.done, lambda s: advance(s, weight, zone), state)
            return state.theta, state.value

        theta, values = jax.lax.scan(stage, start, zones)
        return theta, values[-1]

    return jax.vmap(solve_one)(starts, weights)
