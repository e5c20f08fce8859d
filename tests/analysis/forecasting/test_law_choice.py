from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis.fitting.fit import compute_weights, fit_law, huber, mse_log
from analysis.forecasting import law_choice
from analysis.forecasting.law_choice import CANDIDATES, HOLDOUT_FACTORS, Candidate, Choice, choose, predict_holdouts
from analysis.laws import chinchilla
from analysis.laws.surface import interaction
from analysis.tables.results import select_points
from tests.conftest import PLANTED, simulated

PLAIN = Candidate(chinchilla, huber(), 0.0)
WEIGHTED = Candidate(chinchilla, huber(), 1.0)
CROSSED = Candidate(interaction, huber(), 0.0)
FEW = (PLAIN, WEIGHTED, CROSSED)


def crossed(noise: float = 1e-3, gamma: float = 0.15) -> pd.DataFrame:
    """Points of a surface whose tokens term depends on params, which no Chinchilla law is."""
    points = select_points(simulated()).table
    planted = {**PLANTED, "gamma": gamma, "B": PLANTED["B"] / 1e8**gamma}
    draws = np.random.default_rng(1).normal(0, noise, len(points))
    return points.assign(loss=interaction(planted, points) * np.exp(draws))


def cut(points: pd.DataFrame, factor: float) -> np.ndarray:
    return (points["flops"] <= points["flops"].max() / factor).to_numpy()


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    """Points whose three runs above Cmax / 3 favour different candidates."""
    return select_points(simulated(3e-3, seed=2)).table


@pytest.fixture(scope="module")
def choice(points: pd.DataFrame) -> Choice:
    return choose(points, FEW)


def mean_error_by_hand(points: pd.DataFrame, candidate: Candidate, factor: float) -> np.ndarray:
    """Log errors above the cut of a law fitted below it."""
    kept = cut(points, factor)
    low, high = points[kept], points[~kept]
    weights = compute_weights(low["flops"], candidate.weight_power)
    fit = fit_law(candidate.law, low, low["loss"], candidate.objective, weights=weights)
    return np.log(fit.predict(high) / high["loss"].to_numpy())


@pytest.mark.parametrize("index", range(len(FEW)))
def test_a_score_is_the_mean_error_of_a_fit_to_the_rest(points: pd.DataFrame, choice: Choice, index: int) -> None:
    expected = np.abs(mean_error_by_hand(points, FEW[index], 3.0)).mean()
    assert choice.scores[index] == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-4


def test_the_best_score_is_chosen(choice: Choice) -> None:
    assert choice.is_scored
    assert choice.best == FEW[int(np.argmin(choice.scores))]
    assert len(set(choice.scores)) == len(FEW)


def test_error_growth_is_rms_error_over_rms_distance(points: pd.DataFrame) -> None:
    """Each of one candidate's hold-outs counts once, however many runs it has."""
    errors, distances = [], []
    for factor in HOLDOUT_FACTORS:
        kept = cut(points, factor)
        errors.append(np.mean(mean_error_by_hand(points, PLAIN, factor) ** 2))
        flops = points["flops"].to_numpy()
        distances.append(np.mean(np.log(flops[~kept] / flops[kept].max()) ** 2))
    expected = np.sqrt(np.sum(errors) / np.sum(distances))
    assert choose(points, (PLAIN,)).error_growth == pytest.approx(expected, rel=1e-5)


def test_error_growth_is_that_of_candidates_near_the_best() -> None:
    table = crossed()
    alone, both = choose(table, (CROSSED,)), choose(table, (PLAIN, CROSSED))
    assert both.scores[0] > law_choice.NEAR_BEST * both.scores[1]
    assert both.error_growth == pytest.approx(alone.error_growth, rel=1e-6)


def test_a_surface_with_an_interaction_gets_the_law_with_one() -> None:
    found = choose(crossed())
    assert found.best.law is interaction
    assert sum(w for c, w in zip(found.candidates, found.win_shares, strict=True) if c.law is interaction) > 0.95
    scores = dict(zip(found.candidates, found.scores, strict=True))
    assert min(s for c, s in scores.items() if c.law is chinchilla) > 3 * min(scores.values())


def test_without_noise_every_candidate_is_right() -> None:
    table = select_points(simulated()).table
    found = choose(table)
    assert (found.scores < 1e-7).all()
    assert found.error_growth < 1e-7
    assert found.candidates == CANDIDATES
    assert found.win_shares.sum() == pytest.approx(1.0)


def test_held_out_runs_change_no_prediction_below_them(points: pd.DataFrame) -> None:
    masks = {factor: cut(points, factor) for factor in (2.0, 3.0)}
    assert masks[2.0].sum() > masks[3.0].sum()
    wild = points.assign(loss=points["loss"].where(masks[3.0], points["loss"] * 7))
    first, second = (predict_holdouts(table, FEW, masks) for table in (points, wild))
    assert first[3.0].shape == (len(FEW), len(points))
    np.testing.assert_array_equal(first[3.0], second[3.0])
    assert np.abs(first[2.0] / second[2.0] - 1).max() > 1e-3, "a fit that sees some of them moves"


def test_outliers_among_held_out_runs_are_errors_of_their_forecasts(points: pd.DataFrame) -> None:
    kept = cut(points, 3.0)
    doubled = points.assign(loss=points["loss"].where(kept, points["loss"] * 2))
    expected = np.abs(mean_error_by_hand(points, PLAIN, 3.0) - np.log(2)).mean()
    assert choose(doubled, (PLAIN,)).scores == pytest.approx(expected, rel=1e-6)


def test_win_shares_are_over_resamples_of_runs_or_of_whole_trunks(points: pd.DataFrame, choice: Choice) -> None:
    assert choice.win_shares.sum() == pytest.approx(1.0)
    assert (choice.win_shares > 0).sum() > 1
    assert np.array_equal(choice.win_shares, choose(points, FEW).win_shares)
    trunk = points.assign(cluster=np.where(cut(points, 3.0), points["cluster"], "trunk"))
    together = choose(trunk, FEW)
    assert together.win_shares.tolist() == [float(i == choice.best_index) for i in range(3)], (
        "one trunk is always drawn"
    )


def test_win_shares_are_binomial() -> None:
    """Two held-out runs, of which each candidate is right about one: 3/4 of resamples go to the one that errs less."""
    each = np.array([[0.0, 1.0], [2.0, 0.0]])
    wins = law_choice.win_shares(each, np.array(["a", "b"]), seed=0)
    assert wins.sum() == pytest.approx(1.0)
    assert wins[0] == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / law_choice.RESAMPLES))
    whole = law_choice.win_shares(each, np.array(["a", "a"]), seed=0)
    assert whole.tolist() == [1.0, 0.0]
    assert law_choice.win_shares(np.array([[0.0, np.inf], [2.0, 2.0]]), np.array(["a", "b"]), seed=0)[
        0
    ] == pytest.approx(0.25, abs=4 * np.sqrt(0.75 * 0.25 / law_choice.RESAMPLES)), (
        "a candidate without a prediction loses where it has none"
    )


def test_weights_are_powers_of_compute_with_mean_one_over_fitted_points() -> None:
    flops, kept = np.array([1e18, 2e18, 4e18, 8e18]), np.array([True, True, True, False])
    weights = Candidate(chinchilla, huber(), 0.5).weights(flops, kept)
    assert weights[3] == 0
    assert weights[:3].mean() == pytest.approx(1.0)
    assert weights[2] / weights[0] == pytest.approx(2.0)
    assert Candidate(chinchilla, huber(), 0.0).weights(flops, kept).tolist() == [1.0, 1.0, 1.0, 0.0]


def test_names_say_law_objective_and_weighting() -> None:
    assert [c.name for c in FEW] == ["chinchilla huber", "chinchilla huber C^1", "interaction huber"]
    assert Candidate(chinchilla, mse_log, 0.25).name == "chinchilla mse_log C^0.25"
    assert len({c.name for c in CANDIDATES}) == len(CANDIDATES)


def test_the_first_candidate_is_chosen_where_no_run_can_be_held_out() -> None:
    few = select_points(simulated(3e-3)).table.iloc[[0, 6, 12, 18, 24, 27, 29]].reset_index(drop=True)
    found = choose(few)
    assert not found.is_scored
    assert found.best == CANDIDATES[0]
    assert np.isnan(found.error_growth)
    assert found.win_shares.sum() == pytest.approx(1.0)
    assert {c.weight_power for c, w in zip(found.candidates, found.win_shares, strict=True) if w > 0} == {0.0}
    facts = json.loads(json.dumps(found.facts(), allow_nan=False))
    assert facts["drift"] is None
    assert all(c["score"] is None for c in facts["candidates"])
    assert choose(few.iloc[:6]).candidates == CANDIDATES[:5], "six points leave an interaction no freedom"


def test_another_factor_is_scored_where_that_of_three_leaves_too_few() -> None:
    """Five cells lie below Cmax / 3, too few for five parameters; nine lie below Cmax / 2."""
    points = select_points(simulated(3e-3)).table
    top = points["flops"].max()
    low = points[cut(points, 3.0)].iloc[-5:]
    middle = points[cut(points, 3.0)].iloc[:4].assign(flops=top / 2.5)
    table = pd.concat([low, middle, points[~cut(points, 2.0)], points.tail(1)]).sort_values("flops", kind="stable")
    table = table.drop_duplicates("run_id").reset_index(drop=True)
    assert (cut(table, 3.0).sum(), cut(table, 2.0).sum()) == (5, 9)
    found = choose(table, (PLAIN,))
    assert found.is_scored
    assert found.scores[0] == pytest.approx(np.abs(mean_error_by_hand(table, PLAIN, 2.0)).mean(), rel=1e-5)


def test_facts_are_plain_json(choice: Choice) -> None:
    facts = json.loads(json.dumps(choice.facts(), allow_nan=False))
    assert facts["chosen"] == choice.best.name
    assert facts["drift"] == choice.error_growth > 0
    assert [c["score"] for c in facts["candidates"]] == choice.scores.tolist()
    assert [c["wins"] for c in facts["candidates"]] == choice.win_shares.tolist()
