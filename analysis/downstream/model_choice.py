"""Choice among accuracy models by a back-test, and the forecast that the likely best of them make together.

A task's study calls `backtest_models`, then `fit_forecast`. analysis.forecasting.law_choice does the same for the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.downstream.accuracy_models import (
    AccuracyModel,
    ResampledModel,
    feasible_models,
    fit,
    fit_resamples,
    predict,
)
from analysis.downstream.trend import rise_is_visible
from analysis.fitting import bootstrap
from analysis.forecasting.law_choice import win_shares
from analysis.tables.cells import extend_to_cells
from analysis.tables.schema import SURFACE_COLUMNS

CUT_FACTORS = (2.0, 3.0, 5.0, 10.0, 30.0)  # a cut holds out the runs above the largest compute over its factor
MAX_CUTS = 3  # cuts used: the first of these that hold out enough runs and leave enough
MIN_HELD_OUT_RUNS = 2  # runs that a cut must hold out
MIN_HELD_OUT_SHARE = 0.1  # share of all runs that a cut must hold out
MISFIT_SHARE = 0.01  # error of every law that is assumed, as a share of the way from chance to ceiling
MEASUREMENTS_PER_DRAW = 8  # measurements simulated for each resample of the laws
MARGIN = 1e-4  # least distance from 0 and 1 of the mean of a simulated measurement


@dataclass(frozen=True)
class BacktestScores:
    """How well each accuracy model forecasts the runs of most compute when they are held out of its fit.

    scores: mean absolute error of the accuracy of held-out runs, [models]; NaN for a model that had too few runs.
    win_shares: how often each model scores best when the held-out runs are resampled, [models], sum 1.
    persistence: the error of the forecast that nothing changes: the mean accuracy of the largest runs that are fitted.
    error_growth: root mean square error of the best model, less the variance of measurement, per e-fold of compute
      beyond the fitted runs; 0 if no runs could be held out.
    best_index: index of the best score; the model of fewest parameters if no runs could be held out.
    cuts: factors f; for each, the runs above (largest compute) / f were held out.
    """

    models: tuple[AccuracyModel, ...]
    scores: np.ndarray
    win_shares: np.ndarray
    persistence: float
    error_growth: float
    best_index: int
    cuts: tuple[float, ...]

    @property
    def best(self) -> AccuracyModel:
        return self.models[self.best_index]

    @property
    def error(self) -> float:
        return float(self.scores[self.best_index])


@dataclass(frozen=True)
class AccuracyForecast:
    """Predicts accuracies, with intervals, from the best accuracy model and the others that may be the best.

    members: the best model first, each with its resamples; a model has resamples in proportion to its win share.
    dispersion: mean square error of the best model over the variance expected of it, at least 1.
    questions: number of answers that a measured accuracy is the mean of; NaN if the table does not tell.
    misfit_variance: variance of an accuracy beside the binomial one of its questions.
    error_growth: root mean square error of the back-test per e-fold of compute beyond the fitted runs.
    max_flops: training FLOPs of the largest fitted run.
    warnings: reasons to trust the forecast less.
    """

    members: tuple[ResampledModel, ...]
    dispersion: float
    questions: float
    misfit_variance: float
    error_growth: float
    max_flops: float
    warnings: tuple[str, ...]

    def predict(self, targets: pd.DataFrame) -> np.ndarray:
        """Accuracy by the best model, [targets]. targets: columns flops, params, tokens, chance, ceiling."""
        return predict(self.members[0].model, self.members[0].values, targets)[0]

    def intervals(
        self, targets: pd.DataFrame, level: float, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(low, high) of the law, and (low, high) of one measurement of a new run: [targets] each.

        Beyond the largest run, the resamples are spread out until their standard deviation is the error that the
        back-test found at that distance, unless it is that large already. A measurement follows a beta distribution, so
        that it ends at 0 and 1; its variance is dispersion * (binomial variance of the questions + misfit variance).
        """
        resampled = np.concatenate([predict(member.model, member.draws, targets) for member in self.members])
        resampled = self._widen_beyond_runs(resampled[np.isfinite(resampled).all(1)], targets, seed)
        best = self.predict(targets)
        mean = np.clip(np.tile(resampled, (MEASUREMENTS_PER_DRAW, 1)), MARGIN, 1 - MARGIN)
        # Beta(mean * size, (1 - mean) * size) has the variance mean * (1 - mean) / (size + 1): solved for size
        bernoulli = mean * (1 - mean)
        binomial = bernoulli / self.questions if np.isfinite(self.questions) else 0.0
        size = np.maximum(bernoulli / (self.dispersion * (binomial + self.misfit_variance)) - 1, MARGIN)
        measured = np.random.default_rng(seed).beta(mean * size, (1 - mean) * size)
        low, high = bootstrap.central_interval(resampled, level)
        measured_low, measured_high = bootstrap.central_interval(measured, level)
        # every interval contains the best model's prediction
        lows, highs = (low, measured_low), (high, measured_high)
        low, measured_low = (np.minimum(bound, best) for bound in lows)
        high, measured_high = (np.maximum(bound, best) for bound in highs)
        return low, high, measured_low, measured_high

    def _widen_beyond_runs(self, resampled: np.ndarray, targets: pd.DataFrame, seed: int) -> np.ndarray:
        """Adds normal errors to resampled accuracies [draws, targets]; one draw errs alike at all targets."""
        log_distance = np.maximum(np.log(targets["flops"].to_numpy(float) / self.max_flops), 0.0)
        added = np.sqrt(np.maximum((self.error_growth * log_distance) ** 2 - resampled.var(0), 0.0))
        widened = resampled + added * np.random.default_rng(seed).normal(size=(len(resampled), 1))
        return np.clip(widened, 0.0, targets["ceiling"].to_numpy(float))


def backtest_models(points: pd.DataFrame, models: Sequence[AccuracyModel], *, seed: int = 0) -> BacktestScores:
    """Scores models on the runs of most compute, held out of their fits, at up to MAX_CUTS cuts in compute.

    A cut counts only if the runs below it still show a rise of accuracy, because nobody would forecast one from runs
    that show none. If no cut counts, the model of fewest parameters is chosen, without a score, and all win shares are
    equal.
    """
    flops = points["flops"].to_numpy(float)
    fitted_below = {
        factor: ~extend_to_cells(points, flops > flops.max() / factor, SURFACE_COLUMNS) for factor in CUT_FACTORS
    }  # factor -> mask of the fitted runs
    min_held_out = max(MIN_HELD_OUT_RUNS, int(MIN_HELD_OUT_SHARE * len(points)))
    feasible = {
        factor: feasible_models(models, points, fitted)
        for factor, fitted in fitted_below.items()
        if np.sum(~fitted) >= min_held_out and np.sum(fitted) > MIN_HELD_OUT_RUNS and rise_is_visible(points[fitted])
    }
    compared = max(feasible.values(), key=len, default=())
    # only cuts that allow the largest set of models, so that all are scored on the same runs
    cuts = tuple(factor for factor, allowed in feasible.items() if allowed == compared)[:MAX_CUTS]
    if not compared:
        fewest = int(np.argmin([model.parameter_count for model in models]))
        unscored, equal = np.full(len(models), np.nan), np.full(len(models), 1 / len(models))
        return BacktestScores(tuple(models), unscored, equal, np.nan, 0.0, fewest, ())
    accuracy = points["accuracy"].to_numpy()
    fitted = np.stack([fitted_below[factor] for factor in cuts])  # [cuts, points]
    # weights of the held-out runs: equal within a cut, equal for each cut, sum 1
    weights = np.where(fitted, 0.0, 1 / np.sum(~fitted, axis=1, keepdims=True)) / len(cuts)
    errors = np.full((len(models), *fitted.shape), np.inf)  # [models, cuts, points]; infinite for models not compared
    for index in (index for index, model in enumerate(models) if model in compared):
        predicted = predict(models[index], fit(models[index], points, fitted.astype(float)), points)
        errors[index] = np.nan_to_num(np.abs(predicted - accuracy), nan=1.0)
    # the part of each point in each model's score, [models, points]
    parts = np.sum(np.where(weights > 0, weights * np.where(weights > 0, errors, 0.0), 0.0), axis=1)
    parts[~np.isfinite(errors).all((1, 2))] = np.inf
    scores = np.where(np.isfinite(parts).all(1), parts.sum(1), np.nan)
    best_index = int(np.nanargmin(scores))
    held_out = weights.sum(0) > 0
    # persistence: the mean accuracy of the fitted runs within a factor of 3 of the largest fitted one
    largest = [mask & (flops > flops[mask].max() / 3) for mask in fitted]
    unchanged = np.array([accuracy[mask].mean() for mask in largest])
    persistence = float(np.sum(weights * np.abs(unchanged[:, None] - accuracy)))
    wins = win_shares(parts[:, held_out], points["cluster"].to_numpy()[held_out], seed)
    # least squares of error^2 = growth^2 * (log distance)^2, after the variance of measurement is taken off
    noise = np.asarray(points["standard_error"], float) ** 2 if "standard_error" in points else 0.0
    excess = np.sum(np.where(fitted, 0.0, weights * (errors[best_index] ** 2 - noise)))
    log_distance = np.log(flops / np.array([[flops[mask].max()] for mask in fitted]))
    error_growth = np.sqrt(max(excess, 0.0) / np.sum(weights * log_distance**2))
    return BacktestScores(tuple(models), scores, wins, persistence, float(error_growth), best_index, cuts)


def fit_forecast(
    points: pd.DataFrame, backtest: BacktestScores, *, questions: float, draws: int = 400, seed: int = 0
) -> AccuracyForecast:
    """Fits every model that has a win share to all points and to resamples of their trunks.

    The models share about `draws` resamples in proportion to their win shares; the best model has at least as many as
    any other. questions: see AccuracyForecast.
    """
    best_index = backtest.best_index
    shares = backtest.win_shares.copy()
    shares[best_index] = max(shares[best_index], shares.max())
    counts = np.round(draws * shares / shares.sum()).astype(int)
    counts[best_index] = max(counts[best_index], 2)
    order = sorted(np.flatnonzero(counts), key=lambda index: index != best_index)
    members, warnings = [], []
    for index in order:
        member, warning = fit_resamples(backtest.models[index], points, int(counts[index]), seed)
        members.append(member)
        warnings += [warning] if warning else []
    best = members[0]
    residuals = points["accuracy"].to_numpy() - predict(best.model, best.values, points)[0]
    degrees_of_freedom = max(len(points) - best.model.parameter_count, 1)
    misfit_variance = float((MISFIT_SHARE * (points["ceiling"] - points["chance"]).iloc[0]) ** 2)
    errors = np.asarray(points["standard_error"], float) if "standard_error" in points else np.zeros(len(points))
    dispersion = max(float(np.sum(residuals**2 / (errors**2 + misfit_variance)) / degrees_of_freedom), 1.0)
    if not backtest.cuts:
        warnings.append("no back-test: no cut in compute leaves enough runs that rise; all laws count as equally good")
    warnings += [
        f"bound hit: {name}; the best fit of this parameter lies outside the law's range"
        for name in _parameters_at_bounds(best)
    ]
    max_flops = float(points["flops"].max())
    return AccuracyForecast(
        members=tuple(members),
        dispersion=dispersion,
        questions=questions,
        misfit_variance=misfit_variance,
        error_growth=backtest.error_growth,
        max_flops=max_flops,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _parameters_at_bounds(fitted: ResampledModel) -> list[str]:
    """Names of the parameters whose fitted values lie at a bound of their law."""
    return [
        name
        for step, rows in zip(fitted.model.steps, fitted.values, strict=True)
        for name, value in zip(step.law.parameters, rows[0], strict=True)
        if any(abs(value - bound) <= 1e-6 * abs(bound) for bound in step.law.bounds[name])
    ]
