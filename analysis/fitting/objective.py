"""What a fit minimises: a sum over points of a function of their residuals.

The objective moves an exponent more than its interval does, so every fit names its own. Not in the design's list of
modules: the engine, the estimators and the intervals all read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting.newton import QUADRATIC_ZONE

LAD_ZONE = 1e-7  # zone within which a least absolute deviation is rounded, so that it has derivatives


@dataclass(frozen=True)
class Objective:
    """Sum over points of rho(residual); rho is r^2 / 2 up to delta and linear beyond, r^2, or |r|."""

    name: str
    delta: float | None
    is_log: bool
    is_absolute: bool = False

    def zone_widths(self, widths: tuple[float, ...]) -> np.ndarray:
        if self.is_absolute:
            return LAD_ZONE * np.array([*np.geomspace(1e5, 1e1, 5), 1.0])
        return np.array([QUADRATIC_ZONE]) if self.delta is None else self.delta * np.asarray(widths)

    def value(self, residuals: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
        size = np.abs(residuals)
        if self.is_absolute:
            return float(np.sum(weights * size))
        if self.delta is None:
            return float(np.sum(weights * size**2))
        return float(np.sum(weights * np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2))))

    def residuals(self, predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
        return np.log(measured / predicted) if self.is_log else measured - predicted


def huber(delta: float = 1e-3) -> Objective:
    """Huber of log residuals, in the units of log loss (Hoffmann et al. 2022 use 1e-3)."""
    return Objective("huber", delta, True)


lad = Objective("lad", None, True, is_absolute=True)
"""Least absolute deviation of log residuals: what Besiroglu et al. 2024 print."""
mse_log = Objective("mse_log", None, True)
mse = Objective("mse", None, False)
