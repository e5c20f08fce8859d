"""Functional forms: how loss depends on parameters and tokens.

A law is one object. Nothing else in the package knows its name, so a new law is a new object here and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pandas as pd

Values = Mapping[str, Any]
Columns = Mapping[str, Any] | pd.DataFrame


@dataclass(frozen=True, eq=False)
class Law:
    """A function of named columns with named parameters.

    predict(p, x) reads parameters as attributes of p and columns as attributes of x, and broadcasts. It must be made of
    operators and jax.numpy functions, so that it differentiates.
    """

    name: str
    parameters: tuple[str, ...]
    columns: tuple[str, ...]
    predict: Callable[[Any, Any], Any]
    source: str
    bounds: Mapping[str, tuple[float, float]]
    """Widest values a fit may take. A parameter whose lower bound is above zero is searched in its logarithm."""
    grid: Mapping[str, tuple[float, ...]]
    """Starting values; every combination is tried. Parameters in linear_in need none: they are projected out."""
    linear_in: tuple[str, ...] = ()
    """Parameters that the prediction is linear in, all others held."""
    optimum: Callable[[Any], tuple[Any, Any]] | None = None
    """(G, a) of the compute-optimal params = G (flops / 6)^a, where there is a closed form."""
    text: Callable[[Any], str] = field(default=repr)
    """The law written out with its numbers."""

    def __call__(self, values: Values, columns: Columns) -> np.ndarray:
        """Predictions in float64. Values may be arrays (bootstrap draws): they broadcast against the columns."""
        with jax.enable_x64(True):
            p = SimpleNamespace(**{name: np.asarray(values[name], np.float64) for name in self.parameters})
            x = SimpleNamespace(**{name: np.asarray(columns[name], np.float64) for name in self.columns})
            return np.asarray(self.predict(p, x), np.float64)

    def describe(self, values: Values) -> str:
        return self.text(SimpleNamespace(**values))


def laws() -> Iterator[Law]:
    """Every law of this module."""
    return (value for value in globals().values() if isinstance(value, Law))


def find(name: str) -> Law:
    """The law of that name, as a saved fit needs it. Raises KeyError."""
    for law in laws():
        if law.name == name:
            return law
    raise KeyError(f"no law is named {name!r}; known: {', '.join(law.name for law in laws())}")


def _chinchilla_optimum(p: Any) -> tuple[Any, Any]:
    """Hoffmann et al. 2022, eq. 4."""
    a = p.beta / (p.alpha + p.beta)
    return (p.alpha * p.A / (p.beta * p.B)) ** (1 / (p.alpha + p.beta)), a


_EXPONENTS = (0.08, 0.16, 0.25, 0.35, 0.45, 0.6, 0.9, 1.4)

chinchilla = Law(
    "chinchilla",
    parameters=("E", "A", "B", "alpha", "beta"),
    columns=("params", "tokens"),
    predict=lambda p, x: p.E + p.A * x.params**-p.alpha + p.B * x.tokens**-p.beta,
    source="Hoffmann et al. 2022, eq. 2",
    linear_in=("E", "A", "B"),
    bounds={"E": (1e-6, 1e3), "A": (1e-9, 1e30), "B": (1e-9, 1e30), "alpha": (1e-3, 5.0), "beta": (1e-3, 5.0)},
    grid={"alpha": _EXPONENTS, "beta": _EXPONENTS},
    optimum=_chinchilla_optimum,
    text=lambda p: f"L(N, D) = {p.E:.4g} + {p.A:.4g}/N^{p.alpha:.3f} + {p.B:.4g}/D^{p.beta:.3f}",
)
