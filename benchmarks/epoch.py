"""Epoch's published fit of the Chinchilla form (Besiroglu et al. 2024), written anew from its description."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

GRID = {
    "log A": np.linspace(0, 25, 6),
    "log B": np.linspace(0, 25, 6),
    "log E": np.linspace(-1, 1, 5),
    "alpha": np.linspace(0, 2, 5),
    "beta": np.linspace(0, 2, 5),
}
"""Every combination is a start: 4,500."""
DELTA = 1e-3
SEED = 0


def epoch(table: pd.DataFrame, optimum: Mapping[str, float], reached: float, starts: int, draws: int) -> dict[str, Any]:
    """What the procedure costs: a seeded sample of its starts, and of its resamples, each from one start.

    Logarithms of the columns are taken once, and not at each evaluation, and resamples start at the optimum: cheaper
    than what was published.

    Args:
      table: columns params, tokens, loss.
      optimum: values of the whole table, by parameter.
      reached: an objective up to this is the optimum.
      starts, draws: how many of each are run, two at least.
    """
    params, tokens, loss = (np.log(table[name].to_numpy(np.float64)) for name in ("params", "tokens", "loss"))
    generator = np.random.default_rng(SEED)
    grid = np.array(list(itertools.product(*GRID.values())))
    seconds, values, again = [], [], []
    for start in grid[generator.choice(len(grid), starts, replace=False)]:
        before = time.process_time()
        values.append(_search(start, params, tokens, loss))
        seconds.append(time.process_time() - before)
    warm = np.array([*(np.log(optimum[name]) for name in "ABE"), optimum["alpha"], optimum["beta"]])
    for _ in range(draws):
        before = time.process_time()
        rows = generator.integers(len(loss), size=len(loss))
        _search(warm, params[rows], tokens[rows], loss[rows])
        again.append(time.process_time() - before)
    return {
        "starts_measured": starts,
        "starts_measured_seconds": sum(seconds),
        "seconds_a_start": _mean(seconds),
        "starts": len(grid),
        "starts_seconds_extrapolated": len(grid) * sum(seconds) / starts,
        "share_at_optimum": float(np.mean(np.array(values) <= reached)),
        "share_within_1_percent": float(np.mean(np.array(values) <= reached * 1.01)),
        "resamples_measured": draws,
        "resamples_measured_seconds": sum(again),
        "seconds_a_resample": _mean(again),
    }


def _mean(seconds: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(seconds)), "standard_error": float(np.std(seconds, ddof=1) / len(seconds) ** 0.5)}


def _search(start: np.ndarray, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> float:
    """L-BFGS-B with finite differences, scipy's defaults, on the summed Huber of log residuals. All in logarithms."""

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        predicted = np.log(np.exp(a - alpha * params) + np.exp(b - beta * tokens) + np.exp(e))
        size = np.abs(loss - predicted)
        return float(np.sum(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2))))

    with np.errstate(all="ignore"):
        return float(minimize(objective, start, method="L-BFGS-B").fun)
