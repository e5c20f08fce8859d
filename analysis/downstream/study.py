"""Accuracy on downstream tasks against parameters, tokens and loss: which tasks rise, by which law, how surely.

    found = studies(load("out/stdlib_cpu"))
    found[0].verdict, found[0].forecast(targets)

Every task of a table is judged first (trend.py); only one that rises is given a law, the one among one-step and
two-step laws that forecasts the top of compute best (model_choice.py). "No trend" is an answer.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.downstream.accuracy_models import (
    ACCURACY_MODELS,
    BITS_FREE_SIGMOID,
    BITS_SIGMOID,
    AccuracyModel,
    ResampledModel,
    feasible_models,
    fit_resamples,
)
from analysis.downstream.model_choice import AccuracyForecast, BacktestScores, backtest_models, fit_forecast
from analysis.downstream.task_table import checkpoint_points, require_task_names, task_points
from analysis.downstream.trend import Trend, judge
from analysis.errors import TableError
from analysis.forecasting import saved_fit
from analysis.tables.results import SURFACE_COLUMNS

MIN_RUNS = 6  # distinct runs below which a task is not judged
EXTRAPOLATION_FACTOR = 10.0  # how far past the largest run a curve is drawn, in training FLOPs
CURVE_POINTS = 80


@dataclass(frozen=True, repr=False)
class Study:
    """The results of one task: its runs, the verdict, and if accuracy rises with compute, a law and its back-test.

    points: one row a run: run_id, cluster, params, tokens, flops, accuracy, standard_error, chance, ceiling, and if the
      table has them loss and bits_per_byte (of the right answer).
    held_out: the held-out runs, which no test and no fit uses: the same columns, and predicted, low, high and inside.
    trend: the tests behind the verdict.
    backtest, accuracy_forecast: None if the task gets no law.
    bits_model: of the two models through bits per byte, the one with the better back-test, even if another model is the
      best of all; None if the table has no bits per byte, or the task gets no law.
    params_column: the count of parameters that params stands for.
    level: nominal probability of the intervals.
    """

    task: str
    points: pd.DataFrame
    held_out: pd.DataFrame
    trend: Trend
    backtest: BacktestScores | None
    accuracy_forecast: AccuracyForecast | None
    bits_model: ResampledModel | None
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
        if self.accuracy_forecast is None:
            raise TableError(f"task {self.task}: {self.verdict} ({self.trend.reason}), so there is nothing to forecast")
        if missing := [name for name in SURFACE_COLUMNS if name not in targets]:
            raise TableError(f"a forecast of {self.task} needs params and tokens; the target lacks {missing[0]}")
        flops = targets["flops"] if "flops" in targets else 6 * targets["params"] * targets["tokens"]
        known = targets.assign(flops=flops, chance=self.chance, ceiling=self.ceiling)
        low, high, least, most = self.accuracy_forecast.intervals(known, self.level, seed=self.seed)
        found = {"predicted": self.accuracy_forecast.predict(known), "low": low, "high": high}
        return pd.DataFrame(found | {"measured_low": least, "measured_high": most}, index=targets.index)

    def curve(self, beyond: float = EXTRAPOLATION_FACTOR) -> pd.DataFrame:
        """The law through the middle of the runs and on to `beyond` times their compute: flops, params, tokens, and the
        columns of a forecast. At each budget, params and tokens are those that a line through the logs of the runs
        gives."""
        logs = np.log(self.points[["flops", *SURFACE_COLUMNS]].to_numpy(float))
        budget = np.linspace(logs[:, 0].min(), logs[:, 0].max() + np.log(beyond), CURVE_POINTS)
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
            "ratio_needed": t.ratio_needed,
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
        facts: dict[str, Any] = about | levels | _finite_or_none(numbers) | {"noise_of": t.noise_source, "law": None}
        if self.backtest is None or self.accuracy_forecast is None:
            return facts
        own = self.accuracy_forecast.members[0]
        steps = zip(own.model.steps, own.values, strict=True)
        values = [dict(zip(step.law.parameters, map(float, rows[0]), strict=True)) for step, rows in steps]
        far = self.curve().iloc[-1]
        scored = [
            {"name": model.name, "source": model.source, **_finite_or_none({"error": score, "wins": share})}
            for model, score, share in zip(
                self.backtest.models, self.backtest.scores, self.backtest.win_shares, strict=True
            )
        ]
        return facts | {
            "law": own.model.name,
            "formulas": [step.law.formula for step in own.model.steps],
            "parameters": values,
            "backtest": {"roads": scored, "cuts": list(self.backtest.cuts)}
            | _finite_or_none({"naive": self.backtest.persistence}),
            "dispersion": self.accuracy_forecast.dispersion,
            "level": self.level,
            "forecast": {name: float(far[name]) for name in far.index},
            "held_out": json.loads(self.held_out.to_json(orient="records")),
            "warnings": list(self.accuracy_forecast.warnings),
        }

    def to_json(self) -> str:
        return json.dumps(self.facts(), indent=1, allow_nan=False)

    def __repr__(self) -> str:
        law = "" if self.backtest is None else f"; {self.backtest.best.name}, back-test error {self.backtest.error:.3f}"
        return f"Study({self.task}: {self.verdict}, {self.trend.reason}{law}; {len(self.points)} runs)"


def studies(table: pd.DataFrame, only: Sequence[str] = (), **options: Any) -> list[Study]:
    """A study of each task named; where none is, of each that can have one (`survey` says why the others cannot).

    Options: see study. Raises TableError: no task, a task named that can have no study, or no task that can.
    """
    if only:
        return [study(table, task, **options) for task in only]
    return survey(table, require_task_names(table), **options)[0]


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
    models: Sequence[AccuracyModel] = ACCURACY_MODELS,
    draws: int = 400,
    level: float = 0.9,
    seed: int = 0,
) -> Study:
    """The verdict on a task, and its law where it rises.

    Args:
      holdout: largest, none, or a number of FLOPs at or above which runs are held out of everything.
      params: which count of parameters to use.
      checkpoints: a table of several checkpoints a run, whose scatter counts as noise; only of runs not held out.
      models: the laws to choose from.
      draws: resamples of trunks.
      level: nominal probability of intervals.
    Raises:
      TableError: no such task, values that cannot be, or too few runs.
    """
    if task not in (known := require_task_names(table)):
        near = difflib.get_close_matches(task, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TableError(f"task {task}: the table has {', '.join(known)}{hint}")
    points, counted, questions = task_points(table, task, params)
    fitted, held = saved_fit.hold_out(points, holdout)
    if len(fitted) < MIN_RUNS or fitted["flops"].nunique() < MIN_RUNS - 2:
        out = f", --holdout {holdout} holds out {len(held)}" if len(held) else ""
        raise TableError(
            f"task {task}: {len(fitted)} runs have it, at least {MIN_RUNS} at {MIN_RUNS - 2} budgets are needed{out}"
        )
    trend = judge(fitted, checkpoint_points(checkpoints, task, fitted["run_id"]), seed=seed)
    common = (counted, level, seed)
    able = feasible_models(models, fitted)
    if trend.verdict not in ("rises", "saturated") or trend.p >= 0.05 or not able:
        return Study(task, fitted, held, trend, None, None, None, *common)
    tried = backtest_models(fitted, able, seed=seed)
    chosen = fit_forecast(fitted, tried, questions=questions, draws=draws, seed=seed)
    second = _fit_bits_model(fitted, tried, draws, seed)
    found = Study(task, fitted, held, trend, tried, chosen, second, *common)
    return found if held.empty else replace(found, held_out=_with_forecasts(found, held))


def _fit_bits_model(points: pd.DataFrame, tried: BacktestScores, draws: int, seed: int) -> ResampledModel | None:
    """The better of the two models through bits per byte, with its resamples."""
    scores = dict(zip(tried.models, np.nan_to_num(tried.scores, nan=np.inf), strict=True))
    able = [model for model in (BITS_SIGMOID, BITS_FREE_SIGMOID) if model in scores]
    return fit_resamples(min(able, key=lambda model: scores[model]), points, draws // 2, seed)[0] if able else None


def _with_forecasts(found: Study, held: pd.DataFrame) -> pd.DataFrame:
    """Held-out runs with the forecast of their measurement beside it."""
    said = found.forecast(held)
    inside = held["accuracy"].between(said["measured_low"], said["measured_high"])
    low, high = said["measured_low"], said["measured_high"]
    return held.assign(predicted=said["predicted"], low=low, high=high, inside=inside)


def _finite_or_none(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
