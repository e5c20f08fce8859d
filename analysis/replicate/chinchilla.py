"""Besiroglu et al. 2024: Chinchilla's third approach refitted, under each objective that its numbers may mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.fitting.bootstrap import bootstrap
from analysis.fitting.fit import Fit, fit_law, huber, lad
from analysis.laws import chinchilla
from analysis.replicate.study import File, Reason, Row, Study, at_most, compare, read_csv

NAMES = ("A", "B", "E", "alpha", "beta")
OUTLIERS = 5  # highest losses that the paper leaves out of 245
DRAWS = 4000
PRINTED = (482.01, 2085.43, 1.8169, 0.3478, 0.3659)  # in the paper, as a Huber fit
PRINTED_DIGIT = (0.01, 0.01, 1e-4, 1e-4, 1e-4)  # a unit of the last: the paper's optimiser stopped a little early
SMOOTHED_LAD = (481.9344186, 2085.001325, 1.816844321, 0.3478043444, 0.3658441599)
SMOOTHED_LAD_QUOTED = (481.9, 2085.0, 1.8168, 0.3478, 0.3658)
SMOOTHED_LAD_DIGIT = (0.05, 0.5, 5e-5, 5e-5, 5e-5)
HUBER = (477.83, 2143.4, 1.81722, 0.34731, 0.36717)
HUBER_DIGIT = (0.005, 0.05, 5e-6, 5e-6, 5e-6)
NOTEBOOK_OBJECTIVE = 0.0010182740346154362  # cell 18, "replicate exactly"
ERRORS = {"E": 0.026, "alpha": 0.015, "beta": 0.021, "a": 0.020}
ALL_POINTS = {"beta": 0.453, "a": 0.565}
NEAR = 5e-4  # relative distance at which the printed point counts as the LAD solution


def run(data: Path) -> list[Row]:
    table = read_csv(data, "svg_extracted_data.csv")
    params, flops, loss = (table[name].to_numpy(np.float64) for name in ("Model Size", "Training FLOP", "loss"))
    columns = {"params": params, "tokens": flops / (6 * params)}
    kept = loss < np.sort(loss)[-OUTLIERS]
    fewer = {name: column[kept] for name, column in columns.items()}
    by_huber, by_lad = (fit_law(chinchilla, fewer, loss[kept], objective) for objective in (huber(1e-3), lad))
    return [
        *_least_absolute(by_lad, fewer, loss[kept]),
        *_parameters("Huber(1e-3)", HUBER, HUBER_DIGIT, by_huber),
        at_most("chinchilla", "Huber objective, notebook's own fit", NOTEBOOK_OBJECTIVE, by_huber.objective_value),
        *_printed_point(by_huber, by_lad, fewer, loss[kept]),
        *_standard_errors(by_huber, fewer, loss[kept]),
        *_all_points(fit_law(chinchilla, columns, loss, huber(1e-3))),
    ]


def _parameters(
    what: str, published: tuple[float, ...], digits: tuple[float, ...], fit: Fit, reason: Reason | None = None
) -> list[Row]:
    return [
        compare("chinchilla", f"{name}, {what}", value, fit.values[name], digit, reason=reason)
        for name, value, digit in zip(NAMES, published, digits, strict=True)
    ]


def _objective(fit: Fit, point: tuple[float, ...], columns: dict[str, np.ndarray], loss: np.ndarray) -> float:
    """The fit's objective at another point."""
    predicted = chinchilla(dict(zip(NAMES, point, strict=True)), columns)
    return fit.objective.value(fit.objective.residuals(predicted, loss))


def _least_absolute(fit: Fit, columns: dict[str, np.ndarray], loss: np.ndarray) -> list[Row]:
    """What the paper prints, read as LAD; and the solution of a smoothed LAD, which is not quite the optimum."""
    worse = _objective(fit, SMOOTHED_LAD, columns, loss)
    note = f"a smoothed LAD ended there, at {worse:.8g}; the exact one reaches {fit.objective_value:.8g}"
    reason = Reason("not an optimum", worse > fit.objective_value, note)
    return [
        *_parameters("least absolute deviation", PRINTED, PRINTED_DIGIT, fit),
        *_parameters("LAD, smoothed", SMOOTHED_LAD_QUOTED, SMOOTHED_LAD_DIGIT, fit, reason),
    ]


def _printed_point(by_huber: Fit, by_lad: Fit, columns: dict[str, np.ndarray], loss: np.ndarray) -> list[Row]:
    """The paper's point as what it is called there, a Huber fit: its free scale had collapsed, which made it LAD."""
    there = _objective(by_huber, PRINTED, columns, loss)
    distances = [
        max(abs(value / fit.values[name] - 1) for name, value in zip(NAMES, PRINTED, strict=True))
        for fit in (by_lad, by_huber)
    ]
    note = (
        f"not the Huber optimum: the objective is {there:.7g} there and {by_huber.objective_value:.7g} at the optimum. "
        f"It is the LAD solution: off ours by {distances[0]:.2g} at most, off the Huber optimum by {distances[1]:.2g}"
    )
    holds = there > by_huber.objective_value * (1 + 1e-6) and distances[0] <= NEAR < distances[1]
    return _parameters("printed as Huber", PRINTED, PRINTED_DIGIT, by_huber, Reason("not an optimum", holds, note))


def _standard_errors(fit: Fit, columns: dict[str, np.ndarray], loss: np.ndarray) -> list[Row]:
    """Pairs bootstrap, each resample at its own Huber optimum."""
    draws = bootstrap(fit, columns, loss, np.arange(len(loss)), draws=DRAWS, seed=0)
    values = dict(zip(fit.law.parameters, draws.T, strict=True))
    values["a"] = values["beta"] / (values["alpha"] + values["beta"])
    note = f"{DRAWS} resamples under Huber(1e-3): the paper's errors belong to that objective, its point to LAD"
    return [
        compare("chinchilla", f"standard error of {name}", error, np.std(values[name], ddof=1), 5e-4, note)
        for name, error in ERRORS.items()
    ]


def _all_points(fit: Fit) -> list[Row]:
    ours = dict(fit.values)
    ours["a"] = ours["beta"] / (ours["alpha"] + ours["beta"])
    return [
        compare("chinchilla", f"{name}, all 245 points, Huber(1e-3)", value, ours[name], 5e-4)
        for name, value in ALL_POINTS.items()
    ]


STUDY = Study(
    "chinchilla",
    "Besiroglu et al. 2024, arXiv 2404.10102; epoch-research/analyzing-chinchilla at 92258837",
    run,
    folder="chinchilla_epoch",
    repository="epoch-research/analyzing-chinchilla",
    commit="92258837425e1b5f2851d624287f0120583a3d0e",
    files=(
        File(
            "data/svg_extracted_data.csv",
            "svg_extracted_data.csv",
            "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
        ),
    ),
)
