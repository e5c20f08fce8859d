"""Accuracy on downstream tasks as a function of scale: which tasks rise, by which law, with which interval.

    task_studies = studies(load("out/stdlib_cpu"))
    task_studies[0].verdict, task_studies[0].forecast(targets)

Every task is tested first (trend.py). Only a task that rises with compute gets a law: of the one-step and two-step
models, the one that forecasts the runs of most compute best (model_choice.py). "No trend" is a valid answer.
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

MIN_RUNS = 6  # fewest runs of a task that is tested; they need MIN_RUNS - 2 different training FLOPs
EXTRAPOLATION_FACTOR = 10.0  # training FLOPs at the end of a curve, over those of the largest run
CURVE_POINTS = 80  # rows of a curve


@dataclass(frozen=True, repr=False)
class Study:
    """The results of one task: its runs, the verdict, and if accuracy rises with compute, a law and its back-test.

    points: one row per run: run_id, cluster, params, tokens, flops, accuracy, standard_error, chance, ceiling, and if
      the table has them loss and bits_per_byte (of the right answer).
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
        """The verdict on the trend, and "noise unknown" if the table tells nothing of the noise."""
        return self.trend.verdict + ("" if np.isfinite(self.trend.noise) else ", noise unknown")

    @property
    def chance(self) -> float:
        return float(self.points["chance"].iloc[0])

    @property
    def ceiling(self) -> float:
        return float(self.points["ceiling"].iloc[0])

    def forecast(self, targets: pd.DataFrame) -> pd.DataFrame:
        """Predicts accuracies: predicted, low, high (of the law), measured_low, measured_high (of one new measurement).

        Args:
          targets: columns params, tokens, and flops; 6 * params * tokens where it is missing.
        Raises:
          TableError: the task has no law, or targets lack a column.
        """
        if self.accuracy_forecast is None:
            raise TableError(
                f"task {self.task}: {self.verdict} ({self.trend.reason}), so it has no law to forecast with"
            )
        if missing := [name for name in SURFACE_COLUMNS if name not in targets]:
            raise TableError(f"targets lack the column {missing[0]}: a forecast of {self.task} needs params and tokens")
        flops = targets["flops"] if "flops" in targets else 6 * targets["params"] * targets["tokens"]
        targets = targets.assign(flops=flops, chance=self.chance, ceiling=self.ceiling)
        low, high, measured_low, measured_high = self.accuracy_forecast.intervals(targets, self.level, seed=self.seed)
        columns = {"predicted": self.accuracy_forecast.predict(targets), "low": low, "high": high}
        columns |= {"measured_low": measured_low, "measured_high": measured_high}
        return pd.DataFrame(columns, index=targets.index)

    def curve(self, beyond: float = EXTRAPOLATION_FACTOR) -> pd.DataFrame:
        """The law over the compute of the runs and on to `beyond` times the largest: CURVE_POINTS rows by flops.

        Columns flops, params, tokens and those of a forecast. params and tokens follow straight lines in log FLOPs that
        are fitted to the runs.
        """
        logs = np.log(self.points[["flops", *SURFACE_COLUMNS]].to_numpy(float))
        budget = np.linspace(logs[:, 0].min(), logs[:, 0].max() + np.log(beyond), CURVE_POINTS)
        columns = {"flops": np.exp(budget)}
        for at, name in enumerate(SURFACE_COLUMNS, 1):
            columns[name] = np.exp(np.polyval(np.polyfit(logs[:, 0], logs[:, at], 1), budget))
        targets = pd.DataFrame(columns)
        return pd.concat([targets, self.forecast(targets)], axis=1)

    def facts(self) -> dict[str, Any]:
        """The content of the JSON: the verdict and its numbers, the law, its back-test, the forecast at 10x compute.

        In "backtest", "roads" lists the accuracy models, and "naive" is the error of persistence.
        """
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
        heading = {"task": self.task, "verdict": t.verdict, "reason": t.reason, "runs": len(self.points)}
        levels = {
            "chance": self.chance,
            "ceiling": self.ceiling,
            "best": float(best),
            "params_column": self.params_column,
        }
        facts: dict[str, Any] = heading | levels | _finite_or_none(numbers) | {"noise_of": t.noise_source, "law": None}
        if self.backtest is None or self.accuracy_forecast is None:
            return facts
        best_fit = self.accuracy_forecast.members[0]
        steps = zip(best_fit.model.steps, best_fit.values, strict=True)
        values = [dict(zip(step.law.parameters, map(float, rows[0]), strict=True)) for step, rows in steps]
        last = self.curve().iloc[-1]
        scored = [
            {"name": model.name, "source": model.source, **_finite_or_none({"error": score, "wins": share})}
            for model, score, share in zip(
                self.backtest.models, self.backtest.scores, self.backtest.win_shares, strict=True
            )
        ]
        return facts | {
            "law": best_fit.model.name,
            "formulas": [step.law.formula for step in best_fit.model.steps],
            "parameters": values,
            "backtest": {"roads": scored, "cuts": list(self.backtest.cuts)}
            | _finite_or_none({"naive": self.backtest.persistence}),
            "dispersion": self.accuracy_forecast.dispersion,
            "level": self.level,
            "forecast": {name: float(last[name]) for name in last.index},
            "held_out": json.loads(self.held_out.to_json(orient="records")),
            "warnings": list(self.accuracy_forecast.warnings),
        }

    def to_json(self) -> str:
        return json.dumps(self.facts(), indent=1, allow_nan=False)

    def __repr__(self) -> str:
        law = "" if self.backtest is None else f"; {self.backtest.best.name}, back-test error {self.backtest.error:.3f}"
        return f"Study({self.task}: {self.verdict}, {self.trend.reason}{law}; {len(self.points)} runs)"


def studies(table: pd.DataFrame, only: Sequence[str] = (), **options: Any) -> list[Study]:
    """A study of each task named in `only`; if none is named, of every task that allows one.

    options: see study. `survey` also tells why the other tasks allow none.
    Raises:
      TableError: the table has no task, a named task allows no study, or no task does.
    """
    if only:
        return [study(table, task, **options) for task in only]
    return survey(table, require_task_names(table), **options)[0]


def survey(table: pd.DataFrame, tasks: Iterable[str], **options: Any) -> tuple[list[Study], dict[str, str]]:
    """Studies every task that allows it. Returns (studies, task -> the reason why it has none).

    options: see study.
    Raises:
      TableError: no task allows a study.
    """
    task_studies: list[Study] = []
    left_out: dict[str, str] = {}
    for task in tasks:
        try:
            task_studies.append(study(table, task, **options))
        except TableError as error:
            left_out[task] = str(error)
    if not task_studies:
        raise TableError("; ".join(dict.fromkeys(left_out.values())))
    return task_studies, {task: reason.removeprefix(f"task {task}: ") for task, reason in left_out.items()}


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
    """Tests whether accuracy on a task rises with compute, and if it does, fits a law to it.

    Args:
      table: a results table with columns <task>/accuracy and <task>/chance.
      holdout: "largest", "none", or a number of FLOPs; runs at or above it take part in no test and no fit.
      params: the count of parameters to use; params if the table has it, else params_matmul, unless given.
      checkpoints: a table of evaluations of several checkpoints a run; their scatter counts as noise. Those of held-out
        runs are left out.
      models: the accuracy models to choose from.
      draws: number of bootstrap resamples of trunks.
      level: nominal probability of the intervals.
      seed: of the permutations and the resamples.
    Raises:
      TableError: no such task, values out of their range, or too few runs.
    """
    if task not in (names := require_task_names(table)):
        near = difflib.get_close_matches(task, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TableError(f"task {task}: not in the table, which has {', '.join(names)}{hint}")
    points, params_column, questions = task_points(table, task, params)
    fitted, held_out = saved_fit.hold_out(points, holdout)
    if len(fitted) < MIN_RUNS or fitted["flops"].nunique() < MIN_RUNS - 2:
        reason = f"; --holdout {holdout} holds out {len(held_out)}" if len(held_out) else ""
        raise TableError(
            f"task {task}: {len(fitted)} runs have it; must be at least {MIN_RUNS}, of {MIN_RUNS - 2} budgets{reason}"
        )
    trend = judge(fitted, checkpoint_points(checkpoints, task, fitted["run_id"]), seed=seed)
    common = (params_column, level, seed)
    feasible = feasible_models(models, fitted)
    if trend.verdict not in ("rises", "saturated") or trend.p >= 0.05 or not feasible:
        return Study(task, fitted, held_out, trend, None, None, None, *common)
    backtest = backtest_models(fitted, feasible, seed=seed)
    accuracy_forecast = fit_forecast(fitted, backtest, questions=questions, draws=draws, seed=seed)
    bits_model = _fit_bits_model(fitted, backtest, draws, seed)
    result = Study(task, fitted, held_out, trend, backtest, accuracy_forecast, bits_model, *common)
    return result if held_out.empty else replace(result, held_out=_with_forecasts(result))


def _fit_bits_model(points: pd.DataFrame, backtest: BacktestScores, draws: int, seed: int) -> ResampledModel | None:
    """Fits whichever of the two models through bits per byte has the better back-test; None if neither is feasible."""
    scores = dict(zip(backtest.models, np.nan_to_num(backtest.scores, nan=np.inf), strict=True))
    models = [model for model in (BITS_SIGMOID, BITS_FREE_SIGMOID) if model in scores]
    return fit_resamples(min(models, key=lambda model: scores[model]), points, draws // 2, seed)[0] if models else None


def _with_forecasts(result: Study) -> pd.DataFrame:
    """The held-out runs with predicted, low and high of their measurement, and whether it is inside."""
    forecast = result.forecast(result.held_out)
    low, high = forecast["measured_low"], forecast["measured_high"]
    inside = result.held_out["accuracy"].between(low, high)
    return result.held_out.assign(predicted=forecast["predicted"], low=low, high=high, inside=inside)


def _finite_or_none(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()}
