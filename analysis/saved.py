"""fit.json: one saved fit, enough to forecast from it, draw it and rebuild it.

Not in the design's list of modules: the verbs, the figures and the page all read the same file, and none of them should
own it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import intervals, laws, optimum, results
from analysis.fit import Fit, fit_law, huber
from analysis.results import Points, TableError

SCHEMA = 1
DIGITS = 12


@dataclass(frozen=True)
class SavedFit:
    """The content of fit.json, with what every reader of it computes.

    document: the JSON as it stands on disk; keys as written by `build`.
    """

    document: Mapping[str, Any]

    @cached_property
    def law(self) -> laws.Law:
        return laws.find(self.document["law"])

    @property
    def values(self) -> dict[str, float]:
        return self.document["parameters"]

    @cached_property
    def points(self) -> pd.DataFrame:
        """The points that were fitted: run_id, cluster, params, tokens, flops, loss."""
        return pd.DataFrame(self.document["points"])

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """The points that were not: same columns, perhaps no rows."""
        return pd.DataFrame(self.document["held_out"], columns=self.points.columns)

    @cached_property
    def draws(self) -> np.ndarray:
        """Bootstrap draws: [draws, parameters]."""
        return np.array(self.document["draws"])

    @cached_property
    def residuals(self) -> np.ndarray:
        """Log measured over predicted at the fitted points."""
        return np.log(self.points["loss"].to_numpy() / self.predict(self.points))

    def predict(self, columns: Any) -> np.ndarray:
        return self.law(self.values, columns)

    def describe(self) -> str:
        return self.law.describe(self.values)

    def forecast(self, target: pd.DataFrame) -> list[dict[str, Any]]:
        """For each row of params and tokens (and loss, where it was measured): what the fit says and what came out."""
        level, seed = self.document["level"], self.document["seed"]
        predicted = self.predict(target)
        low, high = intervals.prediction_interval(self.law, self.draws, self.residuals, target, level=level, seed=seed)
        rows = []
        for i, row in enumerate(target.to_dict("records")):
            measured = row.get("loss")
            error = None if measured is None else float(predicted[i] / measured - 1)
            rows.append(
                {"run_id": row.get("run_id", ""), "params": float(row["params"]), "tokens": float(row["tokens"])}
                | {"predicted": float(predicted[i]), "measured": measured, "relative_error": error}
                | {"low": float(low[i]), "high": float(high[i]), "level": level}
            )
        return rows


def hold_out(points: pd.DataFrame, rule: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(fitted, held out). Points are in order of training FLOPs.

    Args:
      rule: "none"; "largest", the run with the most training FLOPs; or a number of FLOPs, at or above which rows are
        held out.
    Raises:
      TableError: another rule, or one that holds nothing out.
    """
    if rule == "none":
        return points, points.iloc[:0]
    if rule == "largest":
        held = points["run_id"] == points["run_id"].iloc[-1]
    else:
        try:
            threshold = float(rule)
        except ValueError:
            raise TableError(f"--holdout {rule}: must be largest, none, or a number of FLOPs such as 1e12") from None
        held = points["flops"] >= threshold
        if not held.any():
            raise TableError(f"--holdout {rule}: no run has so many FLOPs; the largest has {points['flops'].max():.4g}")
    return points[~held].reset_index(drop=True), points[held].reset_index(drop=True)


def build(
    law: laws.Law, points: Points, *, holdout: str, delta: float, draws: int, level: float, seed: int, table: Path
) -> tuple[SavedFit, Fit]:
    """Fits a law to the points that the rule leaves, with its uncertainty. Raises TableError when too few are left."""
    fitted, held = hold_out(points.table, holdout)
    left = len(fitted[list(law.columns)].drop_duplicates())
    results.require_points(left, len(law.parameters), f", --holdout {holdout} holds out {len(held)}")
    loss = fitted["loss"].to_numpy()
    fit = fit_law(law, fitted, loss, huber(delta))
    unit, note = intervals.clusters(fitted, len(law.parameters))
    resampled = intervals.bootstrap(fit, fitted, loss, unit, draws=draws, seed=seed)
    by_name = dict(zip(law.parameters, resampled.T, strict=True))
    middle = float(np.exp(np.mean(np.log(fitted["flops"]))))
    derived = {"exponent_a": _exponents(law, by_name, middle)}
    spread = {name: _spread(column, level) for name, column in (by_name | derived).items()}
    constants = optimum.constants(law, fit.values)
    document = {
        "schema": SCHEMA,
        "law": law.name,
        "formula": law.describe(fit.values),
        "source": law.source,
        "parameters": dict(fit.values),
        "standard_errors": {name: spread[name]["standard_error"] for name in spread},
        "intervals": {name: spread[name]["interval"] for name in spread},
        "exponent_a": float(optimum.exponent(law, fit.values, middle)),
        "G": None if constants is None else float(constants[0]),
        "objective": {"name": fit.objective.name, "delta": delta, "value": fit.objective_value},
        "starts": fit.starts,
        "reached": fit.reached,
        "conditioning": fit.conditioning,
        "warnings": fit.warnings() + ([note] if note else []),
        "uncertainty": f"{intervals.METHOD}, {draws} draws",
        "level": level,
        "seed": seed,
        "params_column": points.params_column,
        "holdout": holdout,
        "dropped": points.dropped,
        "table": {"path": str(table), "sha256": results.content_hash(table)},
        "versions": {name: version(name) for name in ("jax", "numpy", "pandas", "scipy")},
        "points": fitted.to_dict("records"),
        "held_out": held.to_dict("records"),
        "draws": [[float(f"{value:.{DIGITS}g}") for value in draw] for draw in resampled],
    }
    return SavedFit(document), fit


def _exponents(law: laws.Law, by_name: Mapping[str, np.ndarray], flops: float) -> np.ndarray:
    if law.optimum is not None:
        return optimum.exponent(law, by_name, flops)
    count = len(next(iter(by_name.values())))
    return np.array([optimum.exponent(law, {n: c[i] for n, c in by_name.items()}, flops) for i in range(count)])


def _spread(column: np.ndarray, level: float) -> dict[str, Any]:
    low, high = intervals.central(column, level)
    return {"standard_error": float(intervals.standard_errors(column)), "interval": [float(low), float(high)]}


def save(saved: SavedFit, path: Path) -> Path:
    """Writes fit.json by rename, the table's path made relative to it."""
    table = saved.document["table"]
    relative = os.path.relpath(Path(table["path"]).resolve(), path.parent.resolve())
    return results.write_json(path, {**saved.document, "table": {**table, "path": Path(relative).as_posix()}})


def load(path: Path) -> SavedFit:
    """Reads fit.json. Raises TableError when it is absent, torn, or not a fit."""
    return SavedFit(_read(path, lambda document: document["schema"] == SCHEMA and laws.find(document["law"])))


def _read(path: Path, check: Callable[[Any], Any]) -> Any:
    try:
        document = json.loads(path.read_text())
        if not check(document):
            raise KeyError(f"schema {document['schema']}, this version reads {SCHEMA}")
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; `scaling fit TABLE` writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: not a saved fit ({error})") from None
    return document
