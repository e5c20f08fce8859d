"""The warning names the parameters that points do not determine, and proposes a run that determines them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from analysis.fitting.fit import Fit, fit_law, mse_log, refit
from analysis.fitting.identifiability import condition_ratio, describe_unidentified
from analysis.fitting.newton import log_prediction_jacobian, theta_from_values
from analysis.laws import chinchilla, curve
from tests.conftest import PLANTED

SIZES, HORIZONS = np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 3e10, 5)
TRUTH = np.array([PLANTED[name] for name in chinchilla.parameters])
APART = {"E": 1.7, "A": 8000.0, "B": 300.0, "alpha": 0.5, "beta": 0.28}
Columns = dict[str, np.ndarray]
NUMBER = r"[\d.]+(?:e[+-]?\d+)?"


def grid(params: np.ndarray, tokens: np.ndarray) -> Columns:
    n, d = np.meshgrid(params, tokens)
    return {"params": n.ravel(), "tokens": d.ravel()}


FULL = grid(SIZES, HORIZONS)
LINE = {"params": np.geomspace(1e7, 1e9, 12), "tokens": 20 * np.geomspace(1e7, 1e9, 12)}
SHORT_TOKENS = grid(SIZES, np.geomspace(1e10, 1.5e10, 5))
SHORT_PARAMS = grid(np.geomspace(1e8, 1.5e8, 5), np.geomspace(1e9, 1e11, 6))


def fit_noisy(planted: dict[str, float], columns: Columns, noise: float) -> Fit:
    truth = chinchilla(planted, columns)
    response = truth * np.exp(np.random.default_rng(1).normal(0, noise, len(truth)))
    return fit_law(chinchilla, columns, response, mse_log)


def named_parameters_of(columns: Columns, noise: float) -> str:
    """Parameters that the warning names at the planted values, for residuals of a given size."""
    truth, free = chinchilla(PLANTED, columns), np.ones(5, bool)
    response = truth * np.exp(noise * np.where(np.arange(len(truth)) % 2, 1.0, -1.0))
    return describe_unidentified(chinchilla, theta_from_values(chinchilla, TRUTH), columns, response, free)


def named(text: str, parameters: tuple[str, ...] = chinchilla.parameters) -> set[str]:
    """The parameters that a warning names."""
    return {name for name in parameters if re.search(rf"\b{name}\b", text)}


def spans(text: str) -> dict[str, float]:
    """The ranges of params and tokens that a warning gives as its cause, as factors."""
    return {name: float(factor) for name, factor in re.findall(rf"(params|tokens)\D*({NUMBER})x", text)}


def test_a_grid_determines_all_parameters_until_its_noise_is_large() -> None:
    assert named_parameters_of(FULL, 2e-3) == ""
    noisy = named_parameters_of(FULL, 0.2)
    assert named(noisy) == {"B", "beta"}
    assert spans(noisy) == {"params": 100, "tokens": 30}


@pytest.mark.parametrize(
    ("planted", "columns", "blamed", "sound", "cause"),
    [
        (APART, LINE, {"alpha", "beta"}, set(), {}),
        (PLANTED, SHORT_TOKENS, {"B", "beta"}, {"A", "alpha"}, {"params": 100, "tokens": 1.5}),
        (PLANTED, SHORT_PARAMS, {"A", "alpha"}, {"B", "beta"}, {"params": 1.5, "tokens": 100}),
    ],
    ids=["line", "tokens", "params"],
)
def test_the_warning_names_parameters_and_a_run_that_determines_them(
    planted: dict[str, float], columns: Columns, blamed: set[str], sound: set[str], cause: dict[str, float]
) -> None:
    """Simulated at the planted values with noise of 0.1 %: with the proposed run added, the exponent that is worst
    determined spreads less than half as much as with the middle run repeated. The run costs no more than the largest.
    """
    text = fit_noisy(planted, columns, 1e-3).identifiability_warning
    assert named(text) >= blamed
    assert not named(text) & sound
    assert spans(text) == cause, "where N and D move together, no span is to blame"
    found = re.search(rf"N = ({NUMBER}), D = ({NUMBER})", text)
    assert found is not None
    proposed = np.array([float(number) for number in found.groups()])
    flops = columns["params"] * columns["tokens"]
    assert proposed.prod() <= 1.1 * flops.max()
    middle = np.argsort(flops)[len(flops) // 2]
    repeated = spreads(planted, columns, np.array([columns["params"][middle], columns["tokens"][middle]]))
    added = spreads(planted, columns, proposed)
    worst = np.argmax(repeated)
    assert chinchilla.parameters[3 + worst] in blamed
    assert added[worst] < repeated[worst] / 2


def spreads(planted: dict[str, float], columns: Columns, run: np.ndarray) -> np.ndarray:
    """Spread of log alpha and log beta over 200 simulated sweeps with that run added: half of all lie within it."""
    longer = {name: np.append(columns[name], value) for name, value in zip(("params", "tokens"), run, strict=True)}
    truth = chinchilla(planted, longer)
    responses = truth * np.exp(np.random.default_rng(2).normal(0, 1e-3, (200, len(truth))))
    start = replace(fit_noisy(PLANTED, FULL, 0.0), values=planted)
    return np.ptp(np.quantile(np.log(refit(start, longer, responses)[:, 3:]), [0.25, 0.75], axis=0), axis=0)


def test_a_fixed_parameter_is_not_named() -> None:
    truth = chinchilla(PLANTED, LINE)
    free = np.array([name not in ("A", "alpha") for name in chinchilla.parameters])
    response = truth * np.exp(1e-4 * np.where(np.arange(len(truth)) % 2, 1.0, -1.0))
    assert "alpha" in named_parameters_of(LINE, 1e-4)
    assert describe_unidentified(chinchilla, theta_from_values(chinchilla, TRUTH), LINE, response, free) == ""


def test_a_flat_curve_is_reported_and_wider_runs_are_proposed() -> None:
    x = {"x": np.geomspace(1e6, 2e6, 8)}
    values = {"e": 0.5, "b": 3.0, "c": 0.3}
    theta = theta_from_values(curve.m2, np.array([values[name] for name in curve.m2.parameters]))
    response = curve.m2(values, x) * (1 + 1e-3 * np.cos(np.arange(8)))
    text = describe_unidentified(curve.m2, theta, x, response, np.ones(3, bool))
    assert named(text, curve.m2.parameters) == set(curve.m2.parameters)
    assert not re.search(r"\d", text), "a law of one column is offered no run in N and D"


def test_the_condition_ratio_is_independent_of_units_and_zero_for_copies() -> None:
    slopes = log_prediction_jacobian(chinchilla, theta_from_values(chinchilla, TRUTH), FULL)
    assert condition_ratio(slopes * np.geomspace(1e-6, 1e6, 5)) == pytest.approx(condition_ratio(slopes), rel=1e-6)
    assert condition_ratio(np.eye(4)[:, :3]) == pytest.approx(1.0)
    assert condition_ratio(slopes[:, [0, 1, 1]]) == pytest.approx(0.0, abs=1e-8)
    along = log_prediction_jacobian(chinchilla, theta_from_values(chinchilla, TRUTH), LINE)
    assert condition_ratio(along) < condition_ratio(slopes) / 100
    assert condition_ratio(np.full((4, 2), np.nan)) == 0.0


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_an_exact_line_is_never_called_separable_however_small_the_noise(noise: float) -> None:
    """On D = 20 N the terms in N and D can be swapped, and the fitted values do not show it."""
    params = np.geomspace(1e7, 1e9, 30)
    x = {"params": params, "tokens": 20 * params}
    loss = chinchilla({**PLANTED, "alpha": 0.5, "beta": 0.28}, x)
    loss = loss * np.exp(np.random.default_rng(0).normal(0, noise, 30)) if noise else loss
    text = fit_law(chinchilla, x, loss).identifiability_warning
    assert named(text)
    assert spans(text) == {}
