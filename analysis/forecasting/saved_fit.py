"""fit.json: a fitted law with all that is needed to forecast from it, draw it and fit it again.

`build_saved_fit` makes one from a table's points; verbs, figures and the report read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import files, laws
from analysis.errors import TableError
from analysis.fitting import bootstrap, compute_optimal
from analysis.fitting.fit import MAX_SEARCHED_POINTS, Fit, Objective, fit_law, huber
from analysis.fitting.newton import LARGE_TABLE
from analysis.fitting.profile_likelihood import profile_parameters
from analysis.forecasting import prediction_intervals
from analysis.forecasting.fit_file import read_fit_file
from analysis.forecasting.law_choice import Candidate, Choice, choose
from analysis.forecasting.prediction_intervals import PredictiveDistribution, predictive_from_facts
from analysis.quantities import parse_quantity
from analysis.tables import results, table_checks
from analysis.tables.cells import extend_to_cells
from analysis.tables.results import Points

SCHEMA = 1
DIGITS = 12  # of the bootstrap draws in fit.json
NEAR_INFINITY = 1e30  # params and tokens at which a law of loss is as good as at its floor


@dataclass(frozen=True, repr=False)
class SavedFit:
    """The content of fit.json, with the values that its readers compute from it.

    document: the JSON as it is on disk; its keys are those that `build_saved_fit` writes.
    """

    document: Mapping[str, Any]

    @cached_property
    def law(self) -> laws.Law:
        """The fitted law."""
        return laws.get_law(self.document["law"])

    @property
    def values(self) -> dict[str, float]:
        """Name of each parameter -> its fitted value."""
        return self.document["parameters"]

    @cached_property
    def points(self) -> pd.DataFrame:
        """The fitted points: run_id, cluster, the law's columns, flops and the response."""
        return pd.DataFrame(self.document["points"])

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """The points that were held out: the same columns, perhaps no rows."""
        held_out = self.document["held_out"]
        return pd.DataFrame(held_out, columns=self.points.columns) if held_out else self.points.iloc[:0]

    @cached_property
    def draws(self) -> np.ndarray:
        """Bootstrap draws of the parameters: [draws, parameters]."""
        return np.array(self.document["draws"])

    @cached_property
    def predictive(self) -> PredictiveDistribution:
        """The distribution from which the intervals of forecasts come."""
        return predictive_from_facts(self.document["predictive"])

    @cached_property
    def residuals(self) -> np.ndarray:
        """Log of measured over predicted at the fitted points, [points]."""
        return np.log(self.points[self.law.response].to_numpy() / self.predict(self.points))

    @property
    def parameters(self) -> pd.DataFrame:
        """One row per parameter, and one for exponent_a where there is one: value, standard_error, low, high."""
        derived = {} if self.document["exponent_a"] is None else {"exponent_a": self.document["exponent_a"]}
        rows = {
            name: [value, self.document["standard_errors"][name], *self.document["intervals"][name]]
            for name, value in {**self.values, **derived}.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "standard_error", "low", "high"])

    def facts(self) -> dict[str, Any]:
        """The document without its longest entries: points, draws and the predictive distribution."""
        left_out = ("draws", "points", "predictive")
        return {name: value for name, value in self.document.items() if name not in left_out}

    def to_json(self) -> str:
        """The whole document as text, as in fit.json."""
        return json.dumps(self.document, indent=1, allow_nan=False)

    def __repr__(self) -> str:
        d = self.document
        lines = [self.describe(), self.parameters.to_string(float_format=lambda v: f"{v:.4g}")]
        objective = d["objective"]
        points = f"{d['n']} points" + (f", {d['dropped']} failed or diverged left out" if d["dropped"] else "")
        lines.append(f"{points}, {objective['name']} {objective['value']:.6g}, {d['level']:.0%} intervals")
        return "\n".join([*lines, *(f"warning: {note}" for note in d["warnings"])])

    def predict(self, columns: Any) -> np.ndarray:
        """Predictions of the response at rows of the law's columns, [rows]."""
        return self.law(self.values, columns)

    def describe(self) -> str:
        """The law written out with its fitted numbers."""
        return self.law.describe(self.values)

    def forecast(self, target: pd.DataFrame) -> list[dict[str, Any]]:
        """Forecasts each row of a table of runs.

        Args:
          target: the law's columns, params and tokens; optionally flops (else 6 params tokens), run_id, and the
            response, where it was measured.
        Returns:
          for each row: run_id, params, tokens, predicted, measured and relative_error (None where it was not measured),
          low, high, level.
        Raises:
          TableError: the target lacks a column that the law reads.
        """
        lacking = [name for name in dict.fromkeys((*results.SURFACE_COLUMNS, *self.law.columns)) if name not in target]
        if lacking:
            raise TableError(f"a forecast of {self.law.name} needs {', '.join(lacking)}, which the target lacks")
        level, seed = self.document["level"], self.document["seed"]
        predicted = self.predict(target)
        flops = target["flops"] if "flops" in target else 6 * target["params"] * target["tokens"]
        low, high = self.predictive.interval(predicted, target, flops, level, seed=seed)
        rows = []
        for i, row in enumerate(target.to_dict("records")):
            measured = row.get(self.law.response)
            error = None if measured is None else float(predicted[i] / measured - 1)
            rows.append(
                {"run_id": row.get("run_id", ""), "params": float(row["params"]), "tokens": float(row["tokens"])}
                | {"predicted": float(predicted[i]), "measured": measured, "relative_error": error}
                | {"low": float(low[i]), "high": float(high[i]), "level": level}
            )
        return rows


def hold_out(
    points: pd.DataFrame, rule: str, columns: Sequence[str] = results.SURFACE_COLUMNS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits points, which are in order of training FLOPs, into (fitted, held out).

    A run is held out with all its rows, and with the other runs of its cell, as seeds of one size and horizon are.

    Args:
      rule: "none"; "largest", the run with the most training FLOPs; or a number of FLOPs, at or above which rows are
        held out.
      columns: those whose values make a cell.
    Raises:
      TableError: another rule, or one that holds nothing out.
    """
    if rule == "none":
        return points, points.iloc[:0]
    if rule == "largest":
        held_out = pd.Series(np.arange(len(points)) == len(points) - 1)
    else:
        try:
            threshold = float(parse_quantity(rule))
        except ValueError:
            raise TableError(f"--holdout {rule}: must be largest, none, or a number of FLOPs such as 1e12") from None
        _require_flops(points, f"--holdout {rule}")
        held_out = points["flops"] >= threshold
        if not held_out.any():
            raise TableError(f"--holdout {rule}: no run has so many FLOPs; the largest has {points['flops'].max():.4g}")
    held_out = extend_to_cells(points, held_out.to_numpy(), columns)
    return points[~held_out].reset_index(drop=True), points[held_out].reset_index(drop=True)


def _require_flops(points: pd.DataFrame, flag: str) -> None:
    if "flops" not in points:
        raise TableError(
            f"{flag}: needs a column flops, or params and tokens; there are {', '.join(map(str, points.columns))}"
        )


@dataclass(frozen=True)
class FitSettings:
    """The options of a fit, as the flags of `scaling fit` give them. Bounds and fixed values are parameter values."""

    law: laws.Law | None = laws.chinchilla
    """None: chosen, with its weighting, by back-test."""
    objective: Objective = field(default_factory=huber)
    weight_power: float = 0.0
    """Points are weighted by compute to this power."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    holdout: str = "none"
    draws: int = 512
    level: float = 0.9
    seed: int = 0
    profile: bool = False
    """Whether to add intervals by profile likelihood (analysis.fitting.profile_likelihood)."""

    def facts(self) -> dict[str, Any]:
        """The options that the rest of fit.json does not tell: a law chosen by back-test has its own objective and
        weighting. Bounds are text, low:high, as --bound takes them, because they may be infinite."""
        return {
            "objective": self.objective.name,
            "delta": self.objective.delta,
            "weight_power": self.weight_power,
            "fixed": {name: float(value) for name, value in self.fixed.items()},
            "bounds": {name: f"{float(low)!r}:{float(high)!r}" for name, (low, high) in self.bounds.items()},
            "draws": self.draws,
        }


def build_saved_fit(points: Points, settings: FitSettings, origin: Mapping[str, Any]) -> SavedFit:
    """Fits a law to the points that are not held out, with intervals of its parameters and of its forecasts.

    Args:
      origin: path and sha256 of the table, and the --columns and --where with which it was read.
    Raises:
      TableError: the hold-out leaves fewer distinct points than the law needs, or a column that an option needs lacks.
    """
    law = settings.law or laws.chinchilla
    fitted, held_out = hold_out(points.table, settings.holdout, law.columns)
    learning_rates = table_checks.count_rate_sources(fitted)
    fitted, held_out = (part.drop(columns="learning_rate_from", errors="ignore") for part in (fitted, held_out))
    num_cells = len(fitted[list(law.columns)].drop_duplicates())
    free = len(law.parameters) - len(settings.fixed)
    results.require_points(num_cells, free, f", --holdout {settings.holdout} holds out {len(held_out)}", law.columns)
    has_rivals = law.columns == results.SURFACE_COLUMNS and law.response == "loss"
    choice = choose(fitted, seed=settings.seed) if has_rivals else None
    candidate = Candidate(law, settings.objective, settings.weight_power)
    if settings.law is None and choice is not None:
        candidate = choice.best
    if candidate.weight_power:
        _require_flops(fitted, f"--weight-power {candidate.weight_power:g}")
    is_fitted = np.ones(len(fitted), bool)
    weights = (
        candidate.weights(fitted["flops"].to_numpy(float), is_fitted)
        if candidate.weight_power
        else is_fitted.astype(float)
    )
    fit, resampled, predictive, note = _fit_and_resample(fitted, candidate, settings, choice, weights)
    notes = [
        *table_checks.check_points(fitted, law.columns),
        *table_checks.unit_of_name_warnings(origin.get("columns", {}).get("loss", "")),
        *table_checks.flag_warnings(held_out, "points held out"),
        *fit.warnings(),
    ]
    notes += [*_fit_warnings(fit, fitted), *([note] if note else [])]
    is_large = len(fitted) > LARGE_TABLE
    document = {
        "schema": SCHEMA,
        **fit.facts(),
        "chosen": settings.law is None,
        "weight_power": candidate.weight_power,
        "settings": settings.facts(),
        **_uncertainty(fit, fitted, resampled, settings.level),
        "warnings": notes,
        "uncertainty": f"{bootstrap.METHOD}, {settings.draws} draws" + (", one Newton step each" if is_large else ""),
        **({"sampling": _describe_sampling(len(fitted))} if is_large else {}),
        "level": settings.level,
        "seed": settings.seed,
        "params_column": points.params_column,
        "units": dict(candidate.law.units),
        "holdout": settings.holdout,
        "dropped": points.num_dropped,
        "flagged": table_checks.flags_by_run(fitted),
        "learning_rates": learning_rates,
        "table": dict(origin),
        "versions": {name: package_version(name) for name in ("jax", "numpy", "pandas", "scipy")},
        "points": fitted.to_dict("records"),
        "held_out": held_out.to_dict("records"),
        "draws": [[float(f"{value:.{DIGITS}g}") for value in draw] for draw in resampled],
        "choice": None if choice is None else choice.facts(),
        "predictive": predictive.facts(DIGITS),
    }
    if settings.profile:
        document["profile_intervals"] = _profile_intervals(fit, fitted, weights, settings.level)
    return SavedFit(document)


def _describe_sampling(points: int) -> str:
    """What is computed from a sample of a large table, and what from all its points."""
    return (
        f"{points:,} points: the starts and the back-test use {MAX_SEARCHED_POINTS:,} points drawn at random; the "
        f"values are the optimum of all points, and each bootstrap draw is one Newton step on all of them"
    )


def package_version(name: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _fit_and_resample(
    points: pd.DataFrame, candidate: Candidate, settings: FitSettings, choice: Choice | None, weights: np.ndarray
) -> tuple[Fit, np.ndarray, PredictiveDistribution, str]:
    """The fit, its bootstrap draws, the distribution of its forecasts, and a warning about the bootstrap, or ""."""
    response = points[candidate.law.response].to_numpy(float)
    options = {"fixed": settings.fixed, "bounds": settings.bounds}
    fit = fit_law(candidate.law, points, response, candidate.objective, weights=weights, **options)
    unit, note = bootstrap.choose_clusters(points, len(candidate.law.parameters))
    spread = {"draws": settings.draws, "seed": settings.seed}
    resampled = bootstrap.bootstrap(fit, points, response, unit, weights=weights, **spread)
    if choice is None:
        return fit, resampled, prediction_intervals.predictive_without_rivals(fit, points, resampled, weights), note
    return fit, resampled, prediction_intervals.build_predictive(fit, candidate, points, choice, **spread), note


def _fit_warnings(fit: Fit, points: pd.DataFrame) -> list[str]:
    """Warnings that need the fit: outliers, and losses at or below the law's floor."""
    response, names = points[fit.law.response].to_numpy(float), table_checks.name_rows(points)
    floor = float(fit.predict(dict.fromkeys(fit.law.columns, NEAR_INFINITY))) if fit.law.response == "loss" else 0.0
    below = table_checks.floor_warnings(floor, response, names) if 0 < floor < np.median(response) else []
    return [*table_checks.outlier_warnings(fit.residuals(points, response), names), *below]


def _uncertainty(fit: Fit, points: pd.DataFrame, resampled: np.ndarray, level: float) -> dict[str, Any]:
    """Entries of fit.json: standard errors and intervals of the parameters, and the compute-optimal exponent_a and G.

    resampled: bootstrap draws, [draws, parameters]. exponent_a is None where the law does not read params and tokens.
    """
    by_name = dict(zip(fit.law.parameters, resampled.T, strict=True))
    facts: dict[str, Any] = {"exponent_a": None, "G": None}
    if set(results.SURFACE_COLUMNS) <= set(fit.law.columns) and fit.law.response == "loss" and "flops" in points:
        middle = float(np.exp(np.mean(np.log(points["flops"]))))
        if set(fit.law.columns) == set(results.SURFACE_COLUMNS):
            constants = compute_optimal.closed_form(fit.law, fit.values)
            facts["exponent_a"] = float(compute_optimal.allocation_exponent(fit.law, fit.values, middle))
            facts["G"] = None if constants is None else float(constants[0])
            by_name["exponent_a"] = np.asarray(compute_optimal.allocation_exponent(fit.law, by_name, middle))
    spread = {name: _error_and_interval(column, level) for name, column in by_name.items()}
    facts["standard_errors"] = {name: spread[name]["standard_error"] for name in spread}
    facts["intervals"] = {name: spread[name]["interval"] for name in spread}
    return facts


def _profile_intervals(
    fit: Fit, points: pd.DataFrame, weights: np.ndarray, level: float
) -> dict[str, list[float | None]]:
    """The profile-likelihood interval [low, high] of each free parameter; None for an open end."""
    response = points[fit.law.response].to_numpy(float)
    profiles = profile_parameters(fit, points, response, level=level, weights=weights)
    return {p.parameter: [end if np.isfinite(end) else None for end in (p.low, p.high)] for p in profiles}


def _error_and_interval(column: np.ndarray, level: float) -> dict[str, Any]:
    low, high = bootstrap.central_interval(column, level)
    return {"standard_error": float(bootstrap.standard_errors(column)), "interval": [float(low), float(high)]}


def write_fit(saved: SavedFit, path: Path) -> Path:
    """Writes fit.json by rename, with the path of the table, if it has one, relative to the folder of fit.json."""
    table = saved.document["table"]
    if table["path"]:
        relative = os.path.relpath(Path(table["path"]).resolve(), path.parent.resolve())
        table = {**table, "path": Path(relative).as_posix()}
    return files.write_json(path, {**saved.document, "table": table})


def read_fit(path: Path) -> SavedFit:
    """Reads fit.json. Raises TableError when it is absent, damaged, or not a fit."""
    return SavedFit(read_fit_file(path))
