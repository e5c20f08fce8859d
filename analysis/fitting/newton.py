"""The solver under every fit: a damped Newton method that solves many small problems of one law at once.

A problem is a start, a response and a weight for every point, and bounds. The starts of a grid, bootstrap resamples,
simulated sweeps and profiles are all problems, so one compiled program serves them all. SLOTS problems advance side by
side (a vmap) inside one loop on the device; a slot whose problem is done writes its answer and takes the next problem,
so that no problem waits for the slowest of its batch. Each step evaluates the residuals, their Jacobian and their
curvature once, at the proposed point, and moves there if the objective is lower.

Laws are fitted in search coordinates `theta`: the logarithm of each parameter that the law bounds above zero, and the
value itself of the others.
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

SLOTS = 32  # problems solved side by side: few, so that few slots idle while the last ones of a small batch end
MIN_PADDED_POINTS = 64  # tables are padded to this many points, or to a power of two times as many
MAX_SLOT_POINTS = 64 * 1024  # slots times points in memory at once: a larger table gets fewer slots
PROBLEMS_PER_CALL = 2048  # problems sent to the device in one call, padded to exactly this, so that little is compiled
LARGE_TABLE = 2048  # points beyond which calls are small, to bound memory, and starts are searched on a sample
MAX_BLOCK_POINTS = 2**22  # most problems of a call times points, for a large table
FIRST_DAMPING = 1e-2  # damping of the first step of each zone
MAX_ZONES = 6  # most widths of the Huber zone that one call goes through
QUADRATIC_ZONE = 1e9  # a Huber zone wider than any residual: least squares
MAX_STEPS = 150  # most Newton steps at one width of the zone
# A width is done when a step is expected to lower the objective by less than this share of it: at all widths but the
# last, and at the last.
ROUGH_TOLERANCE, FINAL_TOLERANCE = 1e-2, 1e-11


class Box(NamedTuple):
    """Bounds of theta, [1 or problems, parameters] each. Equal bounds fix a parameter."""

    low: np.ndarray
    high: np.ndarray


class Problems(NamedTuple):
    """A batch of problems.

    starts: theta, [problems, parameters]. weights, losses: [problems, points]; one row is shared by all problems. box:
    one row, shared, or one per problem. `losses` holds the response, whatever the law predicts.
    """

    starts: np.ndarray
    weights: np.ndarray
    losses: np.ndarray
    box: Box


def is_log_searched(law: Law) -> np.ndarray:
    """Whether each parameter is searched in its logarithm, as one that the law bounds above zero is: [parameters]."""
    return np.array([law.bounds[name][0] > 0 for name in law.parameters])


def values_from_theta(law: Law, theta: Any) -> Any:
    """Parameter values of search coordinates, [..., parameters] both."""
    # The inner where keeps exp from overflowing on parameters that are not logarithms.
    return np.where(is_log_searched(law), np.exp(np.where(is_log_searched(law), theta, 0.0)), theta)


def theta_from_values(law: Law, values: Any) -> Any:
    """Search coordinates of parameter values: the inverse of values_from_theta."""
    return np.where(is_log_searched(law), np.log(np.where(is_log_searched(law), values, 1.0)), values)


def parameter_namespace(law: Law, theta: jax.Array) -> SimpleNamespace:
    """Parameters as law.predict reads them, attributes of one object, from one theta [parameters]."""
    values = [jnp.exp(t) if above else t for t, above in zip(theta, is_log_searched(law), strict=True)]
    return SimpleNamespace(**dict(zip(law.parameters, values, strict=True)))


def padded_length(count: int) -> int:
    """The number of points that `count` are padded to: 64, 128, 256, ..., so that few programs are compiled."""
    return MIN_PADDED_POINTS * 2 ** max(int(np.ceil(np.log2(count / MIN_PADDED_POINTS))), 0)


def log_prediction_jacobian(law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> np.ndarray:
    """Derivatives of the log of each prediction by theta: [points, parameters]."""
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
    """Finds local minima of sum over points of weight * rho(residual).

    rho is Huber's function: r^2 / 2 for |r| up to the width of the zone, linear beyond. Each problem goes through the
    widths in turn, from the minimum at one to the next (continuation), so that a robust objective is reached from a
    wider, smoother one.

    Args:
      log: whether residuals are those of the log response instead of the response.
      x: the law's columns, [points] each.
      zones: widths of the quadratic zone, widest first, at most MAX_ZONES; the last is the objective's own.
    Returns:
      theta of each minimum, [problems, parameters], and the objectives, [problems].
    """
    num_points = problems.losses.shape[1]
    padded_points = padded_length(num_points)
    slots = int(np.clip(MAX_SLOT_POINTS // padded_points, 1, SLOTS))
    largest_block = int(np.clip(MAX_BLOCK_POINTS // padded_points, 1, MIN_PADDED_POINTS))
    block_size = largest_block if padded_points > LARGE_TABLE else PROBLEMS_PER_CALL
    columns = {name: np.pad(column, (0, padded_points - num_points), mode="edge") for name, column in x.items()}
    # Every call has MAX_ZONES widths, so that one program serves every objective; problems begin at the first real one.
    first_zone = MAX_ZONES - len(zones)
    zone_widths = np.concatenate([np.full(first_zone, zones[0]), zones])
    blocks = []
    for first in range(0, len(problems.starts), block_size):
        count = min(block_size, len(problems.starts) - first)

        def rows_of(
            array: np.ndarray, fill: int = 0, mode: Any = "edge", first: int = first, count: int = count
        ) -> Any:
            """This block's rows of an array, a single row repeated, padded to block_size rows and by `fill` columns."""
            rows = np.broadcast_to(array, (count, array.shape[1])) if len(array) == 1 else array[first : first + count]
            return np.pad(np.pad(rows, ((0, block_size - count), (0, 0)), mode="edge"), ((0, 0), (0, fill)), mode=mode)

        box = Box(rows_of(problems.box.low), rows_of(problems.box.high))
        fill = padded_points - num_points
        weights = rows_of(problems.weights, fill, "constant")  # padding points have weight 0
        block = Problems(rows_of(problems.starts), weights, rows_of(problems.losses, fill), box)
        with jax.enable_x64(True):
            solved = _solve(law, log, slots, columns, block, zone_widths, np.int32(first_zone), np.int32(count))
            blocks.append([array[:count] for array in jax.device_get(solved)])
    thetas, values = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    return thetas, values


class _Slot(NamedTuple):
    """One problem in progress.

    problem: its index. theta: [parameters]. value, gradient, curvature (the Hessian) and gauss_newton (its Gauss-Newton
    part, reweighted): of the objective at theta. zone_index: of the width in use. step: steps taken at that width.
    is_new: theta has not been evaluated at this width yet.
    """

    problem: jax.Array
    theta: jax.Array
    value: jax.Array
    gradient: jax.Array
    curvature: jax.Array
    gauss_newton: jax.Array
    damping: jax.Array
    zone_index: jax.Array
    step: jax.Array
    is_new: jax.Array


@partial(jax.jit, static_argnums=(0, 1, 2))
def _solve(
    law: Law, log: bool, slots: int, x: Any, problems: Problems, zones: Any, first_zone: Any, count: Any
) -> tuple[jax.Array, jax.Array]:
    """The device's part of `solve`, for one block. count: how many of its problems are real; the rest pad it."""
    columns = SimpleNamespace(**x)
    starts, weights, losses, (lows, highs) = jax.tree.map(jnp.asarray, problems)
    width, last = starts.shape[1], MAX_ZONES - 1

    def evaluate(theta: jax.Array, problem: jax.Array, zone_index: jax.Array):
        """Objective, gradient, Hessian and reweighted Gauss-Newton matrix at theta."""
        weight, y, zone = weights[problem], losses[problem], zones[zone_index]

        def residual(t: jax.Array) -> jax.Array:
            predicted = law.predict(parameter_namespace(law, t), columns)
            return jnp.log(predicted) - jnp.log(y) if log else predicted - y

        r = residual(theta)
        size = jnp.abs(r)
        inside = size <= zone
        value = jnp.sum(weight * jnp.where(inside, r**2 / 2, zone * (size - zone / 2)))
        slope = weight * jnp.where(inside, r, zone * jnp.sign(r))  # weight rho'(r)
        # The weight of iteratively reweighted least squares, rho'(r)/r. The quadratic with this weight touches rho at r
        # and lies above it elsewhere, so that its Gauss-Newton matrix is positive and bounds the curvature of rho.
        irls_weight = weight * jnp.minimum(1.0, zone / jnp.maximum(size, 1e-300))
        jacobian = jax.jacfwd(residual)(theta)
        # Hessian = J' diag(weight rho'') J + sum over points of slope * Hessian of the residual; the second term is the
        # derivative of J' slope with the slope constant. rho'' is 1 inside the zone and 0 outside.
        slope_dot_residual = jax.grad(lambda t: jnp.vdot(slope, residual(t)))
        residual_curvature = jax.jacfwd(slope_dot_residual)(theta)
        curvature = jacobian.T @ ((weight * inside)[:, None] * jacobian) + residual_curvature
        return value, jacobian.T @ slope, curvature, jacobian.T @ (irls_weight[:, None] * jacobian)

    def propose(slot: _Slot) -> tuple[jax.Array, jax.Array]:
        """The next theta, and by how much the gradient says the objective falls on the way there.

        A Newton step with Levenberg-Marquardt damping, which blends in the reweighted Gauss-Newton matrix, positive
        even where most residuals lie outside the zone. Eigenvalues enter by their absolute value, so that a step goes
        downhill from a saddle (Dauphin et al. 2014).
        """
        low, high = lows[slot.problem], highs[slot.problem]
        gradient = slot.gradient
        # Active set: a parameter at a bound, pushed outwards by its gradient, stays there and leaves the linear system.
        free = ~(((slot.theta <= low) & (gradient >= 0)) | ((slot.theta >= high) & (gradient <= 0)))
        # Unit diagonal: parameters of any scale, and exponents beside logarithms, weigh alike in the eigenvalues.
        length = jnp.sqrt(jnp.diag(slot.gauss_newton)) + 1e-30
        blend = slot.curvature + slot.damping * (slot.gauss_newton + 1e-6 * jnp.diag(length**2))
        scaled = jnp.where(free[:, None] & free[None, :], blend / (length[:, None] * length), jnp.eye(width))
        eigenvalues, vectors = jnp.linalg.eigh(scaled)
        gradient_in_eigenbasis = vectors.T @ jnp.where(free, gradient / length, 0.0)
        step_in_eigenbasis = gradient_in_eigenbasis / jnp.maximum(jnp.abs(eigenvalues), 1e-14)
        theta = jnp.clip(slot.theta - (vectors @ step_in_eigenbasis) / length, low, high)
        return jnp.where(slot.is_new, slot.theta, theta), jnp.vdot(gradient, slot.theta - theta)

    def advance(slot: _Slot) -> tuple[_Slot, jax.Array]:
        """One step of one slot, and whether its problem is done."""
        theta, expected = propose(slot)
        value, gradient, curvature, gauss_newton = evaluate(theta, slot.problem, slot.zone_index)
        better = slot.is_new | (value < slot.value)
        damping = jnp.where(better, slot.damping * 0.2, slot.damping * 5.0)
        damping = jnp.where(slot.is_new, slot.damping, jnp.clip(damping, 1e-9, 1e12))
        tolerance = jnp.where(slot.zone_index == last, FINAL_TOLERANCE, ROUGH_TOLERANCE)
        # A small expected decrease means convergence only where damping is small: heavy damping makes any step short.
        converged = (expected <= tolerance * jnp.abs(slot.value)) & (slot.damping < 1e-1)
        zone_done = ~slot.is_new & (converged | (damping > 1e8) | (slot.step >= MAX_STEPS) | ~jnp.isfinite(slot.value))
        proposed = slot._replace(
            theta=theta, value=value, gradient=gradient, curvature=curvature, gauss_newton=gauss_newton
        )
        slot = jax.tree.map(lambda new, old: jnp.where(better, new, old), proposed, slot)
        # At the end of a zone the same theta is evaluated anew at the next width.
        slot = slot._replace(
            damping=jnp.where(zone_done, FIRST_DAMPING, damping),
            zone_index=jnp.where(zone_done, jnp.minimum(slot.zone_index + 1, last), slot.zone_index),
            step=jnp.where(zone_done, 0, slot.step + 1),
            is_new=zone_done,
        )
        return slot, zone_done & (proposed.zone_index == last)

    def open_slot(problem: jax.Array) -> _Slot:
        """A slot at the start of a problem."""
        theta = jnp.clip(starts[problem], lows[problem], highs[problem])
        square = jnp.zeros((width, width))
        zero = jnp.int32(0)
        infinite, damping, is_new = jnp.array(jnp.inf), jnp.array(FIRST_DAMPING), jnp.array(True)
        return _Slot(problem, theta, infinite, jnp.zeros(width), square, square, damping, first_zone, zero, is_new)

    def loop(carry):
        """One step of every slot; slots whose problem is done store its answer and open the next problems in order."""
        slot, next_problem, thetas, values = carry
        slot, finished = jax.vmap(advance)(slot)
        finished = finished & (slot.problem < count)
        # An index past the end is dropped: only finished slots write.
        thetas = thetas.at[jnp.where(finished, slot.problem, len(thetas))].set(slot.theta, mode="drop")
        values = values.at[jnp.where(finished, slot.problem, len(values))].set(slot.value, mode="drop")
        order = next_problem + jnp.cumsum(finished) - 1
        new = jax.vmap(open_slot)(jnp.where(finished, order, slot.problem).astype(jnp.int32))
        slot = jax.tree.map(lambda n, o: jnp.where(finished.reshape((-1,) + (1,) * (o.ndim - 1)), n, o), new, slot)
        return slot, (next_problem + jnp.sum(finished)).astype(jnp.int32), thetas, values

    def unfinished(carry) -> jax.Array:
        return jnp.any(carry[0].problem < count)

    first = jax.vmap(open_slot)(jnp.arange(slots, dtype=jnp.int32))
    empty = (jnp.zeros(starts.shape), jnp.zeros(len(starts)))
    _, _, thetas, values = jax.lax.while_loop(unfinished, loop, (first, jnp.int32(slots), *empty))
    return thetas, values
