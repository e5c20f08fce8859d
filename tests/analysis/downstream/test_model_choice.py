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
from tests.analysis.downstream.test_accuracy_models import PLANTED
from tests.support.task_tables import CHANCE, make_task_table, rising_accuracy, true_bits_per_byte

NEXT = pd.DataFrame({"params": [2.2e5, 3e5, 5e5], "tokens": [3.7e6, 6e6, 1.1e7]})
NEXT = NEXT.assign(flops=6 * NEXT["params"] * NEXT["tokens"], chance=CHANCE, ceiling=1.0)


def backtested(
    truth, seed: int | None = 0, models: tuple[AccuracyModel, ...] = ACCURACY_MODELS
) -> tuple[pd.DataFrame, BacktestScores]:
    points, _, _ = task_points(make_task_table({"t": truth}, seed), "t", None)
    return points, model_choice.backtest_models(points, models)


@pytest.mark.parametrize("model", [COMPUTE, PARAMS_AND_TOKENS, BITS_SIGMOID], ids=lambda model: model.name)
def test_the_planted_model_wins(model: AccuracyModel) -> None:
    _, found = backtested(PLANTED[model], None)
    assert found.best is model
    assert found.error < 1e-3
    assert found.error_growth < 1e-3
    assert found.persistence > 0.03
    assert found.cuts[:2] == (2.0, 3.0)


def test_scores_are_errors_of_the_runs_above_the_cuts() -> None:
    points, found = backtested(rising_accuracy, 0, (COMPUTE, PARAMS_AND_TOKENS))
    by_hand = []
    for cut in found.cuts:
        kept = points["flops"] <= points["flops"].max() / cut
        values = model_choice.fit(COMPUTE, points, kept.to_numpy(float)[None])
        off = np.abs(model_choice.predict(COMPUTE, values, points)[0] - points["accuracy"])
        by_hand.append(off[~kept].mean())
    assert found.scores[0] == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert found.win_shares.sum() == pytest.approx(1)


def test_a_cut_below_which_nothing_rises_is_not_used() -> None:
    def late(n, d):
        return np.where(n * d > (n * d).max() / 2, 0.6, CHANCE)

    _, found = backtested(late)
    assert found.cuts == ()
    assert np.isnan(found.scores).all()
    assert found.best is COMPUTE, "the fewest parameters"
    np.testing.assert_allclose(found.win_shares, 0.2)


def test_a_road_that_no_cut_leaves_enough_runs_for_is_not_scored() -> None:
    points, _, _ = task_points(make_task_table({"t": PLANTED[COMPUTE]}, 0), "t", None)
    few = points[points["params"].isin(points["params"].unique()[:2])].reset_index(drop=True)
    found = model_choice.backtest_models(
        few.iloc[[0, 2, 4, 5, 6, 7, 8, 9, 10, 11]].reset_index(drop=True), (COMPUTE, BITS_FREE_SIGMOID)
    )
    assert found.best is COMPUTE
    assert found.win_shares[1] <= 0.5


def forecast_without_spread(**more) -> AccuracyForecast:
    """A forecast by one model whose draws are all alike."""
    points, found = backtested(PLANTED[COMPUTE], None, (COMPUTE,))
    built = model_choice.fit_forecast(points, found, questions=400.0, draws=20)
    member = built.members[0]
    draws = tuple(np.repeat(rows, 200, axis=0) for rows in member.values)
    return replace(built, members=(replace(member, draws=draws),), **more)


def test_a_measurement_is_binomial_around_the_law() -> None:
    low, high, least, most = forecast_without_spread(error_growth=0.0, misfit_variance=0.0, dispersion=1.0).intervals(
        NEXT, 0.9
    )
    centre = forecast_without_spread().predict(NEXT)
    np.testing.assert_allclose(low, centre, atol=1e-8)
    np.testing.assert_allclose(high, centre, atol=1e-8)
    width = 2 * 1.645 * np.sqrt(centre * (1 - centre) / 400)
    np.testing.assert_allclose(most - least, width, rtol=0.1)
    _, _, least, most = forecast_without_spread(error_growth=0.0, misfit_variance=0.0, dispersion=4.0).intervals(
        NEXT, 0.9
    )
    np.testing.assert_allclose(most - least, 2 * width, rtol=0.1)
    _, _, least, most = forecast_without_spread(
        error_growth=0.0, misfit_variance=1e-4, dispersion=1.0, questions=np.nan
    ).intervals(NEXT, 0.9)
    np.testing.assert_allclose(most - least, 2 * 1.645 * 0.01, rtol=0.1)


def test_beyond_the_runs_the_law_is_as_unsure_as_its_back_test_was_wrong() -> None:
    low, high, _, _ = forecast_without_spread(error_growth=0.03).intervals(NEXT, 0.9)
    further = np.log(NEXT["flops"] / NEXT["flops"].iloc[0])
    np.testing.assert_allclose(high - low, 2 * 1.645 * 0.03 * further, rtol=0.15, atol=1e-6)
    _, high, _, most = forecast_without_spread(error_growth=1.0).intervals(NEXT, 0.9)
    assert high.max() <= 1
    assert most.max() <= 1


def test_bounds_that_are_hit_are_told() -> None:
    def step(n, d):
        return np.where(true_bits_per_byte(n, d) < 1.9, 0.9, CHANCE)

    points, _, _ = task_points(make_task_table({"t": step}, 0), "t", None)
    found = model_choice.fit_forecast(
        points, model_choice.backtest_models(points, (BITS_SIGMOID,)), questions=1000.0, draws=10
    )
    assert any(re.search(r"\bk\b", note) for note in found.warnings)


@pytest.mark.slow
def test_intervals_hold_what_they_say() -> None:
    """14 sweeps of a known sigmoid: the true accuracy, and new measurements, at 1, 2 and 7 times the largest run."""
    truth = rising_accuracy(NEXT["params"].to_numpy(), NEXT["tokens"].to_numpy())
    generator = np.random.default_rng(7)
    law, measured, width = [], [], []
    for seed in range(14):
        points, found = backtested(rising_accuracy, seed, (COMPUTE, PARAMS_AND_TOKENS, BITS_SIGMOID))
        model = model_choice.fit_forecast(points, found, questions=1000.0, draws=60, seed=seed)
        low, high, least, most = model.intervals(NEXT, 0.9, seed=seed)
        law.append((low <= truth) & (truth <= high))
        new = generator.binomial(1000, truth) / 1000
        measured.append((least <= new) & (new <= most))
        width.append(most - least)
    assert 0.8 <= np.mean(law) <= 0.995
    assert 0.83 <= np.mean(measured) <= 0.995
    assert np.median(width) < 0.15, "and they are no wider than that"
