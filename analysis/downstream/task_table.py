"""The tasks of a results table, and the runs of one task as the points that its studies and decisions use."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.downstream.model_choice import MISFIT_SHARE
from analysis.errors import TableError
from analysis.tables import results, run_status
from analysis.tables.results import SURFACE_COLUMNS


def task_names(table: pd.DataFrame) -> list[str]:
    """Names that have both an accuracy and a chance level among the columns, in alphabetical order."""
    names = {str(name) for name in table.columns}
    return sorted(
        name.removesuffix("/chance") for name in names if name.endswith("/chance") and _accuracy_column(name) in names
    )


def require_task_names(table: pd.DataFrame) -> list[str]:
    """As task_names. Raises TableError if the table has no task."""
    if not (names := task_names(table)):
        raise TableError(
            "the table has no task: no column <task>/accuracy beside <task>/chance; run scaling eval first"
        )
    return names


def _accuracy_column(chance: str) -> str:
    """The name <task>/accuracy that belongs to <task>/chance."""
    return f"{chance.removesuffix('/chance')}/accuracy"


def task_points(table: pd.DataFrame, task: str, params: str | None) -> tuple[pd.DataFrame, str, float]:
    """The finished runs that have an accuracy of a task, sorted by training FLOPs.

    Args:
      params: the count of parameters to use; params if the table has it, else params_matmul, unless given.
    Returns:
      The columns of Study.points, with the weights that accuracy models read; the column that params stands for; the
      number of questions that an accuracy is the mean of, NaN if the table does not tell.
    Raises:
      TableError: no finished run has the task, or values are out of their range.
    """
    table = run_status.done_rows(table)
    if "loss" in table:
        table, _ = results.measured_rows(table, "loss")
    rows = table[pd.to_numeric(table[f"{task}/accuracy"], errors="coerce").notna()]
    if rows.empty:
        raise TableError(f"task {task}: no run with the status done has {task}/accuracy")
    params_column = params or ("params" if "params" in table else results.DEFAULT_PARAMS_COLUMN)
    points = results.done_points(rows, params_column, SURFACE_COLUMNS, "loss" if "loss" in rows else "tokens")
    for name in ("accuracy", "chance", "ceiling"):
        points[name] = _read_shares(rows, f"{task}/{name}") if f"{task}/{name}" in rows else 1.0
    if (points["chance"] >= points["ceiling"]).any() or points[["chance", "ceiling"]].nunique().gt(1).any():
        raise TableError(
            f"task {task}: {task}/chance and {task}/ceiling must be the same for all runs, and chance below ceiling"
        )
    stated = _positive_numbers(rows, f"{task}/accuracy_stderr")
    points["standard_error"], questions = _standard_errors(points["accuracy"].to_numpy(), stated)
    misfit = MISFIT_SHARE * (points["ceiling"] - points["chance"]).to_numpy()
    points["accuracy_weight"] = _weights(np.hypot(points["standard_error"].to_numpy(), misfit))
    points["error"] = 1 - points["accuracy"]
    points["bits_per_byte"] = _positive_numbers(rows, f"{task}/bits_per_byte")
    relative = _positive_numbers(rows, f"{task}/bits_per_byte_stderr") / points["bits_per_byte"].to_numpy()
    points["bits_per_byte_weight"] = _weights(relative)
    if "loss" in points:
        points["loss_weight"] = _weights(_positive_numbers(rows, "loss_stderr") / points["loss"].to_numpy())
    settings = [
        name for name in ("recipe", "learning_rate", "weight_decay", "batch_tokens", "schedule") if name in rows
    ]
    points["settings"] = rows[settings].astype(str).agg(" ".join, axis=1).to_numpy() if settings else ""
    points = points.sort_values(["flops", *SURFACE_COLUMNS, "run_id"], kind="stable")
    return points.dropna(axis=1, how="all").reset_index(drop=True), params_column, questions


def _positive_numbers(rows: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64, [runs]; NaN where a value is missing, infinite or not above zero."""
    if column not in rows:
        return np.full(len(rows), np.nan)
    values = pd.to_numeric(rows[column], errors="coerce").to_numpy(float)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _read_shares(rows: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64, [runs]. Raises TableError for a value outside 0 to 1."""
    values = pd.to_numeric(rows[column], errors="coerce").to_numpy(float)
    invalid = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(invalid):
        run = f" (run {rows['run_id'].iloc[invalid[0]]})" if "run_id" in rows else ""
        raise TableError(f"{column} = {rows[column].iloc[invalid[0]]}{run}: must be a share between 0 and 1")
    return values


def _standard_errors(accuracy: np.ndarray, stated: np.ndarray) -> tuple[np.ndarray, float]:
    """(standard error of each accuracy, [runs]; number of questions). NaN if the table states no standard error.

    The number of questions is the one that the stated errors imply, p (1 - p) / stderr^2. The errors are binomial, with
    two right and two wrong answers added, so that accuracies of 0 and 1 have one too (Agresti and Coull 1998).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = accuracy * (1 - accuracy) / stated**2
    implied = counts[np.isfinite(counts) & (counts >= 1)]
    if not len(implied):
        return np.full(len(accuracy), np.nan), np.nan
    typical = float(np.median(implied))
    count = np.where(np.isfinite(counts) & (counts >= 1), counts, typical)
    adjusted = (accuracy * count + 2) / (count + 4)
    return np.sqrt(adjusted * (1 - adjusted) / count), typical


def _weights(errors: np.ndarray) -> np.ndarray:
    """Weights 1 / error^2, scaled to mean 1, [runs]; all ones if any error is missing."""
    if not np.isfinite(errors).all():
        return np.ones(len(errors))
    weights = 1 / errors**2
    return weights / weights.mean()


def checkpoint_points(table: pd.DataFrame | None, task: str, runs: pd.Series) -> pd.DataFrame | None:
    """Columns run_id, tokens, accuracy of some runs in a table of checkpoints; None without a table or the task in it.

    runs: their run_ids.
    """
    if table is None or f"{task}/accuracy" not in table:
        return None
    rows = table.loc[table["run_id"].astype(str).isin(runs), ["run_id", "tokens", f"{task}/accuracy"]].dropna()
    return rows.rename(columns={f"{task}/accuracy": "accuracy"})
