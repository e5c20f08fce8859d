"""Variable projection: the inner solution against scipy's, the outer search against fit_law."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import nnls

from analysis.fitting.fit import fit_law, mse
from analysis.fitting.variable_projection import fit_separable, nonnegative_least_squares, project_linear
from analysis.laws import chinchilla, surface
from analysis.tables import public
from tests.conftest import PLANTED, simulated


def test_coefficients_are_those_of_nonnegative_least_squares() -> None:
    """On random problems whose free solution has negative coefficients as often as not, with weights and scales."""
    generator = np.random.default_rng(0)
    basis = generator.normal(size=(300, 12, 3)) * np.array([1e-3, 1.0, 1e4])
    target, weight = generator.normal(size=(300, 12)), generator.uniform(0, 3, (300, 12))
    with jax.enable_x64(True):
        found, values = jax.device_get(jax.jit(jax.vmap(nonnegative_least_squares))(basis, target, weight))
    held = np.sum(found == 0, axis=1)
    assert set(held) == {0, 1, 2, 3}
    for b, t, w, c, value in zip(basis, target, weight, found, values, strict=True):
        scale = np.linalg.norm(b, axis=0)
        expected, length = nnls(b / scale * np.sqrt(w)[:, None], t * np.sqrt(w))
        np.testing.assert_allclose(c * scale, expected, atol=1e-8)
        assert value == pytest.approx(length**2, rel=1e-8)


def projected(y: np.ndarray, weight: np.ndarray, alpha: np.ndarray) -> dict[str, np.ndarray]:
    table = simulated()
    x = {"params": table["params_matmul"].to_numpy(), "tokens": table["tokens"].to_numpy()}
    settings = {"alpha": alpha, "beta": np.full(len(alpha), PLANTED["beta"])}
    return project_linear(chinchilla, ("E", "A", "B"), settings, x, y, weight)


def test_the_linear_parameters_are_the_weighted_least_squares_of_relative_residuals() -> None:
    """At each setting of the exponents; points of weight zero have no influence."""
    table = simulated(5e-3)
    y = table["loss"].to_numpy()
    weight = np.where(np.arange(len(y)) % 7 == 0, 0.0, np.linspace(1, 3, len(y)))
    alphas = np.array([PLANTED["alpha"], 0.2])
    found = projected(np.where(weight > 0, y, 50.0), weight, alphas)
    for index, alpha in enumerate(alphas):
        powers = [np.ones(len(y)), table["params_matmul"] ** -alpha, table["tokens"] ** -PLANTED["beta"]]
        basis = np.stack(powers, 1) * (np.sqrt(weight) / y)[:, None]
        scale = np.linalg.norm(basis, axis=0)
        expected = nnls(basis / scale, np.sqrt(weight))[0] / scale
        np.testing.assert_allclose([found[name][index] for name in ("E", "A", "B")], expected, rtol=1e-8)


def test_a_zero_coefficient_is_replaced_by_a_small_start() -> None:
    """These losses have a floor of zero, whose logarithm is searched all the same."""
    table = simulated()
    y = PLANTED["A"] / table["params_matmul"].to_numpy() ** PLANTED["alpha"]
    found = projected(y, np.ones(len(y)), np.array([PLANTED["alpha"] / 2]))
    assert 0 < found["E"][0] < 0.5 * y.max()
    assert 0 < found["B"][0] * table["tokens"].min() ** -PLANTED["beta"] < 0.5 * y.max()


@pytest.mark.slow
def test_the_optimum_is_that_of_fit_law(shared_data: Path) -> None:
    """On two public tables in one, each selected by weights, so that both share one compiled program."""
    tables = [public.PUBLIC_TABLES[name].read(shared_data) for name in ("gadre_c4_original", "datablations_1epoch")]
    both = pd.concat(tables, keys=range(2))
    for index, table in enumerate(tables):
        chosen = (both.index.get_level_values(0) == index).astype(float)
        values, squares = fit_separable(chinchilla, both, both["loss"], chosen)
        fit = fit_law(chinchilla, table, table["loss"].to_numpy(), mse)
        assert squares == pytest.approx(fit.objective_value, rel=1e-8)
        np.testing.assert_allclose([values[name] for name in chinchilla.parameters], fit.vector(), rtol=1e-4)


def test_a_law_that_is_not_separable_is_an_error() -> None:
    with pytest.raises(ValueError, match="kaplan"):
        fit_separable(surface.kaplan, {"params": [1e8], "tokens": [1e9]}, [3.0])
