"""Learning curves: laws of one variable fitted to the first part of many curves, and scored on what came after.

The score of a curve is RMSLE, the root of the mean squared log ratio of forecast to measurement over the points that
were not fitted (Alabdulmohsin et al. 2022). How a curve is fitted is ours. No law is quite right, so its forecast
depends on which points it is made to follow, and the points do not say which. Every curve is therefore fitted under
each of WEIGHTINGS; the forecast is the geometric mean of these fits, and how far they lie apart is reported.

Not in the design's list of modules: a curve has one variable and no runs, so neither a sweep's table nor its intervals.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.fitting.fit import COLD_ZONES, Objective, mse, mse_log
from analysis.fitting.newton import MIN_PADDED_POINTS, Box, Problems, solve, theta_from_values, values_from_theta
from analysis.fitting.variable_projection import project_linear
from analysis.laws import Law
from analysis.laws.curve import bnsl, bounds_from_points, m1, m2, m3, m4
from analysis.tables.results import MAX_LISTED

CURVE_LAWS = {law.name: law for law in (m1, m2, m3, m4, bnsl)}
WEIGHTINGS = (0.0, 0.5, 1.0)
"""Powers of x that weight the points: each alike, in between, each by the training that it stands for."""
OBJECTIVES: Mapping[str, Objective] = {bnsl.name: mse}
"""Squared errors of log y unless named here. BNSL's squared errors of y are a choice made by trial on one benchmark."""
_MAX_STARTS = MIN_PADDED_POINTS // len(WEIGHTINGS)


@dataclass(frozen=True)
class CurveFit:
    """A law fitted to one curve under each of WEIGHTINGS."""

    law: Law
    vectors: np.ndarray
    """[weightings, parameters], in the order of law.parameters."""

    @property
    def values(self) -> dict[str, list[float]]:
        """Each parameter under each weighting."""
        return {name: self.vectors[:, i].tolist() for i, name in enumerate(self.law.parameters)}

    def predict_each(self, x: Any) -> np.ndarray:
        """Predictions under each weighting: [weightings, points]."""
        return _predict(self.law, self.vectors, np.asarray(x, np.float64))

    def predict(self, x: Any) -> np.ndarray:
        """Geometric mean over the weightings: [points]."""
        return np.exp(np.mean(np.log(self.predict_each(x)), 0))


def fit_curve(law: Law, x: Any, y: Any) -> CurveFit:
    """One law of `analysis.laws.curve` on one curve, within `limits`, from the best of the law's starts.

    Args:
      x, y: [points], finite and positive, in any order.
    """
    order = np.argsort(np.asarray(x, np.float64), kind="stable")
    x, y = np.asarray(x, np.float64)[order], np.asarray(y, np.float64)[order]
    objective = OBJECTIVES.get(law.name, mse_log)
    bounds = {**law.bounds, **bounds_from_points(law, x, y)}
    low, high = (theta_from_values(law, np.array([bounds[name][side] for name in law.parameters])) for side in (0, 1))
    weights = np.stack([(x / x[-1]) ** power for power in WEIGHTINGS])
    weights /= weights.mean(1, keepdims=True)
    starts = np.unique(np.clip(_start_thetas(law, x, y), low, high), axis=0)
    with np.errstate(all="ignore"):
        predicted = _predict(law, values_from_theta(law, starts), x)
        values = [[objective.value(objective.residuals(row, y), weight) for row in predicted] for weight in weights]
    best = np.argsort(np.nan_to_num(values, nan=np.inf), 1, kind="stable")[:, :_MAX_STARTS]
    problems = Problems(
        starts[best.ravel()],
        np.repeat(_pad_points(weights, 0.0), best.shape[1], 0),
        _pad_points(y, y[-1])[None],
        Box(low[None], high[None]),
    )
    thetas, reached = solve(
        law, objective.is_log, {"x": _pad_points(x, x[-1])}, problems, objective.zone_widths(COLD_ZONES)
    )
    chosen = np.argmin(np.nan_to_num(reached.reshape(best.shape), nan=np.inf), 1)
    return CurveFit(law, values_from_theta(law, thetas.reshape(*best.shape, -1)[np.arange(len(chosen)), chosen]))


def _start_thetas(law: Law, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Every start of the law, its linear parameters projected out: [starts, parameters], as searched."""
    if callable(law.starts):
        values = dict(law.starts(SimpleNamespace(x=x), y))
    else:
        values = dict(zip(law.starts, np.array(list(itertools.product(*law.starts.values()))).T, strict=True))
    if law.linear_in:
        even = _pad_points(np.ones_like(x), 0.0)
        values |= project_linear(law, law.linear_in, values, {"x": _pad_points(x, x[-1])}, _pad_points(y, y[-1]), even)
    return theta_from_values(law, np.stack([values[name] for name in law.parameters], 1))


def _predict(law: Law, vectors: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[vectors, points]."""
    columns = {name: vectors[:, [i]] for i, name in enumerate(law.parameters)}
    return law(columns, {"x": _pad_points(x, x[-1])})[:, : len(x)]


def _pad_points(array: np.ndarray, fill: float) -> np.ndarray:
    """Its last axis to a power of two, so that curves of like length share their compiled programs."""
    size = array.shape[-1]
    more = max(MIN_PADDED_POINTS, 2 ** int(np.ceil(np.log2(size)))) - size
    return np.concatenate([array, np.full((*array.shape[:-1], more), fill)], -1)


def fit_curves(
    table: pd.DataFrame,
    laws: Sequence[Law] = tuple(CURVE_LAWS.values()),
    *,
    by: Sequence[str] = (),
    train_share: float = 0.5,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> pd.DataFrame:
    """Every law on every curve of a table: one row a curve and law.

    Args:
      table: columns x and y, positive; `train`, 1 or true where a point is fitted, 0 or false where it is forecast; and
        those of `by`. Exact copies of a row count once.
      by: columns that tell the curves apart; all rows are one curve when empty.
      train_share: where the table has no `train`, the share of each curve's distinct x, from the lowest, to fit.
      on_progress: told after each curve how many of how many are done.
    Returns:
      columns of `by`, law, n_train, n_extrapolate, rmsle, spread (largest less smallest log forecast of the weightings,
      at the last x), parameters (name -> value under each weighting). attrs["warnings"]: what was left out, and why.
    Raises:
      TableError: a missing column, an x or y that is not finite and positive, a flag that is neither 0 nor 1, a share
        outside 0 to 1, or no curve that can be fitted.
    """
    points = _checked_points(table, by, train_share)
    groups = points.groupby(list(by), sort=False, dropna=False) if by else [((), points)]
    rows: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}
    for place, (key, curve) in enumerate(groups):
        fitted, rest = curve[curve["train"]], curve[~curve["train"]]
        name = " / ".join(map(str, key)) or "the curve"
        if rest.empty:
            left_out.setdefault("no point to forecast", []).append(name)
            continue
        for law in laws:
            if fitted["x"].nunique() <= len(law.parameters):
                least = f"{law.name}: fewer than {len(law.parameters) + 1} distinct x to fit"
                left_out.setdefault(least, []).append(name)
                continue
            rows.append(dict(zip(by, key, strict=True)) | _score_law(law, fitted, rest))
        on_progress(place + 1, len(groups))
    warnings = [f"{reason}, left out: {_first_names(names)}" for reason, names in left_out.items()]
    if copies := len(table) - len(points):
        warnings.append(f"{copies} of {len(table)} rows are exact copies, each counted once")
    if not rows:
        raise TableError(f"no curve can be fitted; {'; '.join(warnings)}")
    scores = pd.DataFrame(rows)
    scores.attrs["warnings"] = warnings
    return scores


def _score_law(law: Law, fitted: pd.DataFrame, rest: pd.DataFrame) -> dict[str, Any]:
    fit = fit_curve(law, fitted["x"], fitted["y"])
    error = np.log(fit.predict(rest["x"]) / rest["y"].to_numpy())
    return {
        "law": law.name,
        "n_train": len(fitted),
        "n_extrapolate": len(rest),
        "rmsle": float(np.sqrt(np.mean(error**2))),
        "spread": float(np.ptp(np.log(fit.predict_each([rest["x"].max()])))),
        "parameters": fit.values,
    }


def _checked_points(table: pd.DataFrame, by: Sequence[str], train_share: float) -> pd.DataFrame:
    """The columns of `by`, x, y as float64 and train as bool, exact copies dropped."""
    missing = [name for name in ("x", "y", *by) if name not in table]
    if missing:
        raise TableError(
            f"the table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(map(str, table.columns))}; map columns with --columns x=tokens,y=loss,train=flag"
        )
    if not 0 < train_share < 1:
        raise TableError(f"--train-share {train_share:g}: must be above 0 and below 1")
    points = table[list(by)].assign(x=_to_floats(table, "x"), y=_to_floats(table, "y"))
    _refuse_rows(table, "x", ~(np.isfinite(points["x"]) & (points["x"] > 0)), "a finite number above zero")
    _refuse_rows(table, "y", ~(np.isfinite(points["y"]) & (points["y"] > 0)), "a finite number above zero")
    if "train" in table:
        flags = table["train"].astype(str).str.lower().map({"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0})
        _refuse_rows(table, "train", flags.isna(), "1 for a point to fit, 0 for one to forecast")
        return points.assign(train=flags == 1).drop_duplicates()
    curves = points.groupby(list(by), dropna=False)["x"] if by else points["x"]
    rank = curves.rank(method="dense")
    count = curves.transform("nunique") if by else points["x"].nunique()
    return points.assign(train=rank <= train_share * count).drop_duplicates()


def _to_floats(table: pd.DataFrame, column: str) -> np.ndarray:
    return pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _refuse_rows(table: pd.DataFrame, column: str, bad: Any, right: str) -> None:
    places = np.flatnonzero(bad)
    if len(places):
        more = f"; {len(places)} such rows" if len(places) > 1 else ""
        raise TableError(f"row {places[0] + 1}: {column} = {table[column].iloc[places[0]]}, must be {right}{more}")


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")


def summarize_scores(scores: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Means over curves: one row a domain and law, in the order of the scores.

    Args:
      scores: what fit_curves returns.
      by: the columns it was given. The first names the domain where there are several, else all curves are one.
    Returns:
      columns domain, law, curves, mean and median of rmsle, wins. wins is the share of curves on which the law is the
      best after RMSLE is cut to three decimals (Alabdulmohsin et al. 2022), laws that tie sharing the curve; curves
      that some law was left out of are not counted in it.
    """
    scores = scores.assign(domain=scores[by[0]].astype(str) if len(by) > 1 else "all")
    scores["cut"] = np.floor(scores["rmsle"] * 1e3)
    scores["curve"] = scores.groupby(list(by), dropna=False, sort=False).ngroup() if by else 0
    each = scores.groupby("curve")
    whole = each["law"].transform("size") == scores["law"].nunique()
    best = scores["cut"] == each["cut"].transform("min")
    scores["wins"] = (best / best.groupby(scores["curve"]).transform("sum")).where(whole)
    grouped = scores.groupby(["domain", "law"], sort=False)
    found = grouped["rmsle"].agg(curves="size", mean="mean", median="median")
    return found.assign(wins=grouped["wins"].mean()).reset_index()
