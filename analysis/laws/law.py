"""The class of a law: a function of named columns of a table with named parameters to fit."""

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
    """A function of named columns with named parameters."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    columns: tuple[str, ...]
    predict: Callable[[Any, Any], Any]
    """predict(p, x) reads parameters as attributes of p and columns as attributes of x, and broadcasts them. It is made
    of operators and jax.numpy functions, so that JAX can differentiate it twice."""
    source: str
    """The paper, and the equation in it."""
    bounds: Mapping[str, tuple[float, float]]
    """Lowest and highest value of each parameter. A parameter whose lower bound is above zero is searched in its
    logarithm."""
    starts: Starts
    """Starting values of the parameters that are not in linear_in. As a mapping of tuples, every combination is a
    start. As a function of (columns, response), it returns arrays of one length, whose i-th entries are start i."""
    linear_in: tuple[str, ...] = ()
    """Parameters in which the prediction is linear when all others are constant: a fit solves for them at each start
    by least squares (analysis.fitting.variable_projection)."""
    response: str = "loss"
    """The column that the law predicts."""
    optimum: Callable[[Any], tuple[Any, Any]] | None = None
    """Maps parameters to (G, a) of the compute-optimal params = G (flops / 6)^a, where a closed form exists."""
    format_values: Callable[[Any], str] | None = None
    """Writes the law out with its fitted numbers; None: the formula, followed by the numbers."""

    def __call__(self, values: Values, columns: Columns) -> np.ndarray:
        """Predicts the response in float64. Values may be arrays, such as bootstrap draws [draws, 1], that broadcast
        against the columns [points]."""
        with jax.enable_x64(True):
            p = SimpleNamespace(**{name: np.asarray(values[name], np.float64) for name in self.parameters})
            x = SimpleNamespace(**{name: np.asarray(columns[name], np.float64) for name in self.columns})
            return np.asarray(self.predict(p, x), np.float64)

    def describe(self, values: Values) -> str:
        """Writes the law out with its fitted numbers, on one line."""
        if self.format_values is not None:
            return self.format_values(SimpleNamespace(**values))
        return f"{self.formula}; " + ", ".join(f"{name} = {values[name]:.4g}" for name in self.parameters)

    @property
    def units(self) -> Mapping[str, str]:
        """The unit of each column that the law reads and of its response."""
        return {name: UNITS[name] for name in (*self.columns, self.response)}

    def __repr__(self) -> str:
        return f"Law({self.name}: {self.formula}; {self.source})"


def all_combinations(**choices: Any) -> dict[str, np.ndarray]:
    """Returns every combination of the choices: one array a name, all of one length, for functions that make starts."""
    return dict(zip(choices, (axis.ravel() for axis in np.meshgrid(*choices.values())), strict=True))
