"""What a law is: a function of named columns with named parameters.

`analysis.laws` is a package because its laws would pass 300 lines in one module: surfaces in (params, tokens), curves
of one variable, the settings of an optimiser, and accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pandas as pd

Values = Mapping[str, Any]
Columns = Mapping[str, Any] | pd.DataFrame
Starts = Mapping[str, tuple[float, ...]] | Callable[[Any, np.ndarray], Mapping[str, np.ndarray]]

UNITS: Mapping[str, str] = {
    "params": "parameters, in the counting that the fit names",
    "tokens": "training tokens",
    "unique_tokens": "distinct training tokens",
    "flops": "training FLOPs",
    "loss": "nats per token",
    "bits_per_byte": "bits per byte",
    "error": "share of wrong answers",
    "accuracy": "share of right answers",
    "chance": "share of right answers of a model that knows nothing",
    "ceiling": "best possible share of right answers",
    "x": "any amount of training",
    "y": "any error measure",
    "learning_rate": "peak learning rate",
    "batch_tokens": "tokens a batch",
    "samples": "samples drawn a problem",
    "failure": "share of problems that no sample solves",
}
"""Units of the columns that laws read and predict."""


@dataclass(frozen=True, eq=False)
class Law:
    """A function of named columns with named parameters.

    predict(p, x) reads parameters as attributes of p and columns as attributes of x, and broadcasts. It must be made of
    operators and jax.numpy functions, so that it differentiates twice.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    columns: tuple[str, ...]
    predict: Callable[[Any, Any], Any]
    source: str
    bounds: Mapping[str, tuple[float, float]]
    """Widest values a fit may take. A parameter whose lower bound is above zero is searched in its logarithm."""
    starts: Starts
    """Starting values of the parameters not in linear_in, which are projected out. A mapping of tuples: every
    combination is tried. A function of the columns and the response: arrays of one length, a start each."""
    linear_in: tuple[str, ...] = ()
    """Parameters that the prediction is linear in, all others held."""
    response: str = "loss"
    """The column that is predicted."""
    optimum: Callable[[Any], tuple[Any, Any]] | None = None
    """(G, a) of the compute-optimal params = G (flops / 6)^a, where there is a closed form."""
    format_values: Callable[[Any], str] | None = None
    """The law written out with its numbers; the formula followed by them unless given."""

    def __call__(self, values: Values, columns: Columns) -> np.ndarray:
        """Predictions in float64. Values may be arrays (bootstrap draws): they broadcast against the columns."""
        with jax.enable_x64(True):
            p = SimpleNamespace(**{name: np.asarray(values[name], np.float64) for name in self.parameters})
            x = SimpleNamespace(**{name: np.asarray(columns[name], np.float64) for name in self.columns})
            return np.asarray(self.predict(p, x), np.float64)

    def describe(self, values: Values) -> str:
        if self.format_values is not None:
            return self.format_values(SimpleNamespace(**values))
        return f"{self.formula}; " + ", ".join(f"{name} = {values[name]:.4g}" for name in self.parameters)

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the columns read and of the response."""
        return {name: UNITS[name] for name in (*self.columns, self.response)}

    def __repr__(self) -> str:
        return f"Law({self.name}: {self.formula}; {self.source})"


def all_combinations(**choices: Any) -> dict[str, np.ndarray]:
    """Every combination of the choices, as arrays of one length: starts that a function works further on."""
    return dict(zip(choices, (axis.ravel() for axis in np.meshgrid(*choices.values())), strict=True))
