"""The solver: optima are independent of the other problems, and fixed parameters stay fixed."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.fitting import newton
from analysis.fitting.fit import Fit, fit_each_weighting, fit_law, mse_log, refit, refit_with_objectives
from analysis.fitting.newton import (
    PROBLEMS_PER_CALL,
    SLOTS,
    Box,
    Problems,
    is_log_searched,
    log_prediction_jacobian,
    padded_length,
    solve,
    theta_from_values,
    values_from_theta,
)
from analysis.laws import chinchilla
from tests.conftest import PLANTED, simulated

TABLE = simulated()
X = {"params": TABLE["params_matmul"].to_numpy(), "tokens": TABLE["tokens"].to_numpy()}
TRUTH = np.array([PLANTED[name] for name in chinchilla.parameters])
ZONES = mse_log.zone_widths((1.0,))
# Two searches of one optimum differ by this much: a search ends where it expects to lower its objective by less than
# FINAL_TOLERANCE of it, which leaves a parameter about sqrt(25 FINAL_TOLERANCE) = 2e-5 of its standard error away, and
# sums in another order are rounded differently.
SAME = 1e-6


def responses(count: int, seed: int = 0) -> np.ndarray:
    """[count, points]: the planted law with noise of 0.5 %."""
    noise = np.random.default_rng(seed).normal(0, 5e-3, (count, len(TABLE)))
    return chinchilla(PLANTED, X) * np.exp(noise)


def solve_problems(losses: np.ndarray, box: Box | None = None, weights: np.ndarray | None = None) -> np.ndarray:
    """Optima of each row of losses, from the planted values: theta, [problems, parameters]."""
    starts = np.tile(theta_from_values(chinchilla, TRUTH), (len(losses), 1))
    weights = np.ones((1, losses.shape[1])) if weights is None else weights
    return solve(chinchilla, True, X, Problems(starts, weights, losses, box or all_problems()), ZONES)[0]


def all_problems() -> Box:
    low, high = np.array([chinchilla.bounds[name] for name in chinchilla.parameters]).T
    return Box(theta_from_values(chinchilla, low)[None], theta_from_values(chinchilla, high)[None])


@pytest.fixture(scope="module")
def planted() -> Fit:
    return fit_law(chinchilla, X, responses(1)[0], mse_log)


@pytest.mark.parametrize("count", [1, 3, SLOTS + 1, PROBLEMS_PER_CALL + 1])
def test_an_answer_is_independent_of_the_other_problems(count: int) -> None:
    losses = responses(PROBLEMS_PER_CALL + 1)
    together = solve_problems(losses[:count])
    assert together.shape == (count, 5)
    for index in {0, count // 2, count - 1}:
        np.testing.assert_allclose(together[index], solve_problems(losses[index : index + 1])[0], rtol=SAME)


def test_the_order_of_problems_is_the_order_of_answers() -> None:
    losses = responses(100)
    order = np.random.default_rng(1).permutation(100)
    np.testing.assert_allclose(solve_problems(losses[order]), solve_problems(losses)[order], rtol=SAME)


def test_an_answer_is_a_minimum() -> None:
    """The gradient, from log_prediction_jacobian and not from the solver, is zero."""
    losses = responses(3)
    for theta, y in zip(solve_problems(losses), losses, strict=True):
        slopes = log_prediction_jacobian(chinchilla, theta, X)
        residual = np.log(
            chinchilla(dict(zip(chinchilla.parameters, values_from_theta(chinchilla, theta), strict=True)), X) / y
        )
        cosines = slopes.T @ residual / np.linalg.norm(slopes, axis=0) / np.linalg.norm(residual)
        assert np.abs(cosines).max() < 1e-6


def test_the_jacobian_is_that_of_log_predictions() -> None:
    theta, step = theta_from_values(chinchilla, TRUTH), 1e-6

    def log_predicted(moved: np.ndarray) -> np.ndarray:
        return np.log(
            chinchilla(dict(zip(chinchilla.parameters, values_from_theta(chinchilla, moved), strict=True)), X)
        )

    slopes = log_prediction_jacobian(chinchilla, theta, X)
    assert slopes.shape == (len(TABLE), 5)
    for index, move in enumerate(step * np.eye(5)):
        central = (log_predicted(theta + move) - log_predicted(theta - move)) / (2 * step)
        np.testing.assert_allclose(slopes[:, index], central, rtol=1e-5, atol=1e-8)


def test_points_of_weight_zero_do_not_count() -> None:
    """Neither do the points that pad a table."""
    losses = responses(2)
    losses[1] = np.where(np.arange(len(TABLE)) < 5, 40.0, losses[0])
    weights = np.ones_like(losses)
    weights[:, :5] = 0.0
    first, second = solve_problems(losses, weights=weights)
    np.testing.assert_allclose(first, second, rtol=SAME)
    assert np.abs(first - solve_problems(losses[:1])[0]).max() > 1e-4


def test_a_table_repeated_many_times_has_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight of a point is the number of its copies, however many points and problems a call has."""
    y = responses(1)[0]
    start, times = theta_from_values(chinchilla, TRUTH)[None], 5
    copies = {name: np.tile(column, times) for name, column in X.items()}
    monkeypatch.setattr(newton, "LARGE_TABLE", 100)
    monkeypatch.setattr(newton, "MAX_SLOT_POINTS", padded_length(times * len(y)) * 2)
    problems = Problems(start, np.ones((1, times * len(y))), np.tile(y, times)[None], all_problems())
    theta, value = solve(chinchilla, True, copies, problems, ZONES)
    np.testing.assert_allclose(theta[0], solve_problems(y[None])[0], rtol=SAME)
    residual = np.log(
        y / chinchilla(dict(zip(chinchilla.parameters, values_from_theta(chinchilla, theta[0]), strict=True)), X)
    )
    assert value[0] == pytest.approx(times * np.sum(residual**2) / 2, rel=1e-8)


def test_points_are_padded_to_few_sizes() -> None:
    assert [padded_length(n) for n in (1, 64, 65, 128, 129, 1000)] == [64, 64, 128, 128, 256, 1024]


def test_parameters_are_searched_in_logarithms_where_bounded_above_zero() -> None:
    assert is_log_searched(chinchilla).all()
    np.testing.assert_allclose(values_from_theta(chinchilla, theta_from_values(chinchilla, TRUTH)), TRUTH, rtol=1e-8)


def test_a_fixed_parameter_stays_exact_and_the_others_are_refitted(planted: Fit) -> None:
    y = responses(1)[0]
    held = fit_law(chinchilla, X, y, mse_log, fixed={"alpha": 0.3})
    assert held.values["alpha"] == pytest.approx(0.3, rel=1e-8)
    assert held.fixed == ("alpha",)
    assert held.objective_value > planted.objective_value
    again = fit_law(chinchilla, X, y, mse_log, fixed={"alpha": planted.values["alpha"]})
    np.testing.assert_allclose(again.vector(), planted.vector(), rtol=1e-6)


def test_a_fit_ends_at_an_active_bound(planted: Fit) -> None:
    y = responses(1)[0]
    highest = planted.values["beta"] * 0.9
    bounded = fit_law(chinchilla, X, y, mse_log, bounds={"beta": (0.1, highest)})
    assert bounded.bounds_hit == ("beta",)
    held = fit_law(chinchilla, X, y, mse_log, fixed={"beta": highest})
    np.testing.assert_allclose(bounded.vector(), held.vector(), rtol=1e-6)


def test_many_responses_at_once_are_each_fitted_alone(planted: Fit) -> None:
    losses = responses(7, seed=5)
    together, values = refit_with_objectives(planted, X, losses)
    for vector, value, y in zip(together, values, losses, strict=True):
        np.testing.assert_allclose(vector, refit(planted, X, y)[0], rtol=SAME)
        alone = fit_law(chinchilla, X, y, mse_log)
        np.testing.assert_allclose(vector, alone.vector(), rtol=1e-5)
        assert value == pytest.approx(alone.objective_value, rel=1e-8)


def test_each_row_of_a_box_fixes_a_parameter_at_its_value(planted: Fit) -> None:
    index = chinchilla.parameters.index("E")
    row = np.log([1.6, 1.7, 1.8])
    low, high = (np.repeat(bound, 3, axis=0) for bound in planted.box)
    low[:, index] = high[:, index] = row
    found = refit(planted, X, responses(1)[0], box=Box(low, high))
    np.testing.assert_allclose(found[:, index], [1.6, 1.7, 1.8], rtol=1e-8)
    for vector, value in zip(found, (1.6, 1.7, 1.8), strict=True):
        alone = fit_law(chinchilla, X, responses(1)[0], mse_log, fixed={"E": value})
        np.testing.assert_allclose(vector, alone.vector(), rtol=1e-5)


def test_each_row_of_weights_is_a_fit_of_its_own() -> None:
    """A row of zeros and ones is a fit to the points of weight one; other rows are weighted fits."""
    y = responses(1)[0]
    weights = np.stack([np.ones(len(y)), X["params"] < 5e8, X["tokens"] ** 0.3, X["tokens"] > 2e9]).astype(float)
    values, objectives = fit_each_weighting(chinchilla, X, y, mse_log, weights)
    for vector, value, weight in zip(values, objectives, weights, strict=True):
        alone = fit_law(chinchilla, X, y, mse_log, weights=weight)
        np.testing.assert_allclose(vector, alone.vector(), rtol=1e-5)
        assert 2 * value == pytest.approx(alone.objective_value, rel=1e-8)
    kept = weights[1] > 0
    fewer = fit_law(chinchilla, {name: column[kept] for name, column in X.items()}, y[kept], mse_log)
    np.testing.assert_allclose(values[1], fewer.vector(), rtol=1e-5)
    assert len({round(float(alpha), 4) for alpha in values[:, 3]}) == 4
