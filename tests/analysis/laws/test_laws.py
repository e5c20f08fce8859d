from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis import laws
from analysis.laws import accuracy, chinchilla, curve, surface
from tests.conftest import PLANTED


def test_chinchilla_by_hand() -> None:
    values = {"E": 1.5, "A": 8.0, "B": 27.0, "alpha": 0.5, "beta": 1 / 3}
    assert chinchilla(values, {"params": 16.0, "tokens": 27.0}) == pytest.approx(1.5 + 2 + 9)
    assert chinchilla.describe(values) == "L(N, D) = 1.5 + 8/N^0.500 + 27/D^0.333"


def test_draws_broadcast_against_points_in_double_precision() -> None:
    draws = {name: np.array([[value], [value * 1.1]]) for name, value in PLANTED.items()}
    out = chinchilla(draws, pd.DataFrame({"params": [1e7, 1e8, 1e9], "tokens": [1e9, 1e10, 1e11]}))
    assert out.shape == (2, 3)
    assert out.dtype == np.float64
    assert out[0, 1] == pytest.approx(1.7 + 420 / 1e8**0.35 + 1800 / 1e10**0.37, rel=1e-10)


EVERY = pytest.mark.parametrize("law", list(laws.all_laws()), ids=lambda law: law.name)
POINTS = {
    "params": np.geomspace(1e7, 1e9, 5),
    "tokens": np.geomspace(1e9, 2e10, 5)[::-1],
    "unique_tokens": np.full(5, 4e9),
    "flops": np.geomspace(1e17, 1e20, 5),
    "loss": np.linspace(2.0, 4.0, 5),
    "bits_per_byte": np.linspace(0.5, 1.5, 5),
    "x": np.geomspace(1e3, 1e6, 5),
    "samples": np.geomspace(1, 100, 5),
    "chance": np.full(5, 0.25),
    "ceiling": np.ones(5),
}
RESPONSES = {"loss": np.linspace(3.5, 2.5, 5)} | dict.fromkeys(("error", "accuracy", "failure", "y"), np.full(5, 0.4))


def starts_of(law: laws.Law) -> dict[str, np.ndarray]:
    """The starts of a law at POINTS, linear parameters at 1."""
    x = SimpleNamespace(**{name: POINTS[name] for name in law.columns})
    if callable(law.starts):
        starts = dict(law.starts(x, RESPONSES.get(law.response, np.full(5, 1e-3))))
    else:
        grid = np.array(list(itertools.product(*law.starts.values())))
        starts = dict(zip(law.starts, grid.T, strict=True))
    assert set(starts) == set(law.parameters) - set(law.linear_in)
    return starts | {name: np.ones(len(next(iter(starts.values())))) for name in law.linear_in}


@EVERY
def test_a_law_describes_itself_with_its_values(law: laws.Law) -> None:
    assert laws.get_law(law.name) is law
    assert law.source
    assert law.formula
    assert law.response in law.units
    assert set(law.bounds) == set(law.parameters)
    for name, starts in starts_of(law).items():
        low, high = law.bounds[name]
        assert np.all((low <= starts) & (starts <= high)), name
    assert all(name in law.describe(dict.fromkeys(law.parameters, 0.25)) for name in ("0.25",))


@EVERY
def test_predictions_are_finite_at_every_start_and_move_with_every_parameter(law: laws.Law) -> None:
    starts = starts_of(law)
    x = {name: POINTS[name] for name in law.columns}
    base = law({name: value[:, None] for name, value in starts.items()}, x)
    assert np.isfinite(base).all()
    for name in law.parameters:
        moved = law({n: (v * 1.01 + 1e-3 if n == name else v)[:, None] for n, v in starts.items()}, x)
        assert np.abs(moved / base - 1).max() > 1e-7, name


@EVERY
def test_linear_parameters_are_linear(law: laws.Law) -> None:
    base = {name: value[0] for name, value in starts_of(law).items()}
    x = {name: POINTS[name][:1] for name in law.columns}
    for name in law.linear_in:
        at = [law({**base, name: value}, x)[0] for value in (0.0, 1.0, 2.0)]
        assert at[2] - at[1] == pytest.approx(at[1] - at[0], rel=1e-6)


def test_kaplan_by_hand() -> None:
    """With D unbounded the joint law is (Nc/N)^alpha_N, and the published constants give 2.33 at 1.5e9 parameters."""
    values = {"Nc": 8.8e13, "Dc": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}
    assert surface.kaplan(values, {"params": 1.5e9, "tokens": 1e30}) == pytest.approx((8.8e13 / 1.5e9) ** 0.076)
    assert surface.kaplan(values, {"params": 1e30, "tokens": 1e10}) == pytest.approx((5.4e13 / 1e10) ** 0.095)


def test_chinchilla_is_a_special_case_of_interaction_and_farseer() -> None:
    x = {"params": POINTS["params"], "tokens": POINTS["tokens"]}
    additive = chinchilla(PLANTED, x)
    np.testing.assert_allclose(surface.interaction({**PLANTED, "gamma": 0.0}, x), additive, rtol=1e-8)
    flat = {"E1": 0.0, "E2": -0.1, "B1": 0.0, "B2": 0.1, "beta1": 0.0, "beta2": 0.1}
    curved = surface.farseer({**flat, **{name: PLANTED[name] for name in ("E", "B", "beta")}}, x)
    np.testing.assert_allclose(curved, PLANTED["E"] + PLANTED["B"] * x["tokens"] ** -PLANTED["beta"], rtol=1e-8)


def test_farseer_is_its_published_form_in_other_parameters() -> None:
    """e^(s N^q + S) + e^(B N^b + Q) D^-e^(A N^a + E): values, slopes by ln N and powers at N = 1e8 say the same."""
    x = {"params": POINTS["params"], "tokens": POINTS["tokens"]}
    terms = {"E": (-0.021, 0.169, 0.091), "B": (88.0, -0.1, -5.29), "beta": (-0.124, 0.123, 0.424)}
    floor, scale, rate = (np.exp(c * x["params"] ** power + base) for c, power, base in terms.values())
    values = {}
    for name, (c, power, base) in terms.items():
        values |= {name: np.exp(c * 1e8**power + base), f"{name}1": c * power * 1e8**power, f"{name}2": power}
    np.testing.assert_allclose(surface.farseer(values, x), floor + scale * x["tokens"] ** -rate, rtol=1e-8)


def test_farseers_box_cox_transform_is_smooth_at_power_zero() -> None:
    base = {"E": 1.0, "E1": -0.1, "B": 1e-9, "B1": 0.0, "B2": 0.1, "beta": 5.0, "beta1": 0.0, "beta2": 0.1}
    around = [surface.farseer({**base, "E2": power}, {"params": 1e10, "tokens": 1e10}) for power in (-1e-5, 0.0, 1e-5)]
    assert around[1] == pytest.approx(100**-0.1, rel=1e-8)
    assert around[2] - around[1] == pytest.approx(around[1] - around[0], rel=1e-3)
    assert around[0] > around[1] > around[2]


def test_a_saturating_loss_goes_from_l0_to_its_floor() -> None:
    values = {
        "E": 1.0,
        "L0": 5.5,
        "a": 10.0,
        "alpha": 0.3,
        "b": 20.0,
        "beta": 0.3,
        "c": 1e-9,
        "gamma": 0.1,
        "delta": 0.3,
    }
    assert surface.saturating(values, {"params": 1e-9, "tokens": 1e-9}) == pytest.approx(5.5, abs=0.01)
    assert surface.saturating(values, {"params": 1e30, "tokens": 1e30}) == pytest.approx(1.0, abs=1e-6)


def test_repeated_tokens_are_worth_less_than_new_ones() -> None:
    base = {
        "E": np.exp(0.6254804),
        "A": np.exp(6.255414),
        "B": np.exp(7.3049974),
        "alpha": 0.3526596,
        "beta": 0.3526596,
    }
    values = {**base, "R_D": 15.387756, "R_N": 5.309743}
    fresh = {"params": 3e7, "tokens": 1e9, "unique_tokens": 1e9}
    assert surface.data_constrained(values, fresh) == pytest.approx(chinchilla(base, fresh), rel=1e-8)
    often = {"params": 3e7, "tokens": 1e12, "unique_tokens": 1e9}
    limit = base["E"] + base["A"] * 3e7**-0.3526596 + base["B"] * (1e9 * (1 + 15.387756)) ** -0.3526596
    assert surface.data_constrained(values, often) == pytest.approx(limit, rel=1e-8)


def test_m4_solves_its_own_equation() -> None:
    p = {"e": 0.2, "e0": 1.3, "al": 0.7, "b": 3.0, "c": 0.4}
    x = np.geomspace(1e-3, 1e6, 40)
    y = curve.m4(p, {"x": x})
    np.testing.assert_allclose((y - 0.2) / (1.3 - y) ** 0.7, 3.0 * x**-0.4, rtol=1e-6)


def test_a_broken_law_has_two_slopes() -> None:
    p = {"a": 0.0, "b": 2.0, "c0": 0.1, "c1": 0.4, "d1": 1e4, "f1": 0.2}
    slopes = [np.diff(np.log(curve.bnsl(p, {"x": at * np.array([1, 1.01])})))[0] / np.log(1.01) for at in (1.0, 1e9)]
    np.testing.assert_allclose(slopes, [-0.1, -0.5], atol=1e-3)


def test_pass_at_k_by_hand() -> None:
    """Uniform chances: a problem is missed by all of k samples with probability 1/(k + 1). Far out it falls as k^-a."""
    k = np.array([1.0, 9.0, 99.0])
    np.testing.assert_allclose(accuracy.pass_at_k({"a": 1.0, "b": 1.0}, {"samples": k}), 1 / (k + 1), rtol=1e-8)
    far = accuracy.pass_at_k({"a": 0.3, "b": 2.0}, {"samples": np.array([1e6, 2e6])})
    assert np.log(far[0] / far[1]) / np.log(2) == pytest.approx(0.3, abs=1e-4)


def test_an_unknown_law_is_named_and_the_nearest_offered() -> None:
    with pytest.raises(KeyError, match=r"chinchila\b.*chinchilla"):
        laws.get_law("chinchila")


def test_laws_of_accuracy_by_hand() -> None:
    levels = {"chance": 0.2, "ceiling": 0.9}
    at = accuracy.log_centred({"A": 8.0, "alpha": 0.5}, {"flops": 16.0, **levels})
    assert at == pytest.approx(0.2 + 0.7 * np.exp(-2.0))
    values = {"A": 8.0, "alpha": 0.5, "B": 27.0, "beta": 1 / 3}
    at = accuracy.log_centred_surface(values, {"params": 16.0, "tokens": 27.0, **levels})
    assert at == pytest.approx(0.2 + 0.7 * np.exp(-2.0 - 9.0))
    middle, near, far = accuracy.sigmoid_centred(
        {"k": 4.0, "x0": 1.0}, {"bits_per_byte": np.array([1, -9, 90]), **levels}
    )
    assert (middle, near, far) == (pytest.approx(0.55), pytest.approx(0.9), pytest.approx(0.2))
