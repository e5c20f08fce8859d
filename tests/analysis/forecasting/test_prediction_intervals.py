from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.fitting import bootstrap
from analysis.fitting.fit import Fit, fit_law, huber
from analysis.forecasting.law_choice import Candidate, Choice, choose
from analysis.forecasting.prediction_intervals import (
    MIN_SCALE,
    SHRINK_DISTANCE,
    LawDraws,
    PredictiveDistribution,
    build_predictive,
    predictive_from_facts,
    predictive_without_rivals,
)
from analysis.laws import chinchilla
from analysis.laws.surface import interaction
from analysis.tables.results import select_points
from tests.conftest import PLANTED, simulated

PLAIN = Candidate(chinchilla, huber(), 0.0)
WEIGHTED = Candidate(chinchilla, huber(), 1.0)
CROSSED = Candidate(interaction, huber(), 0.0)
LIMIT = 1e20
TARGET = {"params": np.array([1.7e9]), "tokens": np.array([5.2e10])}


def simple(
    drift: float, noise: tuple[float, ...] = (0.0,), chances: tuple[float, ...] = (1.0,)
) -> PredictiveDistribution:
    """One law whose draws move E alone."""
    draws = np.tile([PLANTED[name] for name in chinchilla.parameters], (101, 1))
    draws[:, 0] = np.linspace(1.69, 1.71, 101)
    return PredictiveDistribution((LawDraws(chinchilla, draws),), np.array(noise), np.array(chances), drift, LIMIT)


def logs(band: PredictiveDistribution, flops: float, level: float = 0.9) -> np.ndarray:
    """Log of both ends over the forecast at TARGET."""
    predicted = chinchilla(PLANTED, TARGET)
    return np.log(np.concatenate(band.interval(predicted, TARGET, [flops], level)) / predicted)


def own(band: PredictiveDistribution) -> np.ndarray:
    """Log predictions of the draws around their median."""
    spread = band.log_predictions(TARGET)[:, 0]
    return spread - np.median(spread)


def test_draws_are_not_scaled_up_to_the_largest_run() -> None:
    band = simple(drift=1.0)
    expected = np.quantile(own(band), [0.05, 0.95])
    for flops in (LIMIT, LIMIT / 30):
        assert logs(band, flops) == pytest.approx(expected, rel=2e-3)
    assert logs(simple(np.nan), 100 * LIMIT) == pytest.approx(expected, rel=2e-3), "nothing is known of a drift"


@pytest.mark.parametrize("drift", [1e-2, 3e-2])
def test_beyond_the_largest_run_draws_spread_by_the_error_growth(drift: float) -> None:
    band, wide = simple(drift), simple(2 * drift)
    centred = own(band)
    for flops in (10 * LIMIT, 100 * LIMIT):
        expected = np.quantile(centred, [0.05, 0.95]) / np.std(centred) * drift * np.log(flops / LIMIT)
        assert logs(band, flops) == pytest.approx(expected, rel=2e-3)
        assert logs(wide, flops) == pytest.approx(2 * expected, rel=2e-3)


def test_small_errors_narrow_the_draws_gradually_and_at_most_by_half() -> None:
    band, whole = simple(0.0), logs(simple(0.0), LIMIT)
    assert logs(band, LIMIT * np.exp(SHRINK_DISTANCE / 2)) == pytest.approx(whole * (1 + MIN_SCALE) / 2, rel=1e-8)
    for flops in (LIMIT * np.exp(SHRINK_DISTANCE), 1e3 * LIMIT):
        assert logs(band, flops) == pytest.approx(whole * MIN_SCALE, rel=1e-8)


def test_the_noise_of_a_run_is_drawn_by_its_probabilities() -> None:
    still = LawDraws(chinchilla, np.tile([PLANTED[name] for name in chinchilla.parameters], (64, 1)))
    band = replace(simple(np.nan, (-0.02, 0.01, 5.0), (0.5, 0.5, 0.0)), members=(still,))
    assert logs(band, LIMIT) == pytest.approx([-0.02, 0.01], rel=1e-6)
    rare = replace(band, probabilities=np.array([0.02, 0.98, 0.0]))
    assert logs(rare, LIMIT) == pytest.approx([0.0, 0.01], abs=1e-8), "and the forecast stays inside its band"
    assert logs(rare, LIMIT, level=0.98) == pytest.approx([-0.02, 0.01], rel=1e-6)


def test_an_interval_depends_on_its_seed_alone() -> None:
    band = simple(1e-2, (-0.01, 0.0, 0.01), (0.3, 0.4, 0.3))
    predicted = chinchilla(PLANTED, TARGET)
    one, same, other = (band.interval(predicted, TARGET, 1e21, 0.9, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert one[0] == pytest.approx(other[0], rel=2e-3)


def test_the_interval_of_a_target_is_independent_of_other_targets() -> None:
    band = simple(1e-2)
    band.members[0].draws[:, 3] = np.linspace(0.34, 0.36, 101)
    columns = {"params": np.array([1e8, 1e9, 1e10]), "tokens": np.array([1e9, 1e11, 1e12])}
    flops = np.array([1e18, 6e20, 6e22])
    predicted = chinchilla(PLANTED, columns)
    together = np.array(band.interval(predicted, columns, flops, 0.9))
    alike = [
        np.array(band.interval(predicted[[i]], {n: c[[i]] for n, c in columns.items()}, flops[[i]], 0.9))
        for i in range(3)
    ]
    np.testing.assert_allclose(together, np.concatenate(alike, axis=1), rtol=1e-8)


def test_draws_without_a_prediction_are_left_out() -> None:
    band = simple(1e-2)
    spoilt = np.concatenate([band.members[0].draws, np.full((5, 5), np.nan)])
    again = replace(band, members=(LawDraws(chinchilla, spoilt),))
    assert logs(again, 10 * LIMIT) == pytest.approx(logs(band, 10 * LIMIT), rel=2e-3)


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    return select_points(simulated(3e-3)).table


@pytest.fixture(scope="module")
def fit(points: pd.DataFrame) -> Fit:
    return fit_law(chinchilla, points, points["loss"])


def shared(wins: tuple[float, ...], drift: float = 1e-3) -> Choice:
    """A choice among three candidates with given wins."""
    return Choice((PLAIN, WEIGHTED, CROSSED), np.array([2.0, 1.0, 1.5]), np.array(wins), drift, 1)


def test_draws_are_divided_by_win_shares_and_a_named_law_gets_the_largest(points: pd.DataFrame, fit: Fit) -> None:
    band = build_predictive(fit, PLAIN, points, shared((0.0, 0.75, 0.25)), draws=70, seed=0)
    assert [(member.law, len(member.draws)) for member in band.members] == [(chinchilla, 60), (interaction, 10)]
    assert (band.max_flops, band.error_growth) == (points["flops"].max(), 1e-3)
    single = build_predictive(fit, PLAIN, points, shared((1.0, 0.0, 0.0)), draws=40, seed=0)
    assert [(member.law, len(member.draws)) for member in single.members] == [(chinchilla, 40)]
    unit, _ = bootstrap.choose_clusters(points, 5)
    drawn = bootstrap.bootstrap(fit, points, points["loss"], unit, draws=40, seed=0)
    np.testing.assert_allclose(single.members[0].draws, drawn, rtol=1e-6)


def test_each_candidates_draws_lie_around_its_own_fit(points: pd.DataFrame, fit: Fit) -> None:
    flops = points["flops"].to_numpy(float)
    weights = WEIGHTED.weights(flops, np.ones(len(points), bool))
    heavy = fit_law(chinchilla, points, points["loss"], weights=weights)
    band = build_predictive(fit, PLAIN, points, shared((0.5, 0.5, 0.0)), draws=64, seed=0)
    draws = band.members[0].draws
    away = np.log(heavy.values["alpha"] / fit.values["alpha"])
    middle = np.median(np.log(draws[:, 3]).reshape(2, 32), axis=1)
    assert abs(away) > 0.01
    assert middle[1] - middle[0] == pytest.approx(away, abs=3 * np.std(np.log(draws[:32, 3])) / np.sqrt(32))


def test_noise_is_the_residuals_widened_for_the_degrees_of_freedom(points: pd.DataFrame, fit: Fit) -> None:
    residuals = np.log(points["loss"].to_numpy() / fit.predict(points))
    weights = np.linspace(1, 2, len(points))
    band = predictive_without_rivals(fit, points, np.tile(fit.vector(), (4, 1)), weights)
    assert band.noise == pytest.approx(residuals * np.sqrt(30 / 25))
    assert band.probabilities == pytest.approx(weights / weights.sum())
    assert np.isnan(band.error_growth)
    assert band.max_flops == points["flops"].max()
    held = fit_law(chinchilla, points, points["loss"], fixed={"alpha": fit.values["alpha"], "E": fit.values["E"]})
    narrower = predictive_without_rivals(held, points, np.tile(fit.vector(), (4, 1)), weights)
    assert narrower.noise == pytest.approx(held.residuals(points, points["loss"]) * np.sqrt(30 / 27))


def test_a_table_without_flops_has_no_largest_run(points: pd.DataFrame, fit: Fit) -> None:
    draws = np.tile(fit.vector(), (4, 1))
    assert predictive_without_rivals(fit, points.drop(columns="flops"), draws, np.ones(30)).max_flops == np.inf


@pytest.mark.parametrize("drift", [2e-3, np.nan])
def test_a_distribution_read_back_gives_the_same_interval(points: pd.DataFrame, fit: Fit, drift: float) -> None:
    band = build_predictive(fit, PLAIN, points, shared((0.5, 0.25, 0.25), drift), draws=32, seed=0)
    again = predictive_from_facts(json.loads(json.dumps(band.facts(12), allow_nan=False)))
    assert [member.law for member in again.members] == [chinchilla, interaction]
    assert logs(again, 1e21) == pytest.approx(logs(band, 1e21), rel=1e-7)
    assert again.probabilities.sum() == pytest.approx(1.0, abs=1e-8)
    assert np.isnan(again.error_growth) == np.isnan(drift)


def test_errors_that_grow_with_compute_widen_the_interval(points: pd.DataFrame) -> None:
    """Losses above a tenth of the largest compute leave the law by 2 % per e-fold."""
    flops = points["flops"].to_numpy(float)
    excess = np.maximum(np.log(flops / flops.max() * 10), 0)
    widths, drifts = [], []
    for table in (points, points.assign(loss=points["loss"] * np.exp(0.02 * excess))):
        choice = choose(table, (PLAIN,))
        fitted = fit_law(chinchilla, table, table["loss"])
        band = build_predictive(fitted, PLAIN, table, choice, draws=32, seed=0)
        low, high = band.interval(fitted.predict(TARGET), TARGET, 10 * flops.max(), 0.9)
        widths.append(float(np.log(high / low)[0]))
        drifts.append(choice.error_growth)
    assert drifts[1] > 3 * drifts[0]
    assert widths[1] > 3 * widths[0]


TABLES, NOISE, ALARM = 20, 3e-3, 0.01


@pytest.mark.slow
def test_intervals_cover_new_runs_beyond_the_points_at_their_level() -> None:
    """One new run a simulated table, at 3x its largest compute, and bands of 90 %.

    Tables are independent, so at a rate of 90 % or above the count falls below the 1 % quantile of a binomial(20, 0.9),
    which is 15, with a chance of 1 % at most.
    """
    flops, beyond = 0.0, {"params": np.array([1e9 * 3**0.5]), "tokens": np.array([3e10 * 3**0.5])}
    held = 0
    for seed in range(TABLES):
        table = select_points(simulated(NOISE, seed)).table
        flops = 3 * table["flops"].max()
        choice = choose(table, (PLAIN, CROSSED))
        fitted = fit_law(choice.best.law, table, table["loss"])
        band = build_predictive(fitted, choice.best, table, choice, draws=32, seed=seed)
        low, high = band.interval(fitted.predict(beyond), beyond, flops, 0.9, seed=seed)
        run = chinchilla(PLANTED, beyond) * np.exp(np.random.default_rng(1000 + seed).normal(0, NOISE))
        held += int((low <= run)[0] and (run <= high)[0])
    assert held >= stats.binom.ppf(ALARM, TABLES, 0.9)
