from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from analysis.fitting import bootstrap
from analysis.fitting.fit import fit_law
from analysis.laws import chinchilla
from analysis.tables.results import select_points
from tests.conftest import simulated


def test_draws_depend_on_the_seed_alone() -> None:
    points = select_points(simulated(5e-3)).table
    loss = points["loss"].to_numpy()
    fit = fit_law(chinchilla, points, loss)
    one, same, other = (bootstrap.bootstrap(fit, points, loss, points["cluster"], draws=8, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0


def test_clusters_are_drawn_whole() -> None:
    member = np.repeat(np.arange(10), 3)
    weights = bootstrap.draw_weights(np.random.default_rng(0), member, np.arange(30), 5, 1)[0]
    assert (weights.reshape(10, 3) == weights.reshape(10, 3)[:, :1]).all()
    assert weights.sum() == 30
    assert len(set(weights)) > 1


def test_few_trunks_are_not_resampled_whole_and_a_warning_says_so() -> None:
    table = simulated()
    assert bootstrap.choose_clusters(select_points(table).table, 5)[1] == ""
    table["branch_of"] = [f"trunk{i % 4}" for i in range(len(table))]
    unit, note = bootstrap.choose_clusters(select_points(table).table, 5)
    assert re.search(r"\b4\b", note)
    assert len(np.unique(unit)) == 30


def test_every_resample_determines_the_law() -> None:
    """Nine runs, five parameters: draws with fewer than six distinct ones are drawn again."""
    generator, member = np.random.default_rng(0), np.arange(9)
    weights = bootstrap.draw_weights(generator, member, member, 5, 300)
    assert ((weights > 0).sum(1) > 5).all()


def test_the_central_interval_has_quantiles_as_ends() -> None:
    low, high = bootstrap.central_interval(np.arange(1001.0)[:, None], 0.9)
    assert (low[0], high[0]) == pytest.approx((50.0, 950.0))


@pytest.mark.slow
def test_standard_errors_of_chinchilla_are_near_the_reference(shared_data) -> None:
    """Besiroglu et al. 2024: E .026, alpha .015, beta .021. Ours is another bootstrap of the same points."""
    raw = pd.read_csv(shared_data / "chinchilla_epoch" / "chinchilla_nd_loss.csv")
    points = raw[raw["used_in_epoch_fit"]].rename(columns={"N": "params", "D": "tokens"})
    loss = points["loss"].to_numpy()
    fit = fit_law(chinchilla, points, loss)
    draws = bootstrap.bootstrap(fit, points, loss, np.arange(len(points)), draws=400)
    errors = dict(zip(chinchilla.parameters, bootstrap.standard_errors(draws), strict=True))
    for name, expected in (("E", 0.026), ("alpha", 0.0148), ("beta", 0.021)):
        assert errors[name] == pytest.approx(expected, rel=0.25)
