"""Error as a function of one amount of training: learning curves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.laws.law import Law

_RATES = (0.05, 0.15, 0.3, 0.5, 0.9, 1.5)
_POSITIVE = (1e-12, 1e30)
_RATE = (1e-4, 10.0)
_HALVINGS = 60
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
    starts=lambda x, y: _product(c=_RATES, g=1 / (np.max(x.x) * np.array([0.3, 3.0, 30.0, 1e3]))),
    **_XY,
)


def _product(**choices: Any) -> dict[str, np.ndarray]:
    return dict(zip(choices, (axis.ravel() for axis in np.meshgrid(*choices.values())), strict=True))


def _m4(p: Any, x: Any) -> Any:
    """The root of ln(y - e) - al ln(e0 - y) = ln b - c ln x, by bisection in the share s of y = e + (e0 - e) s.

    Two Newton steps after it carry the derivatives, which bisection has none of.
    """
    gap = p.e0 - p.e
    target = jnp.log(p.b) - p.c * jnp.log(x.x) + (p.al - 1) * jnp.log(gap)

    def excess(logit: jax.Array) -> jax.Array:
        return -jnp.logaddexp(0.0, -logit) + p.al * jnp.logaddexp(0.0, logit) - target

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        above = excess(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    wide = jnp.zeros_like(target) + 500.0
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, jax.lax.stop_gradient((-wide, wide)))
    logit = jax.lax.stop_gradient((low + high) / 2)
    for _ in range(2):
        slope = jax.nn.sigmoid(-logit) + p.al * jax.nn.sigmoid(logit)
        logit = logit - excess(logit) / slope
    return p.e + gap * jax.nn.sigmoid(logit)


def _m4_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """b puts the curve through the middle of the points."""
    s = _product(
        c=_RATES, al=np.array([0.3, 1.0, 3.0]), e=np.array([0.05, 0.5, 0.9]) * np.min(y),
        e0=np.array([1.05, 1.5, 5.0]) * np.max(y),
    )  # fmt: skip
    middle, at = np.median(y), np.median(x.x)
    middle = np.clip(middle, 1.001 * s["e"], 0.999 * s["e0"])
    return s | {"b": (middle - s["e"]) / (s["e0"] - middle) ** s["al"] * at ** s["c"]}


m4 = Law(
    "m4",
    formula="(y - e)/(e0 - y)^al = b x^-c, solved for y",
    parameters=("e", "e0", "al", "b", "c"),
    predict=_m4,
    source=f"{_SOURCE}, M4",
    bounds={"e": (1e-9, 1e6), "e0": (1e-6, 1e6), "al": (1e-3, 30.0), "b": (1e-30, 1e30), "c": _RATE},
    starts=_m4_starts,
    **_XY,
)


def _bnsl(p: Any, x: Any) -> Any:
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
    starts=lambda x, y: _product(
        c0=np.array([0.0, 0.1, 0.3, 0.7]),
        c1=np.array([-0.2, 0.2, 0.5]),
        f1=np.array([0.1, 0.5, 2.0]),
        d1=np.quantile(x.x, [0.2, 0.5, 0.8, 1.0]),
    ),
    **_XY,
)
