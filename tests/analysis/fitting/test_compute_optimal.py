from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from analysis.fitting import compute_optimal
from analysis.laws import chinchilla
from tests.conftest import PLANTED

BUDGETS = np.geomspace(1e17, 1e25, 5)


def test_closed_form_and_bisection_agree() -> None:
    numeric = dataclasses.replace(chinchilla, optimum=None)
    closed, searched = (compute_optimal.optimal_allocation(law, PLANTED, BUDGETS) for law in (chinchilla, numeric))
    np.testing.assert_allclose(closed, searched, rtol=1e-6)
    assert compute_optimal.allocation_exponent(numeric, PLANTED, 1e21) == pytest.approx(
        compute_optimal.allocation_exponent(chinchilla, PLANTED, 1e21)
    )
    assert compute_optimal.allocation_exponent(chinchilla, PLANTED, 1e21) == pytest.approx(0.37 / 0.72)


def test_the_frontier_spends_the_budget_where_loss_is_lowest() -> None:
    params, tokens = compute_optimal.optimal_allocation(chinchilla, PLANTED, BUDGETS)
    np.testing.assert_allclose(6 * params * tokens, BUDGETS)
    best = chinchilla(PLANTED, {"params": params, "tokens": tokens})
    for factor in (0.97, 1.03):
        moved = chinchilla(PLANTED, {"params": params * factor, "tokens": tokens / factor})
        assert (moved > best).all()


def test_published_chinchilla_at_its_own_budget() -> None:
    """Hoffmann et al.'s own constants at Chinchilla's budget, 5.76e23 FLOPs: their approach 3 asks for 40 billion."""
    values = {
        "E": np.exp(0.5267228),
        "A": np.exp(6.0073404),
        "B": np.exp(6.0179186),
        "alpha": 0.33917084,
        "beta": 0.2849083,
    }
    params, tokens = compute_optimal.optimal_allocation(chinchilla, values, 5.76e23)
    assert params == pytest.approx(40e9, rel=0.02)
    assert tokens == pytest.approx(5.76e23 / 6 / params)
