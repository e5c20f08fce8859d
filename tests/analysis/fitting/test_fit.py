from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.fitting.fit import Fit, Objective, fit_law, huber, mse, mse_log, refit
from analysis.laws import chinchilla
from analysis.tables.results import select_points
from tests.conftest import PLANTED, simulated


def planted(noise: float, seed: int = 0, objective: Objective | None = None) -> Fit:
    points = select_points(simulated(noise, seed)).table
    return fit_law(chinchilla, points, points["loss"].to_numpy(), objective)


@pytest.mark.parametrize("objective", [huber(), huber(1e-2), mse_log, mse], ids=lambda o: f"{o.name}-{o.delta}")
def test_a_planted_law_without_noise_is_found_exactly(objective: Objective) -> None:
    fit = planted(0.0, objective=objective)
    for name, value in PLANTED.items():
        assert fit.values[name] == pytest.approx(value, rel=1e-5)
    assert fit.warnings() == []
    assert fit.starts_at_optimum >= fit.starts // 2


def test_noise_moves_the_values_a_little_and_an_outlier_not_at_all() -> None:
    points = select_points(simulated(2e-3)).table
    loss = points["loss"].to_numpy()
    clean = fit_law(chinchilla, points, loss)
    assert clean.values["alpha"] == pytest.approx(PLANTED["alpha"], abs=0.05)
    spoilt = loss.copy()
    spoilt[7] *= 1.5
    robust = fit_law(chinchilla, points, spoilt)
    square = fit_law(chinchilla, points, spoilt, mse)
    assert abs(robust.values["alpha"] - clean.values["alpha"]) < 0.02
    assert abs(square.values["alpha"] - clean.values["alpha"]) > 0.1


def test_the_objective_is_the_sum_over_points() -> None:
    points = select_points(simulated(5e-3)).table
    loss = points["loss"].to_numpy()
    fit = fit_law(chinchilla, points, loss)
    r = np.abs(fit.residuals(points, loss))
    assert fit.objective_value == pytest.approx(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum(), rel=1e-8)
    square = fit_law(chinchilla, points, loss, mse)
    assert square.objective_value == pytest.approx(((loss - square.predict(points)) ** 2).sum(), rel=1e-8)


def test_no_neighbour_is_better() -> None:
    points = select_points(simulated(5e-3)).table
    fit = fit_law(chinchilla, points, points["loss"].to_numpy(), mse_log)
    generator = np.random.default_rng(0)
    for _ in range(200):
        near = {name: value * np.exp(generator.normal(0, 1e-3)) for name, value in fit.values.items()}
        r = np.log(points["loss"].to_numpy() / chinchilla(near, points))
        assert (r**2).sum() >= fit.objective_value


def test_correlated_params_and_tokens_are_reported_with_a_run_to_add() -> None:
    points = select_points(simulated(2e-3)).table
    assert fit_law(chinchilla, points, points["loss"].to_numpy()).identifiability_warning == ""
    points["tokens"] = 20 * points["params"]
    points["loss"] = chinchilla(PLANTED, points) * np.exp(np.random.default_rng(0).normal(0, 2e-3, len(points)))
    fit = fit_law(chinchilla, points, points["loss"].to_numpy())
    assert fit.identifiability_warning in fit.warnings()
    assert re.search(r"\bN = \d\S*, D = \d", fit.identifiability_warning), "a run"
    assert {"alpha", "beta"} <= set(re.findall(r"\w+", fit.identifiability_warning))


def test_a_bound_that_is_hit_is_reported() -> None:
    points = select_points(simulated()).table
    falling = points["loss"].to_numpy() - PLANTED["E"] + 1e-9
    fit = fit_law(chinchilla, points, falling)
    assert fit.bounds_hit == ("E",)
    assert any(re.search(r"\bE\b", note) for note in fit.warnings())


def test_weights_of_a_resample_count_as_repeated_points() -> None:
    points = select_points(simulated(5e-3)).table
    loss = points["loss"].to_numpy()
    weights = np.random.default_rng(0).integers(0, 3, len(points)).astype(float)
    again = refit(fit_law(chinchilla, points, loss), points, loss, weights[None])[0]
    repeated = points.loc[points.index.repeat(weights.astype(int))]
    direct = fit_law(chinchilla, repeated, repeated["loss"].to_numpy())
    np.testing.assert_allclose(again, [direct.values[name] for name in chinchilla.parameters], rtol=1e-3)


@pytest.fixture(scope="module")
def digitised(shared_data: Path) -> dict[str, pd.DataFrame]:
    """Chinchilla's points as Besiroglu et al. 2024 digitised them: all 245, and the 240 that they keep."""
    raw = pd.read_csv(shared_data / "chinchilla_epoch" / "chinchilla_nd_loss.csv")
    every = raw.rename(columns={"N": "params", "D": "tokens"})
    return {"chinchilla_240": every[every["used_in_epoch_fit"]], "chinchilla_245": every}


@pytest.mark.parametrize("name", ["chinchilla_240", "chinchilla_245"])
@pytest.mark.parametrize(
    ("key", "objective"), [("huber_1e-3_on_log", huber()), ("mse_on_log", mse_log), ("mse_on_loss", mse)]
)
def test_public_points_reach_the_reference_optimum(
    digitised: dict[str, pd.DataFrame], shared_data: Path, name: str, key: str, objective: Objective
) -> None:
    reference = json.loads((shared_data / "reference.json").read_text())[name]["optimum"][key]
    points = digitised[name]
    assert len(points) == int(name[-3:])
    fit = fit_law(chinchilla, points, points["loss"].to_numpy(), objective)
    assert fit.objective_value <= reference["obj"] * (1 + 1e-6)
    assert fit.objective_value == pytest.approx(reference["obj"], rel=1e-4)
    for parameter in ("E", "alpha", "beta"):
        assert fit.values[parameter] == pytest.approx(reference[parameter], rel=1e-3)


def test_chinchilla_by_huber_is_the_known_optimum(digitised: dict[str, pd.DataFrame]) -> None:
    """Not Besiroglu's printed point (482.01, 2085.43, ...), which is a least-absolute-deviation fit."""
    points = digitised["chinchilla_240"]
    fit = fit_law(chinchilla, points, points["loss"].to_numpy(), huber(1e-3))
    known = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347310, "beta": 0.367172}
    for name, value in known.items():
        assert fit.values[name] == pytest.approx(value, rel=2e-5)
    assert fit.objective_value == pytest.approx(1.018274018e-3, rel=1e-6)
