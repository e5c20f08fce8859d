from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.downstream import model_choice
from analysis.downstream.accuracy_models import (
    ACCURACY_MODELS,
    BITS_FREE_SIGMOID,
    BITS_SIGMOID,
    COMPUTE,
    PARAMS_AND_TOKENS,
    AccuracyModel,
)
from analysis.downstream.model_choice import AccuracyForecast, BacktestScores
from analysis.downstream.task_table import task_points
from tests.analysis.downstream.test_accuracy_models import TRUE_ACCURACIES
from tests.support.task_tables import CHANCE, make_task_table, rising_accuracy, true_bits_per_byte

NEXT = pd.DataFrame({"params": [2.2e5, 3e5, 5e5], "tokens": [3.7e6, 6e6, 1.1e7]})
NEXT = NEXT.assign(flops=6 * NEXT["params"] * NEXT["tokens"], chance=CHANCE, ceiling=1.0)


def simulate_backtest(
    truth, seed: int | None = 0, models: tuple[AccuracyModel, ...] = ACCURACY_MODELS
) -> tuple[pd.DataFrame, BacktestScores]:
    points, _, _ = task_points(make_task_table({"t": truth}, seed), "t", None)
    return points, model_choice.backtest_models(points, models)


@pytest.mark.parametrize("model", [COMPUTE, PARAMS_AND_TOKENS, BITS_SIGMOID], ids=lambda model: model.name)
def test_the_true_model_scores_best(model: AccuracyModel) -> None:
    _, scores = simulate_backtest(TRUE_ACCURACIES[model], None)
    assert scores.best is model
    assert scores.error < 1e-3
    assert scores.error_growth < 1e-3
    assert scores.persistence > 0.03
    assert scores.cuts[:2] == (2.0, 3.0)


def test_scores_are_errors_of_the_runs_above_the_cuts() -> None:
    points, scores = simulate_backtest(rising_accuracy, 0, (COMPUTE, PARAMS_AND_TOKENS))
    by_hand = []
    for cut in scores.cuts:
        kept = points["flops"] <= points["flops"].max() / cut
        values = model_choice.fit(COMPUTE, points, kept.to_numpy(float)[None])
        off = np.abs(model_choice.predict(COMPUTE, values, points)[0] - points["accuracy"])
        by_hand.append(off[~kept].mean())
    assert scores.scores[0] == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert scores.win_shares.sum() == pytest.approx(1)


def test_a_cut_without_a_rise_below_it_is_not_used() -> None:
    def late(n, d):
        return np.where(n * d > (n * d).max() / 2, 0.6, CHANCE)

    _, scores = simulate_backtest(late)
    assert scores.cuts == ()
    assert np.isnan(scores.scores).all()
    assert scores.best is COMPUTE, "the fewest parameters"
    np.testing.assert_allclose(scores.win_shares, 0.2)


def test_a_model_with_too_few_runs_at_every_cut_is_not_scored() -> None:
    points, _, _ = task_points(make_task_table({"t": TRUE_ACCURACIES[COMPUTE]}, 0), "t", None)
    few = points[points["params"].isin(points["params"].unique()[:2])].reset_index(drop=True)
    scores = model_choice.backtest_models(
        few.iloc[[0, 2, 4, 5, 6, 7, 8, 9, 10, 11]].reset_index(drop=True), (COMPUTE, BITS_FREE_SIGMOID)
    )
    assert scores.best is COMPUTE
    assert scores.win_shares[1] <= 0.5


def forecast_without_spread(**more) -> AccuracyForecast:
    """A forecast by one model whose resamples are all equal."""
    points, scores = simulate_backtest(TRUE_ACCURACIES[COMPUTE], None, (COMPUTE,))
    built = model_choice.fit_forecast(points, scores, questions=400.0, draws=20)
    member = built.members[0]
    draws = tuple(np.repeat(rows, 200, axis=0) for rows in member.values)
    return replace(built, members=(replace(member, draws=draws),), **more)


def test_measurements_are_binomial_around_the_law() -> None:
    low, high, measured_low, measured_high = forecast_without_spread(
        error_growth=0.0, misfit_variance=0.0, dispersion=1.0
    ).intervals(NEXT, 0.9)
    centre = forecast_without_spread().predict(NEXT)
    np.testing.assert_allclose(low, centre, atol=1e-8)
    np.testing.assert_allclose(high, centre, atol=1e-8)
    width = 2 * 1.645 * np.sqrt(centre * (1 - centre) / 400)
    np.testing.assert_allclose(measured_high - measured_low, width, rtol=0.1)
    _, _, measured_low, measured_high = forecast_without_spread(
        error_growth=0.0, misfit_variance=0.0, dispersion=4.0
    ).intervals(NEXT, 0.9)
    np.testing.assert_allclose(measured_high - measured_low, 2 * width, rtol=0.1)
    _, _, measured_low, measured_high = forecast_without_spread(
        error_growth=0.0, misfit_variance=1e-4, dispersion=1.0, questions=np.nan
    ).intervals(NEXT, 0.9)
    np.testing.assert_allclose(measured_high - measured_low, 2 * 1.645 * 0.01, rtol=0.1)


def test_beyond_the_runs_the_interval_is_as_wide_as_the_error_of_the_back_test() -> None:
    low, high, _, _ = forecast_without_spread(error_growth=0.03).intervals(NEXT, 0.9)
    further = np.log(NEXT["flops"] / NEXT["flops"].iloc[0])
    np.testing.assert_allclose(high - low, 2 * 1.645 * 0.03 * further, rtol=0.15, atol=1e-6)
    _, high, _, measured_high = forecast_without_spread(error_growth=1.0).intervals(NEXT, 0.9)
    assert high.max() <= 1
    assert measured_high.max() <= 1


def test_warns_of_parameters_at_their_bounds() -> None:
    def step(n, d):
        return np.where(true_bits_per_byte(n, d) < 1.9, 0.9, CHANCE)

    points, _, _ = task_points(make_task_table({"t": step}, 0), "t", None)
    forecast = model_choice.fit_forecast(
        points, model_choice.backtest_models(points, (BITS_SIGMOID,)), questions=1000.0, draws=10
    )
    assert any(re.search(r"\bk\b", warning) for warning in forecast.warnings)


@pytest.mark.slow
def test_intervals_hold_what_they_say() -> None:
    """14 sweeps of a known sigmoid: the true accuracy, and new measurements, at 1, 2 and 7 times the largest run."""
    truth = rising_accuracy(NEXT["params"].to_numpy(), NEXT["tokens"].to_numpy())
    generator = np.random.default_rng(7)
    law, measured, width = [], [], []
    for seed in range(14):
        points, scores = simulate_backtest(rising_accuracy, seed, (COMPUTE, PARAMS_AND_TOKENS, BITS_SIGMOID))
        model = model_choice.fit_forecast(points, scores, questions=1000.0, draws=60, seed=seed)
        low, high, measured_low, measured_high = model.intervals(NEXT, 0.9, seed=seed)
        law.append((low <= truth) & (truth <= high))
        new = generator.binomial(1000, truth) / 1000
        measured.append((measured_low <= new) & (new <= measured_high))
        width.append(measured_high - measured_low)
    assert 0.8 <= np.mean(law) <= 0.995
    assert 0.83 <= np.mean(measured) <= 0.995
    assert np.median(width) < 0.15, "and they are no wider than that"
