"""Least absolute deviations reach the vertex: as many residuals of nought as parameters, and no lower sum nearby."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import PLANTED, simulated

from analysis import public
from analysis.absolute import polish
from analysis.fit import Fit, fit_law, lad, mse_log
from analysis.laws import chinchilla
from analysis.solve import searched

TABLE = simulated(5e-3)
X = {"params": TABLE["params_matmul"].to_numpy(), "tokens": TABLE["tokens"].to_numpy()}
LOSS = TABLE["loss"].to_numpy()


@pytest.fixture(scope="module")
def vertex() -> Fit:
    return fit_law(chinchilla, X, LOSS, lad)


def zeros(fit: Fit, x: dict[str, np.ndarray], y: np.ndarray) -> int:
    return int(np.sum(np.abs(fit.residuals(x, y)) < 1e-10))


def test_as_many_residuals_are_zero_as_parameters_are_free(vertex: Fit) -> None:
    assert zeros(vertex, X, LOSS) == 5
    held = fit_law(chinchilla, X, LOSS, lad, fixed={"E": 1.6})
    assert held.values["E"] == pytest.approx(1.6, rel=1e-15)
    assert zeros(held, X, LOSS) == 4
    assert held.objective_value > vertex.objective_value


def test_no_neighbour_has_a_lower_sum(vertex: Fit) -> None:
    """At any distance, along any direction: a vertex is a minimum to first order."""
    assert vertex.objective_value == pytest.approx(np.abs(vertex.residuals(X, LOSS)).sum(), rel=1e-12)
    generator = np.random.default_rng(0)
    for size in (1e-7, 1e-5, 1e-3, 1e-1):
        for _ in range(100):
            values = vertex.vector() * np.exp(size * generator.normal(size=5))
            near = chinchilla(dict(zip(chinchilla.parameters, values, strict=True)), X)
            assert np.abs(np.log(LOSS / near)).sum() > vertex.objective_value


def test_a_vertex_is_reached_from_afar(vertex: Fit) -> None:
    """From the optimum of squares, which is another point."""
    start = searched(chinchilla, fit_law(chinchilla, X, LOSS, mse_log).vector())
    assert np.abs(start - searched(chinchilla, vertex.vector())).max() > 1e-2
    found = polish(chinchilla, True, X, LOSS, np.ones(len(LOSS)), start, vertex.box)
    np.testing.assert_allclose(found, searched(chinchilla, vertex.vector()), rtol=1e-8)


def test_an_outlier_moves_nothing_and_a_point_of_no_weight_is_not_seen(vertex: Fit) -> None:
    far = int(np.argmax(vertex.residuals(X, LOSS)))
    spoilt = np.where(np.arange(len(LOSS)) == far, 3 * LOSS, LOSS)
    np.testing.assert_allclose(fit_law(chinchilla, X, spoilt, lad).vector(), vertex.vector(), rtol=1e-8)
    weights = np.where(np.arange(len(LOSS)) < 3, 0.0, 1.0)
    fit = fit_law(chinchilla, X, np.where(weights > 0, LOSS, PLANTED["E"]), lad, weights=weights)
    kept = {name: column[3:] for name, column in X.items()}
    np.testing.assert_allclose(fit.vector(), fit_law(chinchilla, kept, LOSS[3:], lad).vector(), rtol=1e-8)


def test_besiroglus_printed_point(shared_data: Path) -> None:
    """Besiroglu et al. 2024 print least absolute deviations, to within one unit of each last digit."""
    table = public.TABLES["chinchilla_240"].read(shared_data)
    loss = table["loss"].to_numpy()
    fit = fit_law(chinchilla, table, loss, lad)
    assert zeros(fit, {name: table[name].to_numpy() for name in chinchilla.columns}, loss) == 5
    printed = {"A": (482.01, 0.01), "B": (2085.43, 0.01), "E": (1.8169, 1e-4)}
    printed |= {"alpha": (0.3478, 1e-4), "beta": (0.3659, 1e-4)}
    for name, (value, unit) in printed.items():
        assert fit.values[name] == pytest.approx(value, abs=unit), name
