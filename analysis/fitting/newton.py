"""The engine under every fit: a damped Newton method that solves many small problems of one law at once.

A problem is a start, a loss and a weight for every point; starts of a grid, resamples, simulated sweeps and profiles
are all problems, so one compiled program serves them all. LANES problems are advanced together inside one loop on the
device; a lane that finishes writes its answer and takes the next problem, so none waits for the slowest. Each step
evaluates the residuals, their Jacobian and their curvature once, at the trial point, and keeps them if it is better.

Not in the design's list of modules: fit.py says what is minimised, this says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis.laws import Law

SLOTS = 32  # problems advanced together: few, so that little waits for the last ones of a small batch
MIN_PADDED_POINTS = 64  # points that fewer are padded to
MAX_SLOT_POINTS = 64 * 1024  # lanes times points held at once: more points, fewer lanes
PROBLEMS_PER_CALL = 2048  # problems sent to the device at once, always: one size, so that little is compiled
LARGE_TABLE = 4096  # points beyond which they are sent by FEWEST
FIRST_DAMPING = 1e-2  # of the first step
MAX_ZONES = 6  # widths of the zone at most
QUADRATIC_ZONE = 1e9  # a Huber zone that no residual leaves
MAX_STEPS = 150  # Newton steps at most, at each width of the zone
ROUGH_TOLERANCE, FINAL_TOLERANCE = (
    1e-2,
    1e-11,
)  # relative decrease still expected, below which a width is left: all but the last, the last


class Box(NamedTuple):
    """Bounds of the parameters as searched, [1 or problems, parameters] each. Equal bounds hold one fixed."""

    low: np.ndarray
    high: np.ndarray


class Problems(NamedTuple):
    """starts [problems, parameters] as searched; weights [problems, points]; losses and boxes of one row are shared."""

    starts: np.ndarray
    weights: np.ndarray
    losses: np.ndarray
    box: Box


def is_log_searched(law: Law) -> np.ndarray:
    """Which parameters are searched in their logarithm: those that the law bounds above zero."""
    return np.array([law.bounds[name][0] > 0 for name in law.parameters])


def values_from_theta(law: Law, theta: Any) -> Any:
    """Values of parameters as searched."""
    return np.where(is_log_searched(law), np.exp(np.where(is_log_searched(law), theta, 0.0)), theta)


def theta_from_values(law: Law, values: Any) -> Any:
    """Inverse of natural."""
    return np.where(is_log_searched(law), np.log(np.where(is_log_searched(law), values, 1.0)), values)


def parameter_namespace(law: Law, theta: jax.Array) -> SimpleNamespace:
    """Parameters as law.predict reads them, from one vector as searched."""
    values = [jnp.exp(t) if above else t for t, above in zip(theta, is_log_searched(law), strict=True)]
    return SimpleNamespace(**dict(zip(law.parameters, values, strict=True)))


def padded_length(count: int) -> int:
    """The number of points that a table is padded to: few numbers, so that few programs are compiled."""
    return MIN_PADDED_POINTS * 2 ** max(int(np.ceil(np.log2(count / MIN_PADDED_POINTS))), 0)


def log_prediction_jacobian(law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> np.ndarray:
    """Derivatives of log predictions by the parameters as searched: [points, parameters]."""
    count = len(next(iter(x.values())))
    columns = {name: np.pad(column, (0, padded_length(count) - count), mode="edge") for name, column in x.items()}
    with jax.enable_x64(True):
        return np.asarray(_log_prediction_jacobian(law, np.asarray(theta), columns))[:count]


@partial(jax.jit, static_argnums=0)
def _log_prediction_jacobian(law: Law, theta: Any, x: Any) -> jax.Array:
    return jax.jacfwd(lambda t: jnp.log(law.predict(parameter_namespace(law, t), SimpleNamespace(**x))))(theta)


def solve(
    law: Law, log: bool, x: Mapping[str, np.ndarray], problems: Problems, zones: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Local optima of sum over points of weight * rho(residual): parameters as searched, and objectives.

    rho is r^2 / 2 up to the zone and linear beyond. The zones are gone through in turn, each from the optimum of the
    one before: a robust objective is reached from a wider, smoother one.

    Args:
      log: residuals of log loss instead of loss.
      x: the law's columns, [points].
      zones: widths of the quadratic zone, widest first; the last is the objective's own.
    """
    count = problems.losses.shape[1]
    points = padded_length(count)
    lanes = int(np.clip(MAX_SLOT_POINTS // points, 1, SLOTS))
    room = MIN_PADDED_POINTS if points > LARGE_TABLE else PROBLEMS_PER_CALL
    columns = {name: np.pad(column, (0, points - count), mode="edge") for name, column in x.items()}
    widths = np.concatenate([np.full(MAX_ZONES - len(zones), zones[0]), zones])
    parts = []
    for first in range(0, len(problems.starts), room):
        jobs = min(room, len(problems.starts) - first)

        def part(array: np.ndarray, fill: int = 0, mode: Any = "edge", first: int = first, jobs: int = jobs) -> Any:
            rows = np.broadcast_to(array, (jobs, array.shape[1])) if len(array) == 1 else array[first : first + jobs]
            return np.pad(np.pad(rows, ((0, room - jobs), (0, 0)), mode="edge"), ((0, 0), (0, fill)), mode=mode)

        box = Box(part(problems.box.low), part(problems.box.high))
        weights = part(problems.weights, points - count, "constant")
        block = Problems(part(problems.starts), weights, part(problems.losses, points - count), box)
        with jax.enable_x64(True):
            found = _solve(law, log, lanes, columns, block, widths, np.int32(MAX_ZONES - len(zones)), np.int32(jobs))
            parts.append([array[:jobs] for array in jax.device_get(found)])
    thetas, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return thetas, values


class _Slot(NamedTuple):
    """One problem under way. gradient, curvature and gauss are those at theta."""

    job: jax.Array
    theta: jax.Array
    value: jax.Array
    gradient: jax.Array
    curvature: jax.Array
    gauss: jax.Array
    damping: jax.Array
    stage: jax.Array
    step: jax.Array
    fresh: jax.Array


@partial(jax.jit, static_argnums=(0, 1, 2))
def _solve(
    law: Law, log: bool, lanes: int, x: Any, problems: Problems, zones: Any, opening: Any, jobs: Any
) -> tuple[jax.Array, jax.Array]:
    columns = SimpleNamespace(**x)
    starts, weights, losses, (lows, highs) = jax.tree.map(jnp.asarray, problems)
    width, last = starts.shape[1], MAX_ZONES - 1

    def evaluate(theta: jax.Array, job: jax.Array, stage: jax.Array):
        weight, y, zone = weights[job], losses[job], zones[stage]

        def residual(t: jax.Array) -> jax.Array:
            predicted = law.predict(parameter_namespace(law, t), columns)
            return jnp.log(predicted) - jnp.log(y) if log else predicted - y

        r = residual(theta)
        size = jnp.abs(r)
        inside = size <= zone
        value = jnp.sum(weight * jnp.where(inside, r**2 / 2, zone * (size - zone / 2)))
        slope = weight * jnp.where(inside, r, zone * jnp.sign(r))
        majorised = weight * jnp.minimum(1.0, zone / jnp.maximum(size, 1e-300))
        jacobian = jax.jacfwd(residual)(theta)
        pull = jax.grad(lambda t: jnp.vdot(slope, residual(t)))
        bend = jax.jacfwd(pull)(theta)
        curvature = jacobian.T @ ((weight * inside)[:, None] * jacobian) + bend
        return value, jacobian.T @ slope, curvature, jacobian.T @ (majorised[:, None] * jacobian)

    def trial(lane: _Slot) -> tuple[jax.Array, jax.Array]:
        """Newton, blended by damping towards reweighted Gauss-Newton; saddle-free; parameters at a bound held."""
        low, high = lows[lane.job], highs[lane.job]
        gradient = lane.gradient
        free = ~(((lane.theta <= low) & (gradient >= 0)) | ((lane.theta >= high) & (gradient <= 0)))
        length = jnp.sqrt(jnp.diag(lane.gauss)) + 1e-30
        blend = lane.curvature + lane.damping * (lane.gauss + 1e-6 * jnp.diag(length**2))
        scaled = jnp.where(free[:, None] & free[None, :], blend / (length[:, None] * length), jnp.eye(width))
        eigenvalues, vectors = jnp.linalg.eigh(scaled)
        along = vectors.T @ jnp.where(free, gradient / length, 0.0)
        along = along / jnp.maximum(jnp.abs(eigenvalues), 1e-14)
        move = jnp.clip(lane.theta - (vectors @ along) / length, low, high)
        return jnp.where(lane.fresh, lane.theta, move), jnp.vdot(gradient, lane.theta - move)

    def advance(lane: _Slot) -> tuple[_Slot, jax.Array]:
        theta, expected = trial(lane)
        value, gradient, curvature, gauss = evaluate(theta, lane.job, lane.stage)
        better = lane.fresh | (value < lane.value)
        damping = jnp.where(better, lane.damping * 0.2, lane.damping * 5.0)
        damping = jnp.where(lane.fresh, lane.damping, jnp.clip(damping, 1e-9, 1e12))
        tolerance = jnp.where(lane.stage == last, FINAL_TOLERANCE, ROUGH_TOLERANCE)
        little = (expected <= tolerance * jnp.abs(lane.value)) & (lane.damping < 1e-1)
        settled = ~lane.fresh & (little | (damping > 1e8) | (lane.step >= MAX_STEPS) | ~jnp.isfinite(lane.value))
        kept = lane._replace(theta=theta, value=value, gradient=gradient, curvature=curvature, gauss=gauss)
        lane = jax.tree.map(lambda new, old: jnp.where(better, new, old), kept, lane)
        lane = lane._replace(
            damping=jnp.where(settled, FIRST_DAMPING, damping),
            stage=jnp.where(settled, jnp.minimum(lane.stage + 1, last), lane.stage),
            step=jnp.where(settled, 0, lane.step + 1),
            fresh=settled,
        )
        return lane, settled & (kept.stage == last)

    def load(job: jax.Array) -> _Slot:
        theta = jnp.clip(starts[job], lows[job], highs[job])
        square = jnp.zeros((width, width))
        zero = jnp.int32(0)
        infinite, damping, fresh = jnp.array(jnp.inf), jnp.array(FIRST_DAMPING), jnp.array(True)
        return _Slot(job, theta, infinite, jnp.zeros(width), square, square, damping, opening, zero, fresh)

    def loop(carry):
        lane, following, thetas, values = carry
        lane, ended = jax.vmap(advance)(lane)
        ended = ended & (lane.job < jobs)
        thetas = thetas.at[jnp.where(ended, lane.job, len(thetas))].set(lane.theta, mode="drop")
        values = values.at[jnp.where(ended, lane.job, len(values))].set(lane.value, mode="drop")
        order = following + jnp.cumsum(ended) - 1
        new = jax.vmap(load)(jnp.where(ended, order, lane.job).astype(jnp.int32))
        lane = jax.tree.map(lambda n, o: jnp.where(ended.reshape((-1,) + (1,) * (o.ndim - 1)), n, o), new, lane)
        return lane, (following + jnp.sum(ended)).astype(jnp.int32), thetas, values

    def unfinished(carry) -> jax.Array:
        return jnp.any(carry[0].job < jobs)

    first = jax.vmap(load)(jnp.arange(lanes, dtype=jnp.int32))
    empty = (jnp.zeros(starts.shape), jnp.zeros(len(starts)))
    _, _, thetas, values = jax.lax.while_loop(unfinished, loop, (first, jnp.int32(lanes), *empty))
    return thetas, values
