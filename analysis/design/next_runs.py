"""The runs to train next for a forecast: fits a law, makes the candidate cells, and lets optimal_design choose.

`scaling design` and `analysis.api.design` call it.
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

TARGET_FACTOR = 10.0  # compute of the target over the largest of the runs, unless a target is given
GRID_FACTOR = 4.0  # largest size and horizon of the grid of candidates, over the largest of the runs
CELL_TOLERANCE = 0.02  # log parameters or log tokens this close are the same cell


@dataclass(frozen=True)
class Design:
    """Proposed runs, and what they are proposed from.

    cells: params, tokens, flops, and standard_error of the forecast log loss after this cell, in the order chosen.
    target: params, tokens, flops of the run to forecast, one row.
    fit: of the law to the measured runs.
    params_column: the count of parameters that params stands for.
    settings: the arguments and assumptions behind the proposal, as they stand in the JSON.
    """

    cells: pd.DataFrame
    target: pd.DataFrame
    fit: Fit
    posterior: Posterior
    proposal: Proposal
    params_column: str
    settings: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        """The content of the JSON."""
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
            **self.settings,
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
    """Fits a law to the runs and proposes the runs to train next.

    Args:
      runs: a results table.
      budget: training FLOPs for all proposed runs together.
      law: a law of loss in params and tokens.
      target: params and tokens of the run to forecast; the compute-optimal run of 10x the largest compute unless given.
      candidates: the cells to choose from: columns params, tokens, and perhaps flops (if missing, params * tokens times
        the median ratio of the runs). Unless given, a grid from the smallest to 4x the largest size and horizon of the
        runs, without the cells of the runs and those that cost as much as the target.
      grid: number of sizes and number of horizons of that grid.
      policy: see optimal_design.propose.
      cells: the most cells to propose.
      params: the count of parameters to use.
      weight_power: points of the fit are weighted by training FLOPs to this power.
      drift: see optimal_design.approximate_posterior.
      seed: of the draws of plausible parameters.
    Raises:
      TableError: the runs cannot be fitted, the budget buys nothing, or an argument is out of its range.
    """
    _check_arguments(budget, target, grid, cells)
    selected = results.select_points(
        runs, params, parameters=len(law.parameters), columns=law.columns, response=law.response
    )
    points = selected.table
    fit = fit_law(law, points, points[law.response], huber(), weights=compute_weights(points["flops"], weight_power))
    # training FLOPs per parameter and token: about 6 for a count of matrix multiplications
    rate = float(np.median(points["flops"] / (points["params"] * points["tokens"])))
    target_row = _make_target(fit, points, rate, target)
    candidate_cells = (
        _grid_candidates(points, rate, grid, float(target_row["flops"].iloc[0]))
        if candidates is None
        else _check_candidates(candidates, rate)
    )
    posterior = approximate_posterior(law, fit.vector(), points, target_row, drift=drift, seed=seed)
    proposal = propose(posterior, candidate_cells, budget, policy=policy, max_cells=cells)
    chosen = candidate_cells.iloc[proposal.cells].reset_index(drop=True)
    settings = {
        "budget": budget,
        "policy": policy,
        "candidates": len(candidate_cells),
        "points": len(points),
        "flops_per_params_token": rate,
        "weight_power": weight_power,
        "drift": drift,
        "warnings": [*points.attrs["notes"], *fit.warnings()],
    }
    chosen = chosen.assign(standard_error=proposal.standard_errors[1:])
    return Design(chosen, target_row, fit, posterior, proposal, selected.params_column, settings)


def _check_arguments(
    budget: float, target: tuple[float, float] | None, grid: tuple[int, int], cells: int | None
) -> None:
    """Raises TableError for an argument of design_cells that is out of its range."""
    for name, value, rule, is_valid in (
        ("budget", budget, "FLOPs above zero", np.isfinite(budget) and budget > 0),
        ("target", target, "params and tokens above zero", target is None or min(target) > 0),
        ("sizes", grid[0], "at least 2", grid[0] >= 2),
        ("horizons", grid[1], "at least 2", grid[1] >= 2),
        ("cells", cells, "at least 1", cells is None or cells >= 1),
    ):
        if not is_valid:
            raise TableError(f"{name} {value}: must be {rule}")


def _make_target(fit: Fit, points: pd.DataFrame, rate: float, target: tuple[float, float] | None) -> pd.DataFrame:
    """The run to forecast: params, tokens, flops, one row. rate: training FLOPs per parameter and token."""
    if target is None:
        # optimal_allocation takes the compute of a law as 6 N D
        budget = TARGET_FACTOR * float(points["flops"].max())
        params, tokens = (
            float(part) for part in compute_optimal.optimal_allocation(fit.law, fit.values, 6 * budget / rate)
        )
        sizes, horizons = points["params"], points["tokens"]
        if not (0.01 < params / sizes.max() < 1e4 and 0.01 < tokens / horizons.max() < 1e4):
            raise TableError(
                f"target: the fit puts the best run of {budget:.2g} FLOPs at N = {params:.2g}, D = {tokens:.2g}, far "
                "from any run at hand; give one with --target-params and --target-tokens"
            )
        target = params, tokens
    frame = pd.DataFrame({"params": [target[0]], "tokens": [target[1]]})
    return frame.assign(flops=rate * frame["params"] * frame["tokens"])


def _grid_candidates(points: pd.DataFrame, rate: float, grid: tuple[int, int], max_flops: float) -> pd.DataFrame:
    """Cells of sizes and horizons of two digits, of less than `max_flops` FLOPs, without the cells of the points."""
    axes = []
    for name, count in zip(SURFACE_COLUMNS, grid, strict=True):
        values = np.geomspace(points[name].min(), points[name].max() * GRID_FACTOR, count)
        axes.append([float(f"{value:.2g}") for value in values])
    params, tokens = (axis.ravel() for axis in np.meshgrid(*axes))
    is_measured = np.ones((len(params), len(points)), bool)
    for values, name in ((params, "params"), (tokens, "tokens")):
        is_measured &= np.abs(np.log(values[:, None] / points[name].to_numpy(float))) < CELL_TOLERANCE
    cells = pd.DataFrame({"params": params, "tokens": tokens, "flops": rate * params * tokens})
    return cells[(cells["flops"].to_numpy() < max_flops) & ~is_measured.any(1)].reset_index(drop=True)


def _check_candidates(candidates: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Columns params, tokens, flops of given candidates as float64. Raises TableError for a missing or wrong value."""
    if missing := [name for name in SURFACE_COLUMNS if name not in candidates]:
        raise TableError(f"candidates lack the column {missing[0]}: must have params and tokens, and may have flops")
    names = [*SURFACE_COLUMNS, *(["flops"] if "flops" in candidates else [])]
    numbers = candidates[names].apply(pd.to_numeric, errors="coerce").astype(float).reset_index(drop=True)
    for name in names:
        if invalid := np.flatnonzero(~(np.isfinite(numbers[name]) & (numbers[name] > 0))).tolist():
            raise TableError(f"candidates, row {invalid[0] + 1}: {name} must be a finite number above zero")
    return numbers if "flops" in numbers else numbers.assign(flops=rate * numbers["params"] * numbers["tokens"])
