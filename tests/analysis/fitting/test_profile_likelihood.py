"""Profiles against refits by scipy; intervals are open where the points do not bound a parameter."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from analysis.fitting.fit import Fit, Objective, fit_law, huber, lad, mse, mse_log
from analysis.fitting.profile_likelihood import (
    ParameterProfile,
    profile_parameters,
    sandwich_errors,
    sandwich_intervals,
)
from analysis.laws import chinchilla
from tests.conftest import PLANTED, simulated

TABLE = simulated(5e-3)
X = {"params": TABLE["params_matmul"].to_numpy(), "tokens": TABLE["tokens"].to_numpy()}
LOSS = TABLE["loss"].to_numpy()
FREEDOM = len(LOSS) - 5


@pytest.fixture(scope="module")
def squares() -> Fit:
    return fit_law(chinchilla, X, LOSS, mse)


@pytest.fixture(scope="module")
def floor(squares: Fit) -> ParameterProfile:
    return profile_parameters(squares, X, LOSS, ("E",))[0]


def least_squares_with_floor(held: float) -> float:
    """The least sum of squared errors with E held: scipy's search over the exponents, its least squares within."""

    def inner(exponents: np.ndarray) -> np.ndarray:
        basis = np.stack([X["params"] ** -exponents[0], X["tokens"] ** -exponents[1]], 1)
        basis /= np.linalg.norm(basis, axis=0)
        return LOSS - held - basis @ np.linalg.lstsq(basis, LOSS - held)[0]

    return 2 * optimize.least_squares(inner, [0.35, 0.37], bounds=(0.01, 3), xtol=1e-14, ftol=1e-14, gtol=1e-14).cost


def test_the_profile_of_squares_agrees_with_scipy(squares: Fit, floor: ParameterProfile) -> None:
    assert np.all(np.diff(floor.values) > 0)
    assert floor.values.min() < floor.low < squares.values["E"] < floor.high < floor.values.max()
    for index in range(0, len(floor.values), 6):
        assert floor.objective[index] == pytest.approx(least_squares_with_floor(floor.values[index]), rel=1e-6)


def test_the_ends_are_where_the_objective_has_risen_to_the_threshold(squares: Fit, floor: ParameterProfile) -> None:
    """For squares of equal noise the rise is near that of the likelihood ratio, F times the residual variance."""
    for end in (floor.low, floor.high):
        assert least_squares_with_floor(end) == pytest.approx(floor.threshold, rel=1e-3)
    rise = floor.threshold - squares.objective_value
    likelihood = stats.f.ppf(0.9, 1, FREEDOM) * squares.objective_value / FREEDOM
    assert likelihood * (1 - 1e-8) <= rise < 2 * likelihood
    assert 1.02 * floor.low in floor
    assert 0.98 * floor.low not in floor
    wider = profile_parameters(squares, X, LOSS, ("E",), level=0.99)[0]
    assert wider.low < floor.low < floor.high < wider.high


def test_the_series_of_values_is_widened_until_both_ends_are_in_it(
    squares: Fit, floor: ParameterProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.fitting.profile_likelihood.FIRST_WIDTH", 0.5)
    short = profile_parameters(squares, X, LOSS, ("E",))[0]
    assert (short.low, short.high) == pytest.approx((floor.low, floor.high), rel=1e-3)


@pytest.mark.parametrize("objective", [mse_log, huber(), lad], ids=lambda objective: objective.name)
def test_profiles_and_sandwich_intervals_agree_for_little_noise(objective: Objective) -> None:
    """Within 10 % in width, and both about the fitted value."""
    table = simulated(1e-3, seed=4)
    x, loss = {"params": table["params_matmul"], "tokens": table["tokens"]}, table["loss"].to_numpy()
    fit = fit_law(chinchilla, x, loss, objective)
    quick = dict(zip(chinchilla.parameters, sandwich_intervals(fit, x, loss), strict=True))
    for profile in profile_parameters(fit, x, loss, ("E", "beta")):
        low, high = quick[profile.parameter]
        assert fit.values[profile.parameter] in profile
        ratio = np.log(profile.high / profile.low) / np.log(high / low)
        assert ratio == pytest.approx(1, abs=0.1), profile


def test_an_interval_is_open_where_points_do_not_bound_the_parameter() -> None:
    """On tokens = 20 params the floor has an end above and none below, whatever the other parameters must be for it:
    far from the fit no single start reaches them."""
    sizes = np.geomspace(1e7, 1e9, 12)
    x = {"params": sizes, "tokens": 20 * sizes}
    loss = chinchilla(PLANTED, x) * np.exp(np.random.default_rng(1).normal(0, 1e-3, 12))
    fit = fit_law(chinchilla, x, loss, mse_log)
    profile = profile_parameters(fit, x, loss, ("E",))[0]
    assert profile.low == -np.inf
    assert PLANTED["E"] in profile
    assert 1e-3 in profile
    assert 2.0 not in profile
    assert re.search(rf"\bE\b.*{profile.high:.4g}", repr(profile))
    assert "inf" not in repr(profile)
    cold = [fit_law(chinchilla, x, loss, mse_log, fixed={"E": value}) for value in profile.values[::10]]
    assert np.all(profile.objective[::10] <= np.array([c.objective_value for c in cold]) * (1 + 1e-3))


def test_a_fixed_parameter_has_no_error_and_no_profile(squares: Fit) -> None:
    held = fit_law(chinchilla, X, LOSS, mse, fixed={"alpha": squares.values["alpha"]})
    errors, free = (
        dict(zip(chinchilla.parameters, sandwich_errors(fit, X, LOSS), strict=True)) for fit in (held, squares)
    )
    assert errors["alpha"] == 0
    interval = sandwich_intervals(held, X, LOSS)[chinchilla.parameters.index("alpha")]
    np.testing.assert_allclose(interval, squares.values["alpha"], rtol=1e-8)
    assert 0 < errors["A"] < free["A"] / 5
    assert [profile.parameter for profile in profile_parameters(held, X, LOSS)] == ["E", "A", "B", "beta"]


def test_standard_errors_of_squares_are_hc3_by_hand(squares: Fit) -> None:
    """MacKinnon & White 1985: each residual over 1 - its leverage, with a Jacobian by finite differences."""
    vector = squares.vector()
    step = 1e-6
    columns = []
    for index in range(5):
        up, down = (vector * np.where(np.arange(5) == index, np.exp(sign * step), 1.0) for sign in (1, -1))
        values = [chinchilla(dict(zip(chinchilla.parameters, at, strict=True)), X) for at in (up, down)]
        columns.append((values[0] - values[1]) / (2 * step))
    scale = np.linalg.norm(columns, axis=1)
    jacobian = np.stack(columns, 1) / scale
    inverse = np.linalg.inv(jacobian.T @ jacobian)
    leverage = np.einsum("pi,ij,pj->p", jacobian, inverse, jacobian)
    slopes = jacobian * ((LOSS - squares.predict(X)) / (1 - leverage))[:, None]
    expected = np.sqrt(np.diag(inverse @ slopes.T @ slopes @ inverse)) / scale
    np.testing.assert_allclose(sandwich_errors(squares, X, LOSS), expected, rtol=1e-4)


def test_weights_move_the_profile_as_they_move_the_fit(squares: Fit, floor: ParameterProfile) -> None:
    """A point of weight 0 counts for nothing but its degree of freedom; equal weights change nothing."""
    even = profile_parameters(squares, X, LOSS, ("E",), weights=np.ones(len(LOSS)))[0]
    assert (even.low, even.high) == (floor.low, floor.high)
    weights, spoilt = np.ones(len(LOSS)), LOSS.copy()
    weights[3], spoilt[3] = 0.0, 2 * LOSS[3]
    rest = weights > 0
    fewer, x = fit_law(chinchilla, {name: column[rest] for name, column in X.items()}, LOSS[rest], mse), X
    weighted = fit_law(chinchilla, x, spoilt, mse, weights=weights)
    expected = sandwich_errors(fewer, {name: column[rest] for name, column in x.items()}, LOSS[rest])
    np.testing.assert_allclose(sandwich_errors(weighted, x, spoilt, weights), expected, rtol=1e-4)
    profile = profile_parameters(weighted, x, spoilt, ("E",), weights=weights)[0]
    assert profile.low < fewer.values["E"] < profile.high < 1.2 * fewer.values["E"]


def test_units_of_the_response_do_not_matter(squares: Fit) -> None:
    """Ten times the loss is ten times E, A and B with the same relative errors."""
    scaled = {name: value * (10 if name in "EAB" else 1) for name, value in squares.values.items()}
    ten = replace(squares, values=scaled, objective_value=100 * squares.objective_value)
    np.testing.assert_allclose(sandwich_errors(ten, X, 10 * LOSS), sandwich_errors(squares, X, LOSS), rtol=1e-6)
