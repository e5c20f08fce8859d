"""Laws of learning curves: an error y as a function of one amount of training x."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.laws.law import Law, all_combinations

_RATES = (0.05, 0.15, 0.3, 0.5, 0.9, 1.5)
_POSITIVE = (1e-100, 1e100)
_RATE = (1e-4, 10.0)
_STEPS = 6  # Newton steps that take _root to rounding error for every al within its bounds
_XY = {"columns": ("x",), "response": "y"}
_SOURCE = "Alabdulmohsin et al. 2022"

m1 = Law(
    "m1",
    formula="y = b x^-c",
    parameters=("b", "c"),
    predict=lambda p, x: p.b * x.x**-p.c,
    source=f"{_SOURCE}, M1",
    linear_in=("b",),
    bounds={"b": _POSITIVE, "c": _RATE},
    starts={"c": _RATES},
    **_XY,
)

m2 = Law(
    "m2",
    formula="y = e + b x^-c",
    parameters=("e", "b", "c"),
    predict=lambda p, x: p.e + p.b * x.x**-p.c,
    source=f"{_SOURCE}, M2",
    linear_in=("e", "b"),
    bounds={"e": (1e-9, 1e6), "b": _POSITIVE, "c": _RATE},
    starts={"c": _RATES},
    **_XY,
)

m3 = Law(
    "m3",
    formula="y = b (1/x + g)^c",
    parameters=("b", "g", "c"),
    predict=lambda p, x: p.b * (1 / x.x + p.g) ** p.c,
    source=f"{_SOURCE}, M3",
    linear_in=("b",),
    bounds={"b": _POSITIVE, "g": (1e-30, 1e3), "c": _RATE},
    starts=lambda x, y: all_combinations(c=_RATES, g=1 / (np.max(x.x) * np.array([0.3, 3.0, 30.0, 1e3]))),
    **_XY,
)


@jax.custom_jvp
def _root(al: jax.Array, target: jax.Array) -> jax.Array:
    """Solves ln s - al ln(1 - s) = target for the logit z of s, by Newton's method.

    In z the left side is al softplus(z) - softplus(-z): convex where al > 1, else concave, with the asymptotes z and
    al z. They give a start from which Newton's method cannot overshoot. The derivatives of the root come from the
    implicit function theorem, below.
    """
    z = jnp.where(target < 0, target, target / al)
    for _ in range(_STEPS):
        excess = al * jnp.logaddexp(0.0, z) - jnp.logaddexp(0.0, -z) - target
        z = z - excess / (jax.nn.sigmoid(-z) + al * jax.nn.sigmoid(z))
    return z


@_root.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (al, target), (d_al, d_target) = primals, tangents
    z = _root(al, target)
    # With g(z, al) = al softplus(z) - softplus(-z) = target: dz = (d target - dg/dal d al) / (dg/dz).
    slope = jax.nn.sigmoid(-z) + al * jax.nn.sigmoid(z)
    return z, (d_target - jnp.logaddexp(0.0, z) * d_al) / slope


_logit = jax.jit(_root)


def _m4(p: Any, x: Any) -> Any:
    """M4 solved for y: with y = e + (e0 - e) s it becomes ln s - al ln(1 - s) = ln b - c ln x + (al - 1) ln(e0 - e)."""
    gap = p.e0 - p.e
    target = jnp.log(p.b) - p.c * jnp.log(x.x) + (p.al - 1) * jnp.log(gap)
    return p.e + gap * jax.nn.sigmoid(_logit(jnp.broadcast_to(p.al, jnp.shape(target)), target))


def _m4_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts over c, al, e and e0 whose b puts the curve through the medians of x and y."""
    s = all_combinations(
        c=_RATES, al=np.array([0.3, 1.0, 3.0]), e=np.array([0.05, 0.5, 0.9]) * np.min(y),
        e0=np.array([1.05, 1.5, 5.0]) * np.max(y),
    )  # fmt: skip
    y_median = np.clip(np.median(y), 1.001 * s["e"], 0.999 * s["e0"])
    return s | {"b": (y_median - s["e"]) / (s["e0"] - y_median) ** s["al"] * np.median(x.x) ** s["c"]}


m4 = Law(
    "m4",
    formula="(y - e)/(e0 - y)^al = b x^-c, solved for y",
    parameters=("e", "e0", "al", "b", "c"),
    predict=_m4,
    source=f"{_SOURCE}, M4",
    bounds={"e": (1e-9, 1e6), "e0": (1e-6, 1e6), "al": (1e-3, 30.0), "b": _POSITIVE, "c": _RATE},
    starts=_m4_starts,
    **_XY,
)


def _bnsl(p: Any, x: Any) -> Any:
    """In log x: (1 + (x/d1)^(1/f1))^(-c1 f1) is exp(-c1 f1 softplus(ln(x/d1)/f1)), which cannot overflow."""
    log = jnp.log(x.x)
    bend = p.c1 * p.f1 * jnp.logaddexp(0.0, (log - jnp.log(p.d1)) / p.f1)
    return p.a + p.b * jnp.exp(-p.c0 * log - bend)


bnsl = Law(
    "bnsl",
    formula="y = a + b x^-c0 (1 + (x/d1)^(1/f1))^(-c1 f1)",
    parameters=("a", "b", "c0", "c1", "d1", "f1"),
    predict=_bnsl,
    source="Caballero et al. 2022, eq. 1, one break",
    linear_in=("a", "b"),
    bounds={
        "a": (1e-9, 1e6),
        "b": _POSITIVE,
        "c0": (-5.0, 10.0),
        "c1": (-10.0, 10.0),
        "d1": (1e-6, 1e30),
        "f1": (1e-3, 10.0),
    },
    starts=lambda x, y: all_combinations(
        c0=np.array([0.0, 0.1, 0.3, 0.7]),
        c1=np.array([-0.2, 0.2, 0.5]),
        f1=np.array([0.1, 0.5, 2.0]),
        d1=np.quantile(x.x, [0.2, 0.5, 0.8, 1.0]),
    ),
    **_XY,
)


def bounds_from_points(law: Law, x: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns bounds on the parameters of a law of this module that follow from the points, to pass to `fit_law`.

    The error that is left at infinite x (e, a) lies below every point, as Alabdulmohsin et al. 2022 require. Ours:
    error before training (e0) lies above every point, and at most 100 times above; a plateau (1/g) begins after the
    first point and at most a million times beyond the last; a break (d1) has two points after it. Without these three
    the search ends in valleys where the points do not tell one value from another.

    Args:
      x, y: [points], positive.
    """
    x_sorted = np.unique(x)
    bounds = {
        "e": (1e-9 * y.min(), y.min()),
        "a": (1e-9 * y.min(), y.min()),
        "e0": (y.max(), 100 * y.max()),
        "g": (1e-6 / x_sorted[-1], 1 / x_sorted[0]),
        "d1": (x_sorted[0], x_sorted[max(len(x_sorted) - 3, 0)]),
    }
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items() if name in law.parameters}
