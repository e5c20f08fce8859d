"""Do small runs tell which of two recipes does better at scale? The share of pairs that they order rightly.

After DataDecide (Magnusson et al. 2025): their decision accuracy. Not in the design's list of modules: downstream.py is
about one recipe's law, this about the order of several.
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
from analysis.tables import results
from analysis.tables.results import SURFACE_COLUMNS

LOSS = "loss"
CELL_TOLERANCE = 0.02  # in log parameters or tokens


@dataclass(frozen=True)
class Decisions:
    """Of one task, or of the loss.

    target: params, tokens, flops of the runs whose order is to be told.
    pairs: pairs of recipes that differ there.
    levels: a row a cell below the target, by flops: params, tokens, flops, ranking (share of pairs that the runs of
      that cell alone order as the target does, ties counted half), laws (the share by laws fitted to each recipe's
      runs up to that cell's flops and extrapolated; NaN where they are too few).
    """

    name: str
    by: str
    recipes: tuple[str, ...]
    target: dict[str, float]
    pairs: int
    levels: pd.DataFrame

    def facts(self) -> dict[str, Any]:
        levels = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in self.levels.to_dict("records")]
        about = {"name": self.name, "by": self.by, "recipes": list(self.recipes), "target": self.target}
        return about | {"pairs": self.pairs, "levels": levels}

    def __repr__(self) -> str:
        table = self.levels.to_string(float_format=lambda value: f"{value:.3g}")
        return f"Decisions({self.name} by {self.by}: {self.pairs} pairs of {', '.join(self.recipes)})\n{table}"


def decision_accuracy(
    table: pd.DataFrame, by: str, name: str = LOSS, *, target: str = "largest", params: str | None = None
) -> Decisions:
    """How often the order of two recipes at the target is told from below it, for every cell that all recipes have.

    Seeds are averaged. A recipe's name ends at its first bracket, where its options begin.

    Args:
      by: the column that names recipes.
      name: a task, whose accuracy is better higher, or "loss".
      target: largest, or a number of FLOPs: the common cell that comes nearest.
    Raises:
      TableError: no such column or task, fewer than two recipes, or fewer than two cells that all of them have.
    """
    points = recipe_points(table, by, name, params)
    scores = points.pivot_table(index=["flops", *SURFACE_COLUMNS], columns="recipe", values="score").dropna()
    names = tuple(map(str, scores.columns))
    if len(names) < 2:
        raise TableError(f"--by {by}: one recipe ({', '.join(names) or 'none'}); decisions need two at least")
    if len(scores) < 2:
        raise TableError(
            f"--by {by}: {len(scores)} cells (params, tokens) that all of {', '.join(names)} have; two needed"
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
    """Share of pairs that differ in `final` which `small` orders alike, ties in `small` as half; NaN without one."""
    right = [
        0.5 * (1 + np.sign(small[a] - small[b]) * np.sign(final[a] - final[b]))
        for a, b in itertools.combinations(range(len(final)), 2)
        if final[a] != final[b]
    ]
    return float(np.mean(right)) if right else np.nan


def recipe_points(table: pd.DataFrame, by: str, name: str, params: str | None) -> pd.DataFrame:
    """The usable runs with their recipe and their score, higher being better; params and tokens within 2 % of one
    another are made the same, so that runs of two recipes are of one cell."""
    if by not in table:
        near = f"; it has {', '.join(map(str, table.columns))}"
        raise TableError(f"--by {by}: the table lacks that column{near}")
    done = table[table["status"] == "done"] if "status" in table else table
    if done.empty:
        raise TableError(f"--by {by}: no run is done")
    parts = []
    for recipe, rows in done.groupby(done[by].astype(str).str.split("(").str[0].str.strip()):
        if name == LOSS:
            counted = params or ("params" if "params" in rows else results.DEFAULT_PARAMS_COLUMN)
            points = results.done_points(rows, counted).assign(chance=0.0, ceiling=1.0)
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
    """Each value, or the middle of those that follow one another within 2 %."""
    distinct = np.unique(values)
    group = np.concatenate([[0], np.cumsum(np.diff(np.log(distinct)) > CELL_TOLERANCE)])
    middle = pd.Series(distinct).groupby(group).transform("median")
    return values.map(dict(zip(distinct, middle, strict=True)))


def _target_index(flops: np.ndarray, rule: str) -> int:
    if rule == "largest":
        return int(np.argmax(flops))
    try:
        return int(np.argmin(np.abs(np.log(flops / float(rule)))))
    except ValueError:
        raise TableError(f"target {rule}: must be largest, or a number of FLOPs such as 1e12") from None


def _extrapolate_scores(points: pd.DataFrame, name: str, levels: pd.DataFrame, goal: dict[str, float]) -> np.ndarray:
    """A recipe's score at the target by the law of its runs up to each level, [levels]; NaN where they are too few."""
    points = points.reset_index(drop=True)
    kept = points["flops"].to_numpy() <= levels["flops"].to_numpy()[:, None] * (1 + 1e-9)
    at = pd.DataFrame([goal | {n: points[n].iloc[0] for n in RUN_COLUMNS[-2:]}])
    found = np.full(len(levels), np.nan)
    if name == LOSS:
        able = np.array([len(points.loc[row, list(SURFACE_COLUMNS)].drop_duplicates()) > 5 for row in kept])
        if able.any():
            values, _ = fit_each_weighting(chinchilla, points, points["loss"], mse_log, kept[able].astype(float))
            named = {n: values[:, [i]] for i, n in enumerate(chinchilla.parameters)}
            found[able] = -chinchilla(named, at)[:, 0]
        return found
    for model in (COMPUTE, PARAMS_AND_TOKENS):
        able = np.array([bool(accuracy_models.feasible_models((model,), points, row)) for row in kept])
        if able.any():
            found[able] = accuracy_models.predict(
                model, accuracy_models.fit(model, points, kept[able].astype(float)), at
            )[:, 0]
    return found
