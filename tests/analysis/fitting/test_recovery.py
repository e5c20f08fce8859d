"""Planted parameters of every law are recovered, and its intervals hold them as often as they say.

A sweep is simulated SWEEPS times from each law: its design's columns, log-normal noise of the design's size. Every
sweep is refitted and each parameter given its 90 % interval; a planted value is held by a share of the sweeps.

Bounds on that share. Were the rate exactly 90 %, the count of a parameter would be binomial(SWEEPS, 0.9), sweeps being
independent. The parameters of one sweep move together, which no bound may rely on either way, so the chance of a false
alarm is split over all of them (Bonferroni): 1 % in all. For 400 sweeps and some eighty parameters that is about 83.5 %
to 95 %. The mean over laws is sharper: laws are independent of each other, and the mean over the parameters of
one law varies at most as one parameter does, so four standard errors of it are 4 sqrt(0.9 x 0.1 / (SWEEPS laws)).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from analysis.fitting.fit import Fit, Objective, fit_law, huber, mse_log, refit_with_objectives
from analysis.fitting.profile_likelihood import sandwich_intervals
from analysis.laws import Law, all_laws, get_law

pytestmark = pytest.mark.slow

SWEEPS = 400
LEVEL = 0.9
FALSE_ALARM = 0.01


@dataclass(frozen=True)
class Design:
    """What is simulated: planted values, columns [points], noise as the standard deviation of log responses.

    held: parameters that are not fitted.
    """

    law: str
    planted: Mapping[str, float]
    columns: Mapping[str, np.ndarray]
    noise: float
    held: tuple[str, ...] = ()
    objective: Objective = mse_log

    def simulated(self) -> np.ndarray:
        """Responses [SWEEPS, points]; each law has draws of its own."""
        truth = get_law(self.law)(self.planted, self.columns)
        draws = np.random.default_rng(zlib.crc32(self.law.encode())).normal(0, self.noise, (SWEEPS, len(truth)))
        return truth * np.exp(draws)


def grid(**axes: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(axes, (axis.ravel() for axis in np.meshgrid(*axes.values())), strict=True))


def repeated() -> dict[str, np.ndarray]:
    """One to 64 epochs over unique tokens, for models below and above the size that the unique tokens are best for."""
    columns = grid(
        params=np.geomspace(1e7, 3e9, 4), unique_tokens=np.geomspace(1e8, 1e10, 4), epochs=4.0 ** np.arange(4)
    )
    return {**columns, "tokens": columns["epochs"] * columns["unique_tokens"]}


def levels(points: int) -> dict[str, np.ndarray]:
    """Of questions with four choices."""
    return {"chance": np.full(points, 0.25), "ceiling": np.ones(points)}


SURFACE = grid(params=np.geomspace(1e7, 1e10, 8), tokens=np.geomspace(1e9, 1e12, 8))
TINY = grid(params=np.geomspace(1e4, 1e9, 8), tokens=np.geomspace(1e6, 1e11, 8))
CURVE = {"x": np.geomspace(1e2, 1e7, 60)}
BASE = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
FARSEER = {"E": 0.683, "E1": -0.08, "E2": 0.169, "B": 5800.0, "B1": -1.39, "B2": -0.1, "beta": 0.46}
SATURATING = {"a": 60.0, "alpha": 0.35, "b": 300.0, "beta": 0.35, "c": 20.0, "gamma": 0.1, "delta": 0.3}

DESIGNS = (
    Design("chinchilla", BASE, SURFACE, 2e-3),
    Design("kaplan", {"Nc": 8.8e13, "Dc": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}, SURFACE, 2e-3),
    Design("interaction", {**BASE, "B": 700.0, "gamma": 0.05}, SURFACE, 2e-3),
    Design("farseer", {**FARSEER, "beta1": -0.147, "beta2": 0.123}, SURFACE, 1e-3),
    Design("saturating", {**SATURATING, "E": 1.0, "L0": np.log(50257)}, TINY, 1e-3, held=("L0",)),
    Design("data_constrained", {**BASE, "R_N": 5.3, "R_D": 15.4}, repeated(), 2e-3),
    Design("over_training", {"E": 1.8, "a": 140.0, "b": 300.0, "eta": 0.3}, SURFACE, 2e-3),
    Design("m1", {"b": 3.0, "c": 0.2}, CURVE, 1e-2),
    Design("m2", {"e": 0.5, "b": 3.0, "c": 0.3}, CURVE, 1e-2),
    Design("m3", {"b": 3.0, "g": 1e-5, "c": 0.3}, CURVE, 1e-2),
    Design("m4", {"e": 0.2, "e0": 2.0, "al": 1.5, "b": 300.0, "c": 0.7}, CURVE, 1e-2),
    Design("bnsl", {"a": 0.3, "b": 2.0, "c0": 0.1, "c1": 0.4, "d1": 1e4, "f1": 0.3}, CURVE, 3e-3),
    Design("learning_rate", {"k": 1.79, "n": -0.713, "d": 0.307}, SURFACE, 0.2),
    Design("batch", {"k": 0.58, "d": 0.571}, {"tokens": np.geomspace(1e9, 1e12, 60)}, 0.2),
    Design("exponential_error", {"eps": 0.85, "k": 2.0, "gamma": 0.8}, {"loss": np.linspace(2, 5, 60)}, 5e-3),
    Design(
        "sigmoid_accuracy",
        {"a": 0.7, "b": 0.25, "k": 8.0, "x0": 0.8},
        {"bits_per_byte": np.linspace(0.2, 1.5, 60)},
        1e-2,
    ),
    Design("log_accuracy", {"A": 300.0, "alpha": 0.14}, {"flops": np.geomspace(1e17, 1e22, 60)}, 5e-2),
    Design("log_centred", {"A": 300.0, "alpha": 0.14}, {"flops": np.geomspace(1e17, 1e22, 60), **levels(60)}, 2e-2),
    Design(
        "log_centred_surface", {"A": 100.0, "alpha": 0.3, "B": 150.0, "beta": 0.25}, {**SURFACE, **levels(64)}, 1e-2
    ),
    Design("sigmoid_centred", {"k": 8.0, "x0": 0.8}, {"bits_per_byte": np.linspace(0.2, 1.5, 60), **levels(60)}, 1e-2),
    Design("pass_at_k", {"a": 0.4, "b": 3.0}, {"samples": np.geomspace(1, 1e4, 60)}, 2e-2),
)
ROBUST = Design("chinchilla", BASE, SURFACE, 2e-3, objective=huber())
EVERY = pytest.mark.parametrize(
    "index", range(len(DESIGNS) + 1), ids=[design.law for design in DESIGNS] + ["chinchilla by huber"]
)


@dataclass(frozen=True)
class Study:
    """The results of a design: the fit to responses without noise, and one refit for each simulated sweep."""

    design: Design
    law: Law
    fit: Fit
    responses: np.ndarray
    refits: tuple[Fit, ...]
    coverage: Mapping[str, float]


@cache
def study(index: int) -> Study:
    """The design of that place in DESIGNS; ROBUST beyond."""
    design = (*DESIGNS, ROBUST)[index]
    law = get_law(design.law)
    held = {name: design.planted[name] for name in design.held}
    fit = fit_law(law, design.columns, law(design.planted, design.columns), design.objective, fixed=held)
    responses = design.simulated()
    vectors, values = refit_with_objectives(fit, design.columns, responses)
    refits = tuple(
        replace(fit, values=dict(zip(law.parameters, vector, strict=True)), objective_value=value)
        for vector, value in zip(vectors.tolist(), values.tolist(), strict=True)
    )
    intervals = [sandwich_intervals(one, design.columns, y, LEVEL) for one, y in zip(refits, responses, strict=True)]
    low, high = np.moveaxis(np.array(intervals), -1, 0)
    truth = np.array([design.planted[name] for name in law.parameters])
    shares = np.mean((low <= truth) & (truth <= high), axis=0)
    coverage = {name: share for name, share in zip(law.parameters, shares, strict=True) if name not in held}
    return Study(design, law, fit, responses, refits, coverage)


def test_every_law_has_a_design() -> None:
    assert sorted(design.law for design in DESIGNS) == sorted(law.name for law in all_laws())


@EVERY
def test_planted_parameters_are_recovered_from_the_starts(index: int) -> None:
    """Exactly without noise; with it, a cold fit ends where the refit of the same sweep does, and is no worse."""
    one = study(index)
    assert one.fit.fixed == one.design.held
    for name, value in one.design.planted.items():
        assert one.fit.values[name] == pytest.approx(value, rel=1e-7), name
    held = {name: one.design.planted[name] for name in one.design.held}
    cold = fit_law(one.law, one.design.columns, one.responses[0], one.design.objective, fixed=held)
    assert cold.objective_value == pytest.approx(one.refits[0].objective_value, rel=1e-8)
    np.testing.assert_allclose(cold.vector(), one.refits[0].vector(), rtol=1e-4)
    assert cold.warnings() == []


@EVERY
def test_intervals_cover_each_planted_parameter_at_their_level(index: int) -> None:
    parameters = sum(len(design.planted) - len(design.held) for design in (*DESIGNS, ROBUST))
    tail = FALSE_ALARM / parameters / 2
    least, most = stats.binom.ppf([tail, 1 - tail], SWEEPS, LEVEL) / SWEEPS
    coverage = study(index).coverage
    assert len(coverage) == len(study(index).design.planted) - len(study(index).design.held)
    assert {name: share for name, share in coverage.items() if not least <= share <= most} == {}


def test_intervals_cover_planted_parameters_at_their_level_over_all_laws() -> None:
    means = [np.mean(list(study(index).coverage.values())) for index in range(len(DESIGNS))]
    assert np.mean(means) == pytest.approx(LEVEL, abs=4 * np.sqrt(LEVEL * (1 - LEVEL) / SWEEPS / len(DESIGNS)))
