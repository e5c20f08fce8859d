"""Muennighoff et al. 2023: how fast repeated data and excess parameters lose their value (R_D*, R_N*).

Used by `scaling replicate`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from analysis.errors import TableError
from analysis.fitting.fit import Fit, fit_law, huber, refit_with_objectives
from analysis.fitting.newton import Box
from analysis.laws import Law, surface
from analysis.replicate.study import Comparison, Reason, Replication, check_bound, check_interval, compare, read_csv

# The C4 law of single-epoch runs, published as logarithms; it is fixed while R_D* and R_N* are fitted.
SINGLE_EPOCH_LAW = {
    "A": float(np.exp(6.255414)),
    "B": float(np.exp(7.3049974)),
    "E": float(np.exp(0.6254804)),
    "alpha": 0.3526596,
    "beta": 0.3526596,
}
PUBLISHED = {"R_N": 5.309743, "R_D": 15.387756}
PUBLISHED_OBJECTIVE = 0.015825936570763588  # in float32
LOWER_MINIMUM = {"R_N": 1.71, "R_D": 95.4}  # another minimum, whose objective is lower
LOWER_OBJECTIVE = 0.015805
CHI_SQUARED_95 = 3.841  # the 95 % quantile of chi-squared with one degree of freedom
PROFILE_GRID = np.geomspace(2.0, 1e4, 120)  # values of R_D* at which the profile is computed, up to the law's bound
PROFILE_STARTS = (
    0.8,
    1.7,
    3.0,
    5.3,
    12.0,
    40.0,
)  # values of R_N* from which the search at each point of the profile starts

# The single-epoch law is a constant of the formula: two parameters compile in a third of the time that seven with five
# fixed take.
repeats_law = Law(
    "repeats",
    formula=surface.data_constrained.formula,
    parameters=("R_N", "R_D"),
    columns=surface.data_constrained.columns,
    predict=lambda p, x: surface.data_constrained.predict(SimpleNamespace(**SINGLE_EPOCH_LAW, R_N=p.R_N, R_D=p.R_D), x),
    source="Muennighoff et al. 2023, eqs. 5 and 6, on their law of single-epoch runs",
    bounds={name: surface.data_constrained.bounds[name] for name in ("R_N", "R_D")},
    starts={"R_N": tuple(np.geomspace(0.5, 50.0, 6)), "R_D": tuple(np.geomspace(3.0, 1e3, 8))},
)


@dataclass(frozen=True)
class RepeatedRuns:
    """columns: the law's, each [runs]. loss: nats per token, [runs]."""

    columns: dict[str, np.ndarray]
    loss: np.ndarray


def run(data: Path) -> list[Comparison]:
    """Fits R_D* and R_N* to the 182 runs, and compares the published minimum and a lower one with the fit."""
    table = read_csv(data, "datablations_182.csv")
    names = {"params": "N", "tokens": "D", "unique_tokens": "U"}
    runs = RepeatedRuns(
        {k: table[v].to_numpy(np.float64) for k, v in names.items()}, table["loss"].to_numpy(np.float64)
    )
    best = fit_law(repeats_law, runs.columns, runs.loss, huber(1e-3))
    return [*_compare_published_minimum(best, runs), *_compare_lower_minimum(best, runs)]


def descend(best: Fit, runs: RepeatedRuns, start: dict[str, float]) -> tuple[dict[str, float], float]:
    """The values (R_N, R_D by name) and the objective of the minimum that a descent from `start` reaches."""
    values, objectives = refit_with_objectives(replace(best, values=start), runs.columns, runs.loss)
    return dict(zip(repeats_law.parameters, map(float, values[0]), strict=True)), float(objectives[0])


def profile_objective(best: Fit, runs: RepeatedRuns, grid: np.ndarray) -> np.ndarray:
    """The lowest objective over R_N* at each R_D* of the grid: [grid]."""
    # A box of width zero in the logarithm of R_D* fixes it to the value of the grid.
    low, high = (np.repeat(edge, len(grid), axis=0) for edge in best.box)
    low[:, 1] = high[:, 1] = np.log(grid)
    starts = [replace(best, values={"R_D": best.values["R_D"], "R_N": start}) for start in PROFILE_STARTS]
    return np.min(
        [refit_with_objectives(start, runs.columns, runs.loss, box=Box(low, high))[1] for start in starts], axis=0
    )


def likelihood_interval(objectives: np.ndarray, lowest: float, points: int, grid: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest R_D* of the grid that a likelihood-ratio test at 5 % does not reject.

    An interval that is open on one side ends at that end of the grid.

    The quadratic zone of the Huber loss (1e-3) is a hundredth of the residuals, so the objective is close to a sum of
    absolute deviations. That is a Laplace likelihood of unknown scale, whose log ratio is
    points * log(objective / lowest). Raises TableError if no point of the grid is inside the interval.
    """
    threshold = lowest * np.exp(CHI_SQUARED_95 / (2 * points))
    inside_grid = grid[objectives <= threshold]
    if not len(inside_grid):
        nearest = int(np.argmin(objectives))
        raise TableError(
            f"R_D*: no value of the grid {grid[0]:.4g} to {grid[-1]:.4g} lies in the 95 % interval; the best, "
            f"{grid[nearest]:.4g}, has the objective {objectives[nearest]:.7g}, which must be at most {threshold:.7g}; "
            "take a finer or a longer grid"
        )
    return float(inside_grid.min()), float(inside_grid.max())


def _compare_published_minimum(best: Fit, runs: RepeatedRuns) -> list[Comparison]:
    """Compares with the published minimum: its objective, where a descent from it ends, and the best minimum.

    R_D* and R_N* are `not an optimum` if the descent stays within 1 % of them and the best objective is lower.
    """
    objective = best.objective
    at_published = objective.value(objective.residuals(repeats_law(PUBLISHED, runs.columns), runs.loss))
    local, local_objective = descend(best, runs, PUBLISHED)
    is_local_minimum = all(abs(local[name] / PUBLISHED[name] - 1) < 0.01 for name in PUBLISHED)
    note = (
        f"a local minimum: a descent from it stays, at R_D* {local['R_D']:.4g}, R_N* {local['R_N']:.4g}, objective "
        f"{local_objective:.7f}; the best is {best.objective_value:.7f} "
        f"at {best.values['R_D']:.4g}, {best.values['R_N']:.4g}"
    )
    reason = Reason("not an optimum", is_local_minimum and best.objective_value < local_objective * (1 - 1e-6), note)
    return [
        compare("datablations", "objective at the published point", PUBLISHED_OBJECTIVE, at_published, 1e-8),
        *(
            compare("datablations", f"{name}*, descent from the published point", PUBLISHED[name], local[name], 0.05)
            for name in ("R_D", "R_N")
        ),
        *(
            compare("datablations", f"{name}*, published", PUBLISHED[name], best.values[name], 0.05, reason=reason)
            for name in ("R_D", "R_N")
        ),
    ]


def _compare_lower_minimum(best: Fit, runs: RepeatedRuns) -> list[Comparison]:
    """Compares the best minimum with the lower one known, and both values of R_D* with its 95 % interval."""
    ends = likelihood_interval(
        profile_objective(best, runs, PROFILE_GRID), best.objective_value, best.points, PROFILE_GRID
    )
    is_open_above = ends[1] == PROFILE_GRID[-1]
    note = "from a profile over R_D* with R_N* free" + (
        ", open above: the runs do not exclude that repeats are worth as much as new tokens" if is_open_above else ""
    )
    return [
        check_bound("datablations", "lowest objective", LOWER_OBJECTIVE, best.objective_value),
        compare("datablations", "R_D*, lower minimum", LOWER_MINIMUM["R_D"], best.values["R_D"], 0.05),
        compare("datablations", "R_N*, lower minimum", LOWER_MINIMUM["R_N"], best.values["R_N"], 0.005),
        check_interval(
            "datablations", "R_D*, published, in the 95 % interval", PUBLISHED["R_D"], best.values["R_D"], ends, note
        ),
        check_interval(
            "datablations", "R_D*, lower, in the 95 % interval", LOWER_MINIMUM["R_D"], best.values["R_D"], ends, note
        ),
    ]


STUDY = Replication(
    "datablations",
    "Muennighoff et al. 2023, arXiv 2305.16264; huggingface/datablations at 13701315",
    run,
    folder="datablations",
    why_not_fetched="its table stands inside a notebook, utils/parametric_fit.ipynb; give --data",
)
