"""Least absolute deviations reach a vertex: as many zero residuals as parameters, and no lower sum nearby."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.fitting.fit import Fit, fit_law, lad
from analysis.fitting.least_absolute import descend_to_vertex
from analysis.fitting.newton import theta_from_values
from analysis.laws import chinchilla
from analysis.tables import public
from tests.conftest import simulated

TABLE = simulated(5e-3)
X = {"params": TABLE["params_matmul"].to_numpy(), "tokens": TABLE["tokens"].to_numpy()}
LOSS = TABLE["loss"].to_numpy()


@pytest.fixture(scope="module")
def vertex() -> Fit:
    return fit_law(chinchilla, X, LOSS, lad)


def zeros(fit: Fit, x: dict[str, np.ndarray], y: np.ndarray) -> int:
    return int(np.sum(np.abs(fit.residuals(x, y)) < 1e-8))


def test_as_many_residuals_are_zero_as_parameters_are_free(vertex: Fit) -> None:
    assert zeros(vertex, X, LOSS) == 5
    held = fit_law(chinchilla, X, LOSS, lad, fixed={"E": 1.6})
    assert held.values["E"] == pytest.approx(1.6, rel=1e-8)
    assert zeros(held, X, LOSS) == 4
    assert held.objective_value > vertex.objective_value


def test_no_neighbour_has_a_lower_sum(vertex: Fit) -> None:
    """At any distance, along any direction: a vertex is a minimum to first order."""
    assert vertex.objective_value == pytest.approx(np.abs(vertex.residuals(X, LOSS)).sum(), rel=1e-8)
    generator = np.random.default_rng(0)
    for size in (1e-7, 1e-5, 1e-3, 1e-1):
        for _ in range(100):
            values = vertex.vector() * np.exp(size * generator.normal(size=5))
            near = chinchilla(dict(zip(chinchilla.parameters, values, strict=True)), X)
            assert np.abs(np.log(LOSS / near)).sum() > vertex.objective_value


def test_a_vertex_is_reached_from_far_away(vertex: Fit) -> None:
    """From half its exponents and a loss many times too high: linear programs of their own would overshoot."""
    for factors in (np.array([1.0, 1.0, 1.0, 0.5, 0.5]), np.array([0.5, 1.0, 1.0, 1.5, 1.5])):
        start = theta_from_values(chinchilla, vertex.vector() * factors)
        found = descend_to_vertex(chinchilla, True, X, LOSS, np.ones(len(LOSS)), start, vertex.box)
        np.testing.assert_allclose(found, theta_from_values(chinchilla, vertex.vector()), rtol=1e-8)


def test_a_fit_ends_at_an_active_bound(vertex: Fit) -> None:
    least = 1.05 * vertex.values["E"]
    bounded = fit_law(chinchilla, X, LOSS, lad, bounds={"E": (least, 10.0)})
    assert bounded.bounds_hit == ("E",)
    np.testing.assert_allclose(bounded.vector(), fit_law(chinchilla, X, LOSS, lad, fixed={"E": least}).vector())
    assert zeros(bounded, X, LOSS) == 4


def test_the_weight_of_a_point_is_the_number_of_its_copies() -> None:
    weights = np.random.default_rng(1).integers(0, 4, len(LOSS))
    fit = fit_law(chinchilla, X, LOSS, lad, weights=weights)
    copied = fit_law(chinchilla, {name: np.repeat(v, weights) for name, v in X.items()}, np.repeat(LOSS, weights), lad)
    np.testing.assert_allclose(fit.vector(), copied.vector(), rtol=1e-8)
    assert fit.objective_value == pytest.approx(copied.objective_value, rel=1e-8)


def test_an_outlier_moves_nothing(vertex: Fit) -> None:
    far = int(np.argmax(vertex.residuals(X, LOSS)))
    spoilt = np.where(np.arange(len(LOSS)) == far, 3 * LOSS, LOSS)
    np.testing.assert_allclose(fit_law(chinchilla, X, spoilt, lad).vector(), vertex.vector(), rtol=1e-8)


def test_besiroglus_printed_point(shared_data: Path) -> None:
    """Besiroglu et al. 2024 print least absolute deviations, to within one unit of each last digit."""
    table = public.PUBLIC_TABLES["chinchilla_240"].read(shared_data)
    loss = table["loss"].to_numpy()
    fit = fit_law(chinchilla, table, loss, lad)
    assert zeros(fit, {name: table[name].to_numpy() for name in chinchilla.columns}, loss) == 5
    printed = {"A": (482.01, 0.01), "B": (2085.43, 0.01), "E": (1.8169, 1e-4)}
    printed |= {"alpha": (0.3478, 1e-4), "beta": (0.3659, 1e-4)}
    for name, (value, unit) in printed.items():
        assert fit.values[name] == pytest.approx(value, abs=unit), name
