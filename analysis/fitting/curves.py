"""Learning curves: laws of one variable fitted to the first part of each curve and scored on the rest.

The score of a curve is RMSLE, the root of the mean squared log ratio of forecast to measurement over the points that
were not fitted (Alabdulmohsin et al. 2022). The way of fitting is ours: no law is exact, so a forecast depends on the
points that the fit follows most closely, and the points do not say which those should be. Every curve is therefore
fitted under each of WEIGHTINGS; the forecast is the geometric mean of these fits, and their spread is reported.
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
"""Powers of x that weight the points: 0 weights all points alike, 1 in proportion to x."""
OBJECTIVES: Mapping[str, Objective] = {bnsl.name: mse}
"""Objective of each law: squared errors of log y for laws that are not here. For BNSL, squared errors of y were chosen
by trial on one benchmark."""
_MAX_STARTS = MIN_PADDED_POINTS // len(WEIGHTINGS)


@dataclass(frozen=True)
class CurveFit:
    """A law fitted to one curve under each of WEIGHTINGS."""

    law: Law
    vectors: np.ndarray
    """[weightings, parameters], in the order of law.parameters."""

    @property
    def values(self) -> dict[str, list[float]]:
        """Name of each parameter -> its value under each weighting."""
        return {name: self.vectors[:, i].tolist() for i, name in enumerate(self.law.parameters)}

    def predict_each(self, x: Any) -> np.ndarray:
        """Predictions under each weighting: [weightings, points]."""
        return _predict(self.law, self.vectors, np.asarray(x, np.float64))

    def predict(self, x: Any) -> np.ndarray:
        """Geometric mean over the weightings: [points]."""
        return np.exp(np.mean(np.log(self.predict_each(x)), 0))


def fit_curve(law: Law, x: Any, y: Any) -> CurveFit:
    """Fits a law of `analysis.laws.curve` to one curve under each of WEIGHTINGS, from the best of the law's starts.

    The law's bounds are narrowed by `bounds_from_points`.

    Args:
      x, y: [points], finite and positive, in any order.
    """
    order = np.argsort(np.asarray(x, np.float64), kind="stable")
    x, y = np.asarray(x, np.float64)[order], np.asarray(y, np.float64)[order]
    objective = OBJECTIVES.get(law.name, mse_log)
    bounds = {**law.bounds, **bounds_from_points(law, x, y)}
    low, high = (theta_from_values(law, np.array([bounds[name][side] for name in law.parameters])) for side in (0, 1))
    weights = np.stack([(x / x[-1]) ** power for power in WEIGHTINGS])
    weights /= weights.mean(1, keepdims=True)  # [weightings, points]
    starts = np.unique(np.clip(_start_thetas(law, x, y), low, high), axis=0)
    with np.errstate(all="ignore"):
        predicted = _predict(law, values_from_theta(law, starts), x)
        values = [[objective.value(objective.residuals(row, y), weight) for row in predicted] for weight in weights]
    best = np.argsort(np.nan_to_num(values, nan=np.inf), 1, kind="stable")[:, :_MAX_STARTS]
    # One problem a weighting and start: [weightings * starts].
    problems = Problems(
        starts[best.ravel()],
        np.repeat(_pad_points(weights, 0.0), best.shape[1], 0),
        _pad_points(y, y[-1])[None],
        Box(low[None], high[None]),
    )
    thetas, objectives = solve(
        law, objective.is_log, {"x": _pad_points(x, x[-1])}, problems, objective.zone_widths(COLD_ZONES)
    )
    best_start = np.argmin(np.nan_to_num(objectives.reshape(best.shape), nan=np.inf), 1)
    return CurveFit(
        law, values_from_theta(law, thetas.reshape(*best.shape, -1)[np.arange(len(best_start)), best_start])
    )


def _start_thetas(law: Law, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """theta of every start of the law, with its linear parameters solved for: [starts, parameters]."""
    if callable(law.starts):
        values = dict(law.starts(SimpleNamespace(x=x), y))
    else:
        values = dict(zip(law.starts, np.array(list(itertools.product(*law.starts.values()))).T, strict=True))
    if law.linear_in:
        equal_weights = _pad_points(np.ones_like(x), 0.0)
        values |= project_linear(
            law, law.linear_in, values, {"x": _pad_points(x, x[-1])}, _pad_points(y, y[-1]), equal_weights
        )
    return theta_from_values(law, np.stack([values[name] for name in law.parameters], 1))


def _predict(law: Law, vectors: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Predictions of each vector of parameters at each x: [vectors, points]."""
    columns = {name: vectors[:, [i]] for i, name in enumerate(law.parameters)}
    return law(columns, {"x": _pad_points(x, x[-1])})[:, : len(x)]


def _pad_points(array: np.ndarray, fill: float) -> np.ndarray:
    """Pads the last axis with `fill` to a power of two, so that curves of similar length share compiled programs."""
    size = array.shape[-1]
    padding = max(MIN_PADDED_POINTS, 2 ** int(np.ceil(np.log2(size)))) - size
    return np.concatenate([array, np.full((*array.shape[:-1], padding), fill)], -1)


def fit_curves(
    table: pd.DataFrame,
    laws: Sequence[Law] = tuple(CURVE_LAWS.values()),
    *,
    by: Sequence[str] = (),
    train_share: float = 0.5,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> pd.DataFrame:
    """Fits every law to every curve of a table and scores it on the points after: one row per curve and law.

    Args:
      table: columns x and y, positive; `train`, 1 or true where a point is fitted, 0 or false where it is forecast; and
        those of `by`. Exact copies of a row count once.
      by: columns whose values identify a curve; all rows are one curve when empty.
      train_share: share of each curve's distinct x, from the lowest, to fit where the table has no column `train`.
      on_progress: called after each curve with the number of curves done and their total.
    Returns:
      columns of `by`, law, n_train, n_extrapolate, rmsle, spread (largest less smallest log forecast of the weightings,
      at the last x), parameters (name -> value under each weighting). attrs["warnings"] says what was left out and why.
    Raises:
      TableError: a column lacks, an x or y is not finite and positive, a `train` is neither 0 nor 1, train_share is
        outside 0 to 1, or no curve can be fitted.
    """
    points = _checked_points(table, by, train_share)
    groups = points.groupby(list(by), sort=False, dropna=False) if by else [((), points)]
    rows: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}
    for index, (key, curve) in enumerate(groups):
        train, test = curve[curve["train"]], curve[~curve["train"]]
        name = " / ".join(map(str, key)) or "the curve"
        if test.empty:
            left_out.setdefault("no point to forecast", []).append(name)
            continue
        for law in laws:
            if train["x"].nunique() <= len(law.parameters):
                least = f"{law.name}: fewer than {len(law.parameters) + 1} distinct x to fit"
                left_out.setdefault(least, []).append(name)
                continue
            rows.append(dict(zip(by, key, strict=True)) | _score_law(law, train, test))
        on_progress(index + 1, len(groups))
    warnings = [f"{reason}, left out: {_first_names(names)}" for reason, names in left_out.items()]
    if copies := len(table) - len(points):
        warnings.append(f"{copies} of {len(table)} rows are exact copies, each counted once")
    if not rows:
        raise TableError(f"no curve can be fitted; {'; '.join(warnings)}")
    scores = pd.DataFrame(rows)
    scores.attrs["warnings"] = warnings
    return scores


def _score_law(law: Law, train: pd.DataFrame, test: pd.DataFrame) -> dict[str, Any]:
    """A row of `fit_curves` without the columns of `by`."""
    fit = fit_curve(law, train["x"], train["y"])
    error = np.log(fit.predict(test["x"]) / test["y"].to_numpy())
    return {
        "law": law.name,
        "n_train": len(train),
        "n_extrapolate": len(test),
        "rmsle": float(np.sqrt(np.mean(error**2))),
        "spread": float(np.ptp(np.log(fit.predict_each([test["x"].max()])))),
        "parameters": fit.values,
    }


def _checked_points(table: pd.DataFrame, by: Sequence[str], train_share: float) -> pd.DataFrame:
    """The table's columns of `by`, with x and y as float64 and train as bool, without exact copies of rows."""
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


def _refuse_rows(table: pd.DataFrame, column: str, is_bad: Any, rule: str) -> None:
    """Raises TableError that names the first bad row of a column, if there is one."""
    bad_rows = np.flatnonzero(is_bad)
    if len(bad_rows):
        more = f"; {len(bad_rows)} such rows" if len(bad_rows) > 1 else ""
        raise TableError(f"row {bad_rows[0] + 1}: {column} = {table[column].iloc[bad_rows[0]]}, must be {rule}{more}")


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")


def summarize_scores(scores: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Averages scores over curves: one row per domain and law, in the order of the scores.

    Args:
      scores: what fit_curves returns.
      by: the columns that fit_curves was given. The first is the domain where there are several; else there is one
        domain, "all".
    Returns:
      columns domain, law, curves (their number), mean and median of rmsle, wins. wins is the share of curves on which
      the law has the lowest RMSLE, cut to three decimals (Alabdulmohsin et al. 2022); laws that tie share the curve.
      Curves to which some law was not fitted do not count in it.
    """
    scores = scores.assign(domain=scores[by[0]].astype(str) if len(by) > 1 else "all")
    scores["cut"] = np.floor(scores["rmsle"] * 1e3)
    scores["curve"] = scores.groupby(list(by), dropna=False, sort=False).ngroup() if by else 0
    each = scores.groupby("curve")
    whole = each["law"].transform("size") == scores["law"].nunique()
    best = scores["cut"] == each["cut"].transform("min")
    scores["wins"] = (best / best.groupby(scores["curve"]).transform("sum")).where(whole)
    grouped = scores.groupby(["domain", "law"], sort=False)
    averages = grouped["rmsle"].agg(curves="size", mean="mean", median="median")
    return averages.assign(wins=grouped["wins"].mean()).reset_index()
