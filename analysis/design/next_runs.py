"""`scaling design`: the runs to train next for a forecast, given those at hand and a budget.

Not in the design's list of modules: design.py ranks cells; this says which cells there are, and what they are for.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.design.optimal_design import DRIFT, Policy, Posterior, Proposal, approximate_posterior, propose
from analysis.errors import TableError
from analysis.fitting import compute_optimal
from analysis.fitting.fit import Fit, compute_weights, fit_law, huber
from analysis.laws import Law
from analysis.tables import results
from analysis.tables.results import SURFACE_COLUMNS

TARGET_FACTOR = 10.0  # the target's compute over the largest at hand, unless a target is given
GRID_FACTOR = 4.0  # how far a grid of candidates goes beyond the largest size and horizon at hand
CELL_TOLERANCE = 0.02  # sizes and horizons this close, relatively, are one cell


@dataclass(frozen=True)
class Design:
    """Proposed runs: cells has columns params, tokens, flops and standard_error (of the forecast log loss after each),
    in the order in which they lower it."""

    cells: pd.DataFrame
    target: pd.DataFrame
    fit: Fit
    posterior: Posterior
    proposal: Proposal
    params_column: str
    assumed: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        return {
            "cells": self.cells.to_dict("records"),
            "target": self.target.iloc[0].to_dict(),
            "predicted": float(self.fit.predict(self.target)[0]),
            "standard_error_before": float(self.proposal.standard_errors[0]),
            "standard_error_after": float(self.proposal.standard_errors[-1]),
            "cost": self.proposal.cost,
            "law": self.fit.law.describe(self.fit.values),
            "params_column": self.params_column,
            "noise": self.posterior.noise,
            **self.assumed,
        }

    def to_json(self) -> str:
        return jsonlib.dumps(self.facts(), indent=1)

    def __repr__(self) -> str:
        before, after = self.proposal.standard_errors[[0, -1]]
        cost = f"{len(self.cells)} cells for {self.proposal.cost:.3g} FLOPs"
        return f"Design({cost}; standard error of the forecast {before:.2%} -> {after:.2%})\n{self.cells}"


def design_cells(
    runs: pd.DataFrame,
    budget: float,
    law: Law,
    *,
    target: tuple[float, float] | None = None,
    candidates: pd.DataFrame | None = None,
    grid: tuple[int, int] = (8, 8),
    policy: Policy = "v",
    cells: int | None = 10,
    params: str | None = None,
    weight_power: float = 1.0,
    drift: float = DRIFT,
    seed: int = 0,
) -> Design:
    """Fits a law to the runs, and proposes those to train next.

    Args:
      runs: a results table.
      budget: training FLOPs for all proposed runs together.
      target: params and tokens of the run to forecast; the compute-optimal run of 10x the largest compute unless given.
      candidates: columns params and tokens, and flops if it is not the usual multiple of their product; a grid from the
        smallest to 4x the largest size and horizon at hand, without the cells at hand and those that cost as much as
        the target, unless given.
      grid: sizes and horizons of that grid.
      cells: at most so many.
      params: which count of parameters params stands for.
      weight_power: weights of the fit grow with this power of training FLOPs.
    Raises:
      TableError: runs that cannot be fitted, a budget that buys nothing, or an argument out of its range.
    """
    _check_arguments(budget, target, grid, cells)
    needed = len(law.parameters)
    found = results.select_points(runs, params, parameters=needed, columns=law.columns, response=law.response)
    points = found.table
    fit = fit_law(law, points, points[law.response], huber(), weights=compute_weights(points["flops"], weight_power))
    rate = float(np.median(points["flops"] / (points["params"] * points["tokens"])))
    aim = _make_target(fit, points, rate, target)
    offered = (
        _grid_candidates(points, rate, grid, float(aim["flops"].iloc[0]))
        if candidates is None
        else _check_candidates(candidates, rate)
    )
    posterior = approximate_posterior(law, fit.vector(), points, aim, drift=drift, seed=seed)
    proposal = propose(posterior, offered, budget, policy=policy, max_cells=cells)
    chosen = offered.iloc[proposal.cells].reset_index(drop=True)
    assumed = {
        "budget": budget,
        "policy": policy,
        "candidates": len(offered),
        "points": len(points),
        "flops_per_params_token": rate,
        "weight_power": weight_power,
        "drift": drift,
        "warnings": fit.warnings(),
    }
    chosen = chosen.assign(standard_error=proposal.standard_errors[1:])
    return Design(chosen, aim, fit, posterior, proposal, found.params_column, assumed)


def _check_arguments(
    budget: float, target: tuple[float, float] | None, grid: tuple[int, int], cells: int | None
) -> None:
    for name, value, right, good in (
        ("budget", budget, "FLOPs above zero", np.isfinite(budget) and budget > 0),
        ("target", target, "params and tokens above zero", target is None or min(target) > 0),
        ("sizes", grid[0], "at least 2", grid[0] >= 2),
        ("horizons", grid[1], "at least 2", grid[1] >= 2),
        ("cells", cells, "at least 1", cells is None or cells >= 1),
    ):
        if not good:
            raise TableError(f"{name} {value}: must be {right}")


def _make_target(fit: Fit, points: pd.DataFrame, rate: float, asked: tuple[float, float] | None) -> pd.DataFrame:
    if asked is None:
        budget = TARGET_FACTOR * float(points["flops"].max())
        params, tokens = (
            float(part) for part in compute_optimal.optimal_allocation(fit.law, fit.values, 6 * budget / rate)
        )
        sizes, horizons = points["params"], points["tokens"]
        if not (0.01 < params / sizes.max() < 1e4 and 0.01 < tokens / horizons.max() < 1e4):
            raise TableError(
                f"target: the fit puts the best run of {budget:.2g} FLOPs at N = {params:.2g}, D = {tokens:.2g}, far "
                "from any run at hand; name one with --target-params and --target-tokens"
            )
        asked = params, tokens
    frame = pd.DataFrame({"params": [asked[0]], "tokens": [asked[1]]})
    return frame.assign(flops=rate * frame["params"] * frame["tokens"])


def _grid_candidates(points: pd.DataFrame, rate: float, grid: tuple[int, int], below: float) -> pd.DataFrame:
    """Sizes and horizons in two digits, of less than `below` FLOPs, without the cells at hand."""
    axes = []
    for name, count in zip(SURFACE_COLUMNS, grid, strict=True):
        values = np.geomspace(points[name].min(), points[name].max() * GRID_FACTOR, count)
        axes.append([float(f"{value:.2g}") for value in values])
    params, tokens = (axis.ravel() for axis in np.meshgrid(*axes))
    near = np.ones((len(params), len(points)), bool)
    for values, name in ((params, "params"), (tokens, "tokens")):
        near &= np.abs(np.log(values[:, None] / points[name].to_numpy(float))) < CELL_TOLERANCE
    cells = pd.DataFrame({"params": params, "tokens": tokens, "flops": rate * params * tokens})
    return cells[(cells["flops"].to_numpy() < below) & ~near.any(1)].reset_index(drop=True)


def _check_candidates(candidates: pd.DataFrame, rate: float) -> pd.DataFrame:
    if missing := [name for name in SURFACE_COLUMNS if name not in candidates]:
        raise TableError(f"candidates lack the column {missing[0]}; they need params and tokens, and may have flops")
    names = [*SURFACE_COLUMNS, *(["flops"] if "flops" in candidates else [])]
    numbers = candidates[names].apply(pd.to_numeric, errors="coerce").astype(float).reset_index(drop=True)
    for name in names:
        if bad := np.flatnonzero(~(np.isfinite(numbers[name]) & (numbers[name] > 0))).tolist():
            raise TableError(f"candidates, row {bad[0] + 1}: {name} must be a finite number above zero")
    return numbers if "flops" in numbers else numbers.assign(flops=rate * numbers["params"] * numbers["tokens"])
