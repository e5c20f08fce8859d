"""Objectives of a fit: sums over points of a function rho of their residuals.

The choice of the objective moves an exponent by more than the width of its interval, so every fit records its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting.newton import QUADRATIC_ZONE

LAD_ZONE = 1e-7  # width within which |r| is rounded to a quadratic, so that Newton's method has derivatives


@dataclass(frozen=True)
class Objective:
    """Sum over points of weight * rho(residual).

    rho is Huber's where `delta` is a number: r^2 / 2 for |r| <= delta, delta (|r| - delta / 2) beyond. It is |r| where
    `is_absolute`, else r^2. Residuals are those of the log response where `is_log`, else of the response.
    """

    name: str
    delta: float | None
    is_log: bool
    is_absolute: bool = False

    def zone_widths(self, widths: tuple[float, ...]) -> np.ndarray:
        """Widths of the quadratic zone for analysis.fitting.newton.solve to go through, widest first.

        Huber: `widths` times delta. Least absolute deviations: from 1e-2 down to LAD_ZONE. Squares: one, that holds
        every residual.
        """
        if self.is_absolute:
            return LAD_ZONE * np.array([*np.geomspace(1e5, 1e1, 5), 1.0])
        return np.array([QUADRATIC_ZONE]) if self.delta is None else self.delta * np.asarray(widths)

    def value(self, residuals: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
        """The objective of residuals [points] under weights [points]."""
        size = np.abs(residuals)
        if self.is_absolute:
            return float(np.sum(weights * size))
        if self.delta is None:
            return float(np.sum(weights * size**2))
        return float(np.sum(weights * np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2))))

    def residuals(self, predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Measured less predicted, of the logs where `is_log`."""
        return np.log(measured / predicted) if self.is_log else measured - predicted


def huber(delta: float = 1e-3) -> Objective:
    """Huber's function of log residuals; delta is in the units of log loss (Hoffmann et al. 2022 use 1e-3)."""
    return Objective("huber", delta, True)


lad = Objective("lad", None, True, is_absolute=True)
"""Least absolute deviations of log residuals, the objective of the values that Besiroglu et al. 2024 print."""
mse_log = Objective("mse_log", None, True)
"""Squares of log residuals. Like `mse`, a sum over points, not a mean."""
mse = Objective("mse", None, False)
"""Squares of residuals."""
