"""Muennighoff et al. 2023: how fast repeated data and excess parameters lose their worth (R_D*, R_N*)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from analysis.errors import TableError
from analysis.fitting.fit import Fit, fit_law, huber, refit_with_objectives
from analysis.fitting.newton import Box
from analysis.laws import Law, surface
from analysis.replicate.study import Reason, Row, Study, at_most, compare, holds, read_csv

BASE = {  # the C4 law fitted to single-epoch runs, held while R_D* and R_N* are fitted; published as logarithms
    "A": float(np.exp(6.255414)),
    "B": float(np.exp(7.3049974)),
    "E": float(np.exp(0.6254804)),
    "alpha": 0.3526596,
    "beta": 0.3526596,
}
PUBLISHED = {"R_N": 5.309743, "R_D": 15.387756}
PUBLISHED_OBJECTIVE = 0.015825936570763588  # in float32
BETTER = {"R_N": 1.71, "R_D": 95.4}  # another minimum, known to be lower
BETTER_OBJECTIVE = 0.015805
QUANTILE = 3.841  # of chi-squared with one degree of freedom, 95 %
GRID = np.geomspace(2.0, 1e4, 120)  # R_D* of the profile, up to the law's bound
OTHERS = (0.8, 1.7, 3.0, 5.3, 12.0, 40.0)  # R_N* from which each point of the profile is searched

# The base law held inside the formula: two parameters compile in a third of the time of seven with five fixed.
repeats = Law(
    "repeats",
    formula=surface.data_constrained.formula,
    parameters=("R_N", "R_D"),
    columns=surface.data_constrained.columns,
    predict=lambda p, x: surface.data_constrained.predict(SimpleNamespace(**BASE, R_N=p.R_N, R_D=p.R_D), x),
    source="Muennighoff et al. 2023, eqs. 5 and 6, on their law of single-epoch runs",
    bounds={name: surface.data_constrained.bounds[name] for name in ("R_N", "R_D")},
    starts={"R_N": tuple(np.geomspace(0.5, 50.0, 6)), "R_D": tuple(np.geomspace(3.0, 1e3, 8))},
)


@dataclass(frozen=True)
class Repeated:
    """Runs: columns of the law, loss in nats per token."""

    columns: dict[str, np.ndarray]
    loss: np.ndarray


def run(data: Path) -> list[Row]:
    table = read_csv(data, "datablations_182.csv")
    names = {"params": "N", "tokens": "D", "unique_tokens": "U"}
    runs = Repeated({k: table[v].to_numpy(np.float64) for k, v in names.items()}, table["loss"].to_numpy(np.float64))
    best = fit_law(repeats, runs.columns, runs.loss, huber(1e-3))
    return [*_local_minimum(best, runs), *_best(best, runs)]


def descend(best: Fit, runs: Repeated, start: dict[str, float]) -> tuple[dict[str, float], float]:
    """(R_N*, R_D*) and objective of the minimum that a descent from `start` ends in."""
    values, objectives = refit_with_objectives(replace(best, values=start), runs.columns, runs.loss)
    return dict(zip(repeats.parameters, map(float, values[0]), strict=True)), float(objectives[0])


def profile(best: Fit, runs: Repeated, grid: np.ndarray) -> np.ndarray:
    """Lowest objective at each R_D*, R_N* free: [grid]."""
    low, high = (np.repeat(edge, len(grid), axis=0) for edge in best.box)
    low[:, 1] = high[:, 1] = np.log(grid)
    starts = [replace(best, values={"R_D": best.values["R_D"], "R_N": start}) for start in OTHERS]
    return np.min(
        [refit_with_objectives(start, runs.columns, runs.loss, box=Box(low, high))[1] for start in starts], axis=0
    )


def interval(objectives: np.ndarray, lowest: float, points: int, grid: np.ndarray) -> tuple[float, float]:
    """Smallest and largest R_D* that a likelihood-ratio test at 5 % leaves; the ends of the grid where it is open.

    The zone of the objective is a hundredth of the residuals, so that it is a sum of absolute deviations: a Laplace
    likelihood of unknown scale, whose log ratio is points * log(objective / lowest). Raises TableError where the grid
    has no point inside, being too coarse or too short.
    """
    threshold = lowest * np.exp(QUANTILE / (2 * points))
    inside = grid[objectives <= threshold]
    if not len(inside):
        nearest = int(np.argmin(objectives))
        raise TableError(
            f"R_D*: no value of the grid {grid[0]:.4g} to {grid[-1]:.4g} lies in the 95 % interval; the best, "
            f"{grid[nearest]:.4g}, has the objective {objectives[nearest]:.7g}, which must be at most {threshold:.7g}; "
            "take a finer or a longer grid"
        )
    return float(inside.min()), float(inside.max())


def _local_minimum(best: Fit, runs: Repeated) -> list[Row]:
    objective = best.objective
    at_published = objective.value(objective.residuals(repeats(PUBLISHED, runs.columns), runs.loss))
    local, value = descend(best, runs, PUBLISHED)
    stays = all(abs(local[name] / PUBLISHED[name] - 1) < 0.01 for name in PUBLISHED)
    note = (
        f"a local minimum: a descent from it stays, at R_D* {local['R_D']:.4g}, R_N* {local['R_N']:.4g}, objective "
        f"{value:.7f}; the best is {best.objective_value:.7f} at {best.values['R_D']:.4g}, {best.values['R_N']:.4g}"
    )
    reason = Reason("not an optimum", stays and best.objective_value < value * (1 - 1e-6), note)
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


def _best(best: Fit, runs: Repeated) -> list[Row]:
    ends = interval(profile(best, runs, GRID), best.objective_value, best.points, GRID)
    open_above = ends[1] == GRID[-1]
    note = "from a profile over R_D* with R_N* free" + (
        ", open above: the runs do not exclude that repeats are worth as much as new tokens" if open_above else ""
    )
    return [
        at_most("datablations", "lowest objective", BETTER_OBJECTIVE, best.objective_value),
        compare("datablations", "R_D*, lower minimum", BETTER["R_D"], best.values["R_D"], 0.05),
        compare("datablations", "R_N*, lower minimum", BETTER["R_N"], best.values["R_N"], 0.005),
        holds(
            "datablations", "R_D*, published, in the 95 % interval", PUBLISHED["R_D"], best.values["R_D"], ends, note
        ),
        holds("datablations", "R_D*, lower, in the 95 % interval", BETTER["R_D"], best.values["R_D"], ends, note),
    ]


STUDY = Study(
    "datablations",
    "Muennighoff et al. 2023, arXiv 2305.16264; huggingface/datablations at 13701315",
    run,
    folder="datablations",
    unfetched="its table stands inside a notebook, utils/parametric_fit.ipynb; give --data",
)
