from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.fitting import bootstrap
from analysis.fitting.fit import compute_weights, fit_each_weighting, fit_law, huber, lad, mse, refit
from analysis.fitting.newton import LARGE_TABLE
from analysis.fitting.objective import Objective
from analysis.fitting.one_step import one_step_draws
from analysis.laws import chinchilla
from tests.conftest import PLANTED

ROWS = 600


def noisy_runs(rows: int, seed: int = 0) -> pd.DataFrame:
    """Runs of the planted law at random params and tokens."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"params": 10 ** generator.uniform(7, 10, rows), "tokens": 10 ** generator.uniform(8, 11, rows)}
    )
    loss = chinchilla(PLANTED, table) * np.exp(generator.normal(0, 3e-3, rows))
    return table.assign(loss=loss, flops=6 * table["params"] * table["tokens"])


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return noisy_runs(ROWS)


@pytest.mark.parametrize("objective", [huber(1e-3), mse], ids=lambda o: o.name)
def test_one_step_spreads_as_refits_do(runs: pd.DataFrame, objective: Objective) -> None:
    fit = fit_law(chinchilla, runs, runs["loss"], objective)
    unit, draws = np.repeat(np.arange(ROWS // 2), 2), 200  # two points a cluster
    refits = bootstrap.bootstrap(fit, runs, runs["loss"], unit, draws=draws)
    steps = one_step_draws(
        *(chinchilla, objective, fit.vector(), runs, runs["loss"], np.ones(ROWS), unit, fit.box), draws=draws, seed=1
    )
    np.testing.assert_allclose(np.std(steps, axis=0), np.std(refits, axis=0), rtol=0.25)
    errors = np.abs(steps.mean(0) - refits.mean(0)) / np.std(refits, axis=0)
    assert errors.max() < 0.4


def test_a_fixed_parameter_stays_and_a_sample_is_refined(runs: pd.DataFrame) -> None:
    fit = fit_law(chinchilla, runs, runs["loss"], mse, fixed={"E": PLANTED["E"]})
    near = fit.vector() * [1, 1.02, 0.98, 1.002, 0.998]
    options = {"draws": 200, "seed": 0}
    arguments = (runs, runs["loss"], np.ones(ROWS), np.arange(ROWS), fit.box)
    refined = one_step_draws(chinchilla, mse, near, *arguments, **options, refine=True)
    assert refined[:, 0] == pytest.approx(PLANTED["E"])
    exact = one_step_draws(chinchilla, mse, fit.vector(), *arguments, **options)
    np.testing.assert_allclose(refined, exact, rtol=1e-6)


def test_least_absolute_deviations_have_a_spread(runs: pd.DataFrame) -> None:
    """Its standard error is the one of squares times the square root of pi / 2, for normal noise."""
    fit = fit_law(chinchilla, runs, runs["loss"], lad)
    arguments = (runs, runs["loss"], np.ones(ROWS), np.arange(ROWS), fit.box)
    draws = one_step_draws(chinchilla, lad, fit.vector(), *arguments, draws=200, seed=0)
    squares = one_step_draws(chinchilla, mse, fit.vector(), *arguments, draws=200, seed=0, refine=True)
    ratio = np.std(draws, axis=0) / np.std(squares, axis=0)
    assert ((ratio > 0.8) & (ratio < 2.2)).all(), ratio


def test_a_large_table_is_fitted_on_all_its_points() -> None:
    """The optimum is that of all points, not of the sample that is searched."""
    table = noisy_runs(LARGE_TABLE + 1)
    fit = fit_law(chinchilla, table, table["loss"], mse)
    assert refit(fit, table, table["loss"])[0] == pytest.approx(fit.vector(), rel=1e-6)
    weights = np.stack([compute_weights(table["flops"], 0.0), compute_weights(table["flops"], 1.0)])
    values, _ = fit_each_weighting(chinchilla, table, table["loss"], mse, weights)
    assert values[0] == pytest.approx(fit.vector(), rel=1e-5)
    draws = bootstrap.bootstrap(fit, table, table["loss"], np.arange(len(table)), draws=16)
    assert draws.shape == (16, 5)
    assert np.abs(draws.mean(0) / fit.vector() - 1).max() < 0.05
