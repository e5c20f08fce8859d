"""Accuracy on downstream tasks against parameters, tokens and loss: which tasks rise, by which law, how surely.

    found = studies(load("out/stdlib_cpu"))
    found[0].verdict, found[0].forecast(targets)

Every task of a table is judged first (trend.py); only one that rises is given a law, the one among one-step and
two-step laws that forecasts the top of compute best (roads.py). "No trend" is an answer.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.downstream.accuracy_models import BITS, FREE_BITS, ROADS, Drawn, Road, drawn, feasible
from analysis.downstream.model_choice import Model, Trial, model, trial
from analysis.downstream.task_table import checkpoint_points, some_tasks, task_points
from analysis.downstream.trend import Trend, judge
from analysis.errors import TableError
from analysis.forecasting import saved_fit
from analysis.tables.results import SURFACE_COLUMNS

LEAST = 6  # distinct runs below which a task is not judged
BEYOND = 10.0  # how far past the largest run a curve is drawn, in training FLOPs
FINE = 80


@dataclass(frozen=True, repr=False)
class Study:
    """What a table says of one task.

    points: a row a run: run_id, cluster, params, tokens, flops, accuracy, standard_error, chance, ceiling, and where
      the table has them loss and bits_per_byte (of the right answer).
    held_out: the same columns of runs that nothing here has seen, with predicted, low, high and inside.
    trial, model: None where the verdict gives the task no law.
    second: the road through bits per byte that back-tests better, whether or not it is the best; None where the table
      has no bits per byte, or the task no law.
    """

    task: str
    points: pd.DataFrame
    held_out: pd.DataFrame
    trend: Trend
    trial: Trial | None
    model: Model | None
    second: Drawn | None
    params_column: str
    level: float
    seed: int

    @property
    def verdict(self) -> str:
        return self.trend.verdict + ("" if np.isfinite(self.trend.noise) else ", noise unknown")

    @property
    def chance(self) -> float:
        return float(self.points["chance"].iloc[0])

    @property
    def ceiling(self) -> float:
        return float(self.points["ceiling"].iloc[0])

    def forecast(self, targets: pd.DataFrame) -> pd.DataFrame:
        """Columns predicted, low, high (of the law) and measured_low, measured_high (of one new run's measurement).

        Args:
          targets: columns params, tokens, and flops; 6 * params * tokens where it is missing.
        Raises:
          TableError: the task has no law, or targets lack a column.
        """
        if self.model is None:
            raise TableError(f"task {self.task}: {self.verdict} ({self.trend.reason}), so there is nothing to forecast")
        if missing := [name for name in SURFACE_COLUMNS if name not in targets]:
            raise TableError(f"a forecast of {self.task} needs params and tokens; the target lacks {missing[0]}")
        flops = targets["flops"] if "flops" in targets else 6 * targets["params"] * targets["tokens"]
        known = targets.assign(flops=flops, chance=self.chance, ceiling=self.ceiling)
        low, high, least, most = self.model.intervals(known, self.level, seed=self.seed)
        found = {"predicted": self.model.predict(known), "low": low, "high": high}
        return pd.DataFrame(found | {"measured_low": least, "measured_high": most}, index=targets.index)

    def curve(self, beyond: float = BEYOND) -> pd.DataFrame:
        """The law through the middle of the runs and on to `beyond` times their compute: flops, params, tokens, and the
        columns of a forecast. At each budget, params and tokens are those that a line through the logs of the runs
        gives."""
        logs = np.log(self.points[["flops", *SURFACE_COLUMNS]].to_numpy(float))
        budget = np.linspace(logs[:, 0].min(), logs[:, 0].max() + np.log(beyond), FINE)
        columns = {"flops": np.exp(budget)}
        for at, name in enumerate(SURFACE_COLUMNS, 1):
            columns[name] = np.exp(np.polyval(np.polyfit(logs[:, 0], logs[:, at], 1), budget))
        targets = pd.DataFrame(columns)
        return pd.concat([targets, self.forecast(targets)], axis=1)

    def facts(self) -> dict[str, Any]:
        """As JSON: the verdict and its numbers, the law, its back-test, and the forecast at ten times the compute."""
        t = self.trend
        numbers = {
            "signal": t.signal,
            "noise": t.noise,
            "ratio": t.ratio,
            "ratio_needed": t.needed,
            "tau": t.tau,
            "p": t.p,
        }
        best = self.points["accuracy"].max()
        about = {"task": self.task, "verdict": t.verdict, "reason": t.reason, "runs": len(self.points)}
        levels = {
            "chance": self.chance,
            "ceiling": self.ceiling,
            "best": float(best),
            "params_column": self.params_column,
        }
        facts: dict[str, Any] = about | levels | _finite(numbers) | {"noise_of": t.noise_of, "law": None}
        if self.trial is None or self.model is None:
            return facts
        own = self.model.members[0]
        steps = zip(own.road.steps, own.values, strict=True)
        values = [dict(zip(step.law.parameters, map(float, rows[0]), strict=True)) for step, rows in steps]
        far = self.curve().iloc[-1]
        scored = [
            {"name": road.name, "source": road.source, **_finite({"error": score, "wins": share})}
            for road, score, share in zip(self.trial.roads, self.trial.scores, self.trial.wins, strict=True)
        ]
        return facts | {
            "law": own.road.name,
            "formulas": [step.law.formula for step in own.road.steps],
            "parameters": values,
            "backtest": {"roads": scored, "cuts": list(self.trial.cuts)} | _finite({"naive": self.trial.naive}),
            "dispersion": self.model.dispersion,
            "level": self.level,
            "forecast": {name: float(far[name]) for name in far.index},
            "held_out": json.loads(self.held_out.to_json(orient="records")),
            "warnings": list(self.model.warnings),
        }

    def to_json(self) -> str:
        return json.dumps(self.facts(), indent=1, allow_nan=False)

    def __repr__(self) -> str:
        law = "" if self.trial is None else f"; {self.trial.best.name}, back-test error {self.trial.error:.3f}"
        return f"Study({self.task}: {self.verdict}, {self.trend.reason}{law}; {len(self.points)} runs)"


def studies(table: pd.DataFrame, only: Sequence[str] = (), **options: Any) -> list[Study]:
    """A study of each task named; where none is, of each that can have one (`survey` says why the others cannot).

    Options: see study. Raises TableError: no task, a task named that can have no study, or no task that can.
    """
    if only:
        return [study(table, task, **options) for task in only]
    return survey(table, some_tasks(table), **options)[0]


def survey(table: pd.DataFrame, tasks: Iterable[str], **options: Any) -> tuple[list[Study], dict[str, str]]:
    """(a study of each of the tasks that can have one, task -> why the others cannot).

    Options: see study. Raises TableError where none can.
    """
    found: list[Study] = []
    left_out: dict[str, str] = {}
    for task in tasks:
        try:
            found.append(study(table, task, **options))
        except TableError as error:
            left_out[task] = str(error)
    if not found:
        raise TableError("; ".join(dict.fromkeys(left_out.values())))
    return found, {task: why.removeprefix(f"task {task}: ") for task, why in left_out.items()}


def study(
    table: pd.DataFrame,
    task: str,
    *,
    holdout: str = "none",
    params: str | None = None,
    checkpoints: pd.DataFrame | None = None,
    roads: Sequence[Road] = ROADS,
    draws: int = 400,
    level: float = 0.9,
    seed: int = 0,
) -> Study:
    """The verdict on a task, and its law where it rises.

    Args:
      holdout: largest, none, or a number of FLOPs at or above which runs are held out of everything.
      params: which count of parameters to use.
      checkpoints: a table of several checkpoints a run, whose scatter counts as noise; only of runs not held out.
      roads: the laws to choose from.
      draws: resamples of trunks.
      level: nominal probability of intervals.
    Raises:
      TableError: no such task, values that cannot be, or too few runs.
    """
    if task not in (known := some_tasks(table)):
        near = difflib.get_close_matches(task, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TableError(f"task {task}: the table has {', '.join(known)}{hint}")
    points, counted, questions = task_points(table, task, params)
    fitted, held = saved_fit.hold_out(points, holdout)
    if len(fitted) < LEAST or fitted["flops"].nunique() < LEAST - 2:
        out = f", --holdout {holdout} holds out {len(held)}" if len(held) else ""
        raise TableError(
            f"task {task}: {len(fitted)} runs have it, at least {LEAST} at {LEAST - 2} budgets are needed{out}"
        )
    trend = judge(fitted, checkpoint_points(checkpoints, task, fitted["run_id"]), seed=seed)
    common = (counted, level, seed)
    able = feasible(roads, fitted)
    if trend.verdict not in ("rises", "saturated") or trend.p >= 0.05 or not able:
        return Study(task, fitted, held, trend, None, None, None, *common)
    tried = trial(fitted, able, seed=seed)
    chosen = model(fitted, tried, questions=questions, draws=draws, seed=seed)
    second = _second(fitted, tried, draws, seed)
    found = Study(task, fitted, held, trend, tried, chosen, second, *common)
    return found if held.empty else replace(found, held_out=_scored(found, held))


def _second(points: pd.DataFrame, tried: Trial, draws: int, seed: int) -> Drawn | None:
    """The better of the two roads through bits per byte, with its resamples."""
    scores = dict(zip(tried.roads, np.nan_to_num(tried.scores, nan=np.inf), strict=True))
    able = [road for road in (BITS, FREE_BITS) if road in scores]
    return drawn(min(able, key=lambda road: scores[road]), points, draws // 2, seed)[0] if able else None


def _scored(found: Study, held: pd.DataFrame) -> pd.DataFrame:
    """Held-out runs with the forecast of their measurement beside it."""
    said = found.forecast(held)
    inside = held["accuracy"].between(said["measured_low"], said["measured_high"])
    low, high = said["measured_low"], said["measured_high"]
    return held.assign(predicted=said["predicted"], low=low, high=high, inside=inside)


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
