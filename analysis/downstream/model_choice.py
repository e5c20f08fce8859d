"""Which model to accuracy to believe: a back-test among them, and what they predict together.

Not in the design's list of modules: models.py fits one, this chooses among several, as backtest.py does for losses.
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

CUT_FACTORS = (2.0, 3.0, 5.0, 10.0, 30.0)  # runs above Cmax over these are held out in turn,
MAX_CUTS = 3  # as many of them, from the first, as
MIN_HELD_OUT_RUNS = 2  # hold out so many runs,
MIN_HELD_OUT_SHARE = 0.1  # and such a share of all
MISFIT_SHARE = 0.01  # share of the way from chance to ceiling, closer than which no law is trusted to any accuracy
MEASUREMENTS_PER_DRAW = 8  # measurements drawn for each draw of the laws
MARGIN = 1e-4  # how far from 0 and 1 a measurement's mean is kept


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
    """What accuracies are predicted from: the best model first, and those that might have won.

    dispersion: squared errors of the best model at its points over their variance, the larger of it and 1.
    questions: answers that an accuracy is the mean of; NaN where the table does not tell.
    misfit_variance: variance of an accuracy beside that of its questions.
    error_growth, max_flops: what the back-test missed by, per e-fold of compute beyond `max_flops`, the largest run.
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
        """(low, high) of the law itself, and (low, high) of one measurement of a new run: [targets] each.

        Beyond the largest run, the draws are spread to what the back-test missed by, where they are closer together.
        The measurement has the binomial variance of as many questions as the points have, and that of the misfit, times
        the dispersion; its distribution is a beta, so that it ends at 0 and 1.
        """
        spread = np.concatenate([predict(member.model, member.draws, targets) for member in self.members])
        spread = self._widen_beyond_runs(spread[np.isfinite(spread).all(1)], targets, seed)
        centre = self.predict(targets)
        mean = np.clip(np.tile(spread, (MEASUREMENTS_PER_DRAW, 1)), MARGIN, 1 - MARGIN)
        ends = mean * (1 - mean)
        binomial = ends / self.questions if np.isfinite(self.questions) else 0.0
        size = np.maximum(ends / (self.dispersion * (binomial + self.misfit_variance)) - 1, MARGIN)
        seen = np.random.default_rng(seed).beta(mean * size, (1 - mean) * size)
        (low, high), (least, most) = (bootstrap.central_interval(part, level) for part in (spread, seen))
        return np.minimum(low, centre), np.maximum(high, centre), np.minimum(least, centre), np.maximum(most, centre)

    def _widen_beyond_runs(self, spread: np.ndarray, targets: pd.DataFrame, seed: int) -> np.ndarray:
        further = np.maximum(np.log(targets["flops"].to_numpy(float) / self.max_flops), 0.0)
        lacking = np.sqrt(np.maximum((self.error_growth * further) ** 2 - spread.var(0), 0.0))
        moved = spread + lacking * np.random.default_rng(seed).normal(size=(len(spread), 1))
        return np.clip(moved, 0.0, targets["ceiling"].to_numpy(float))


def backtest_models(points: pd.DataFrame, models: Sequence[AccuracyModel], *, seed: int = 0) -> BacktestScores:
    """Roads scored on tops of compute held out in turn, each fitted to the rest: the three smallest that hold enough.

    A cut leaves enough when the runs below it still show a rise, since nobody would forecast one from runs that show
    none. Where no cut does, the model with the fewest parameters is taken, unscored, and all are as likely.
    """
    flops = points["flops"].to_numpy(float)
    cuts = {factor: flops <= flops.max() / factor for factor in CUT_FACTORS}
    least = max(MIN_HELD_OUT_RUNS, int(MIN_HELD_OUT_SHARE * len(points)))
    fair = {f: kept for f, kept in cuts.items() if np.sum(~kept) >= least and np.sum(kept) > MIN_HELD_OUT_RUNS}
    able = {f: feasible_models(models, points, kept) for f, kept in fair.items() if rise_is_visible(points[kept])}
    most = max(able.values(), key=len, default=())
    used = tuple(f for f, found in able.items() if found == most)[:MAX_CUTS]
    if not most:
        fewest = int(np.argmin([model.parameter_count for model in models]))
        nothing = np.full(len(models), np.nan)
        return BacktestScores(tuple(models), nothing, np.full(len(models), 1 / len(models)), np.nan, 0.0, fewest, ())
    accuracy = points["accuracy"].to_numpy()
    kept = np.stack([cuts[f] for f in used])
    share = np.where(kept, 0.0, 1 / np.sum(~kept, axis=1, keepdims=True)) / len(used)
    off = np.full((len(models), *kept.shape), np.inf)
    for index in (index for index, model in enumerate(models) if model in most):
        predicted = predict(models[index], fit(models[index], points, kept.astype(float)), points)
        off[index] = np.nan_to_num(np.abs(predicted - accuracy), nan=1.0)
    each = np.sum(np.where(share > 0, share * np.where(share > 0, off, 0.0), 0.0), axis=1)
    each[~np.isfinite(off).all((1, 2))] = np.inf
    scores = np.where(np.isfinite(each).all(1), each.sum(1), np.nan)
    chosen = int(np.nanargmin(scores))
    held = share.sum(0) > 0
    top = [row & (flops > flops[row].max() / 3) for row in kept]
    steady = np.array([accuracy[seen].mean() for seen in top])
    naive = float(np.sum(share * np.abs(steady[:, None] - accuracy)))
    wins = win_shares(each[:, held], points["cluster"].to_numpy()[held], seed)
    noise = np.asarray(points["standard_error"], float) ** 2 if "standard_error" in points else 0.0
    missed = np.sum(np.where(kept, 0.0, share * (off[chosen] ** 2 - noise)))
    further = np.log(flops / np.array([[flops[row].max()] for row in kept]))
    drift = np.sqrt(max(missed, 0.0) / np.sum(share * further**2))
    return BacktestScores(tuple(models), scores, wins, naive, float(drift), chosen, used)


def fit_forecast(
    points: pd.DataFrame, found: BacktestScores, *, questions: float, draws: int = 400, seed: int = 0
) -> AccuracyForecast:
    """Every model that ever won, fitted to all points and to resamples of their trunks, the same in all its steps."""
    shares = found.win_shares.copy()
    shares[found.best_index] = max(shares[found.best_index], shares.max())
    counts = np.round(draws * shares / shares.sum()).astype(int)
    counts[found.best_index] = max(counts[found.best_index], 2)
    order = sorted(np.flatnonzero(counts), key=lambda index: index != found.best_index)
    members, notes = [], []
    for index in order:
        member, note = fit_resamples(found.models[index], points, int(counts[index]), seed)
        members.append(member)
        notes += [note] if note else []
    best = members[0]
    missed = points["accuracy"].to_numpy() - predict(best.model, best.values, points)[0]
    freedom = max(len(points) - best.model.parameter_count, 1)
    misfit = float((MISFIT_SHARE * (points["ceiling"] - points["chance"]).iloc[0]) ** 2)
    errors = np.asarray(points["standard_error"], float) if "standard_error" in points else np.zeros(len(points))
    dispersion = max(float(np.sum(missed**2 / (errors**2 + misfit)) / freedom), 1.0)
    notes += [] if found.cuts else ["no back-test: no cut in compute leaves enough runs that rise; every law counts"]
    notes += [
        f"bound hit: {name}; the runs ask for a value outside the law's range" for name in _parameters_at_bounds(best)
    ]
    limit = float(points["flops"].max())
    return AccuracyForecast(
        tuple(members), dispersion, questions, misfit, found.error_growth, limit, tuple(dict.fromkeys(notes))
    )


def _parameters_at_bounds(own: ResampledModel) -> list[str]:
    return [
        name
        for step, rows in zip(own.model.steps, own.values, strict=True)
        for name, value in zip(step.law.parameters, rows[0], strict=True)
        if any(abs(value - bound) <= 1e-6 * abs(bound) for bound in step.law.bounds[name])
    ]
