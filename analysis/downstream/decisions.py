"""Decision accuracy: how often small runs rank two recipes as the runs at a larger scale do.

After DataDecide (Magnusson et al. 2025). `scaling downstream --by` prints it for every task and for the loss.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.downstream import accuracy_models
from analysis.downstream.accuracy_models import COMPUTE, PARAMS_AND_TOKENS, RUN_COLUMNS
from analysis.downstream.task_table import task_points
from analysis.errors import TableError
from analysis.fitting.fit import fit_each_weighting, mse_log
from analysis.laws import chinchilla
from analysis.quantities import parse_quantity
from analysis.tables import results, run_status
from analysis.tables.results import SURFACE_COLUMNS

LOSS = "loss"
CELL_TOLERANCE = 0.02  # log parameters or log tokens this close are the same cell


@dataclass(frozen=True)
class Decisions:
    """Decision accuracy of one task, or of the loss.

    name: the task, or "loss".
    by: the column that names recipes.
    target: params, tokens and flops of the runs whose order is predicted.
    pairs: number of pairs of recipes that differ at the target.
    levels: one row per cell below the target, by flops: params, tokens, flops; ranking, the share of pairs that the
      runs of this cell order as the target does, a tie counted half; laws, the same share by laws that are fitted to
      each recipe's runs up to the flops of this cell and extrapolated to the target, NaN if the runs are too few.
    """

    name: str
    by: str
    recipes: tuple[str, ...]
    target: dict[str, float]
    pairs: int
    levels: pd.DataFrame

    def facts(self) -> dict[str, Any]:
        levels = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in self.levels.to_dict("records")]
        heading = {"name": self.name, "by": self.by, "recipes": list(self.recipes), "target": self.target}
        return heading | {"pairs": self.pairs, "levels": levels}

    def __repr__(self) -> str:
        table = self.levels.to_string(float_format=lambda value: f"{value:.3g}")
        return f"Decisions({self.name} by {self.by}: {self.pairs} pairs of {', '.join(self.recipes)})\n{table}"


def decision_accuracy(
    table: pd.DataFrame, by: str, name: str = LOSS, *, target: str = "largest", params: str | None = None
) -> Decisions:
    """Computes, for every cell below the target that all recipes have, how often it predicts their order at the target.

    Seeds are averaged. A recipe's name ends at its first bracket, where its options begin.

    Args:
      by: the column that names recipes.
      name: a task, compared by accuracy, or "loss".
      target: "largest", or a number of FLOPs, which stands for the nearest cell that all recipes have.
      params: the count of parameters to use.
    Raises:
      TableError: no such column or task, fewer than two recipes, or fewer than two cells that all of them have.
    """
    points = recipe_points(table, by, name, params)
    scores = points.pivot_table(index=["flops", *SURFACE_COLUMNS], columns="recipe", values="score").dropna()
    names = tuple(map(str, scores.columns))
    if len(names) < 2:
        raise TableError(
            f"--by {by}: one recipe ({', '.join(names) or 'none'}); must name at least 2 recipes in the rows used"
        )
    if len(scores) < 2:
        raise TableError(
            f"--by {by}: {len(scores)} cells (params, tokens) that all of {', '.join(names)} have; must be at least 2"
        )
    at = _target_index(scores.index.get_level_values("flops").to_numpy(), target)
    goal = dict(zip(("flops", *SURFACE_COLUMNS), map(float, scores.index[at]), strict=True))
    final = scores.iloc[at].to_numpy()
    levels = scores[scores.index.get_level_values("flops") < goal["flops"]].reset_index()
    extrapolated = np.stack(
        [_extrapolate_scores(points.loc[points["recipe"] == n], name, levels, goal) for n in names], 1
    )
    ranking = [agreement(row, final) for row in levels[list(names)].to_numpy()]
    laws = [agreement(row, final) if np.isfinite(row).all() else np.nan for row in extrapolated]
    pairs = sum(bool(final[a] != final[b]) for a, b in itertools.combinations(range(len(final)), 2))
    return Decisions(
        name, by, names, goal, pairs, levels[["flops", *SURFACE_COLUMNS]].assign(ranking=ranking, laws=laws)
    )


def agreement(small: np.ndarray, final: np.ndarray) -> float:
    """Share of the pairs that differ in `final` and that `small` orders alike, a tie in `small` counted half.

    small, final: scores, [recipes]. NaN if no pair differs.
    """
    correct = [
        0.5 * (1 + np.sign(small[a] - small[b]) * np.sign(final[a] - final[b]))
        for a, b in itertools.combinations(range(len(final)), 2)
        if final[a] != final[b]
    ]
    return float(np.mean(correct)) if correct else np.nan


def recipe_points(table: pd.DataFrame, by: str, name: str, params: str | None) -> pd.DataFrame:
    """The finished runs with their recipe and their score, of which higher is better (accuracy, or minus the loss).

    Values of params, and of tokens, within 2 % of one another become one value, so that runs of two recipes fall into
    the same cell. Arguments as in decision_accuracy.
    """
    if by not in table:
        raise TableError(f"--by {by}: not a column of the table; it has {', '.join(map(str, table.columns))}")
    done = run_status.done_rows(table)
    if done.empty:
        raise TableError(f"--by {by}: no run of the table has the status done")
    parts = []
    for recipe, rows in done.groupby(done[by].astype(str).str.split("(").str[0].str.strip()):
        if name == LOSS:
            params_column = params or ("params" if "params" in rows else results.DEFAULT_PARAMS_COLUMN)
            points = results.done_points(rows, params_column).assign(chance=0.0, ceiling=1.0)
            points["score"] = -points["loss"]
        else:
            points = _recipe_task_points(rows, name, params, f"--by {by}: recipe {recipe}")
            points["score"] = points["accuracy"]
        parts.append(points.assign(recipe=recipe))
    points = pd.concat(parts, ignore_index=True)
    cells = {column: _merge_close_values(points[column]) for column in SURFACE_COLUMNS}
    flops = points["flops"].groupby([cells["params"], cells["tokens"]]).transform("median")
    return points.assign(flops=flops, **cells)


def _recipe_task_points(rows: pd.DataFrame, task: str, params: str | None, where: str) -> pd.DataFrame:
    try:
        return task_points(rows, task, params)[0]
    except TableError as error:
        raise TableError(f"{where}: {error}") from None


def _merge_close_values(values: pd.Series) -> pd.Series:
    """Replaces each value by the median of its group: a new group begins where sorted values differ by over 2 %."""
    distinct = np.unique(values)
    group = np.concatenate([[0], np.cumsum(np.diff(np.log(distinct)) > CELL_TOLERANCE)])
    middle = pd.Series(distinct).groupby(group).transform("median")
    return values.map(dict(zip(distinct, middle, strict=True)))


def _target_index(flops: np.ndarray, rule: str) -> int:
    """Index of the cell of most FLOPs, or of the one nearest in log FLOPs to the number in `rule`."""
    if rule == "largest":
        return int(np.argmax(flops))
    try:
        return int(np.argmin(np.abs(np.log(flops / float(parse_quantity(rule))))))
    except ValueError:
        raise TableError(f"target {rule}: must be largest, or a number of FLOPs such as 1e12") from None


def _extrapolate_scores(points: pd.DataFrame, name: str, levels: pd.DataFrame, goal: dict[str, float]) -> np.ndarray:
    """A recipe's score at the target, extrapolated from its runs up to each level, [levels]; NaN if they are too few.

    Accuracies follow PARAMS_AND_TOKENS if the runs allow that model, else COMPUTE; losses follow the Chinchilla law.
    """
    points = points.reset_index(drop=True)
    # [levels, points]: whether a run is of at most the compute of the level
    masks = points["flops"].to_numpy() <= levels["flops"].to_numpy()[:, None] * (1 + 1e-9)
    target = pd.DataFrame([goal | {n: points[n].iloc[0] for n in RUN_COLUMNS[-2:]}])
    scores = np.full(len(levels), np.nan)
    if name == LOSS:
        is_feasible = np.array([len(points.loc[mask, list(SURFACE_COLUMNS)].drop_duplicates()) > 5 for mask in masks])
        if is_feasible.any():
            values, _ = fit_each_weighting(
                chinchilla, points, points["loss"], mse_log, masks[is_feasible].astype(float)
            )
            parameters = {n: values[:, [i]] for i, n in enumerate(chinchilla.parameters)}
            scores[is_feasible] = -chinchilla(parameters, target)[:, 0]
        return scores
    for model in (COMPUTE, PARAMS_AND_TOKENS):
        is_feasible = np.array([bool(accuracy_models.feasible_models((model,), points, mask)) for mask in masks])
        if is_feasible.any():
            scores[is_feasible] = accuracy_models.predict(
                model, accuracy_models.fit(model, points, masks[is_feasible].astype(float)), target
            )[:, 0]
    return scores
