"""Pairs bootstrap over clusters of runs: standard errors and intervals of a law's parameters.

Whole clusters of points (a run, or a trunk and its branches, whose errors go together) are drawn with replacement, and
the law is refitted to each draw from its fitted values. A draw is a weight on each point: how often it was drawn. The
intervals assume the form of the law; those of analysis.forecasting.prediction_intervals do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting.fit import Fit, refit
from analysis.fitting.newton import LARGE_TABLE
from analysis.fitting.one_step import one_step_draws
from analysis.laws import Columns, Law

METHOD = "pairs bootstrap over runs"
MAX_REDRAWS = 1000  # times that a resample with too few distinct points is drawn anew
MAX_WEIGHTS = 2**22  # most weights in memory at once, draws times points: resamples are drawn and solved in blocks
DRAWS_PER_BLOCK = (64, 4096)  # fewest and most draws in a block


def choose_clusters(points: Columns, parameters: int) -> tuple[np.ndarray, str]:
    """The resampling unit of each point, [points], and a warning where trunks are too few to be resampled whole.

    A law cannot be refitted to two or three trunks: with fewer than twice as many trunks as parameters, single runs are
    the units, and the warning says so. The warning is empty otherwise.

    Args:
      points: columns cluster (the trunk, or the run itself) and run_id.
      parameters: how many parameters are fitted.
    """
    trunks, runs = np.asarray(points["cluster"]), np.asarray(points["run_id"])
    num_trunks = len(pd.unique(trunks))
    if num_trunks >= 2 * parameters or num_trunks == len(pd.unique(runs)):
        return trunks, ""
    note = f"{num_trunks} trunks are too few to resample whole: runs resampled singly, intervals may be narrow"
    return runs, note


def bootstrap(
    fit: Fit,
    columns: Columns,
    loss: Any,
    unit: Sequence[str] | np.ndarray,
    *,
    weights: np.ndarray | None = None,
    draws: int = 512,
    seed: int = 0,
) -> np.ndarray:
    """Refits the law to resampled clusters: values, [draws, parameters], in the order of fit.law.parameters. For a
    large table a refit is one Newton step (analysis.fitting.one_step).

    Args:
      loss: the response, [points].
      unit: the cluster of each point, [points].
      weights: those of the fit, [points]; ones unless given.
    """
    if len(np.asarray(loss)) > LARGE_TABLE:
        own = np.ones(len(np.asarray(loss))) if weights is None else weights
        spread = {"draws": draws, "seed": seed}
        return one_step_draws(fit.law, fit.objective, fit.vector(), columns, loss, own, unit, fit.box, **spread)
    own = 1.0 if weights is None else weights
    blocks = draw_weight_blocks(columns, fit.law, unit, draws=draws, seed=seed)
    return np.concatenate([refit(fit, columns, loss, own * times) for times in blocks])


def draw_weight_blocks(
    columns: Columns, law: Law, unit: Sequence[str] | np.ndarray, *, draws: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields how often each point is drawn, in blocks [draws of the block, points], `draws` rows in all."""
    generator = np.random.default_rng(seed)
    _, member = np.unique(np.asarray(unit), return_inverse=True)
    cells = np.stack([np.asarray(columns[name], np.float64) for name in law.columns], 1)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    rows = int(np.clip(MAX_WEIGHTS // len(member), *DRAWS_PER_BLOCK))
    counts = [min(rows, draws - first) for first in range(0, draws, rows)]
    return (draw_weights(generator, member, cell.ravel(), len(law.parameters), count) for count in counts)


def draw_weights(
    generator: np.random.Generator, member: np.ndarray, cell: np.ndarray, parameters: int, draws: int
) -> np.ndarray:
    """How often each point is drawn, [draws, points].

    A row with no more distinct cells (settings of the law's columns) than parameters is drawn anew, at most
    MAX_REDRAWS times.

    Args:
      member: number of each point's cluster, [points].
      cell: number of each point's cell, [points].
    """
    groups = int(member.max()) + 1
    order = np.argsort(cell, kind="stable")
    _, firsts = np.unique(cell[order], return_index=True)

    def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights [rows, points], and which rows have too few cells [rows]."""
        # One bincount serves all rows: cluster g of row r is counted at r * groups + g.
        picks = generator.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        times = np.bincount(picks.ravel(), minlength=rows * groups).reshape(rows, groups)
        # Points sorted by cell: a cell is in a row when any of its points is, an "or" over each stretch.
        has_cell = np.logical_or.reduceat((times > 0)[:, member[order]], firsts, axis=1)
        return times[:, member].astype(np.float64), has_cell.sum(1) <= parameters

    weights, short = draw(draws)
    for _ in range(MAX_REDRAWS - 1):
        if not short.any():
            break
        again = np.flatnonzero(short)
        weights[again], short[again] = draw(len(again))
    return weights


def standard_errors(draws: np.ndarray) -> np.ndarray:
    """Standard deviation of each parameter over draws [draws, parameters]."""
    return np.std(draws, axis=0, ddof=1)


def central_interval(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the equal-tailed interval over the first axis, at a nominal level such as 0.9."""
    return np.quantile(draws, (1 - level) / 2, axis=0), np.quantile(draws, (1 + level) / 2, axis=0)
