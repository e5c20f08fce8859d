from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from analysis.fitting import compute_optimal
from analysis.forecasting import saved_fit
from analysis.plots import surface
from analysis.tables.results import select_points
from tests.conftest import PLANTED, simulated


@pytest.fixture(scope="module")
def fit() -> saved_fit.SavedFit:
    return saved_fit.build_saved_fit(
        select_points(simulated(3e-3)), saved_fit.FitSettings(holdout="largest", draws=64), {"path": "", "sha256": ""}
    )


def lines(figure) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.array(line.get_data()) for line in figure.axes[0].lines}


def test_isoflop_slices_have_their_minimum_on_the_frontier(fit: saved_fit.SavedFit) -> None:
    drawn = lines(surface.isoflop(fit))
    best, lowest = drawn["frontier"]
    axes = surface.isoflop(fit).axes[0]
    whole = [np.array(line.get_data()) for line in axes.lines if line.get_linewidth() == 0.8]
    assert len(whole) == len(best) == surface.SLICES
    for (x, y), n, loss in zip(whole, best, lowest, strict=True):
        assert y.min() == pytest.approx(loss, rel=1e-4)
        assert x[np.argmin(y)] == pytest.approx(n, rel=0.05)
    budgets = np.array([float(label) for label in drawn if label[0].isdigit()])
    counted_by_6 = budgets * 6 / 6.2
    np.testing.assert_allclose(
        best, compute_optimal.optimal_allocation(fit.law, fit.values, counted_by_6)[0], rtol=1e-3
    )


def test_the_frontier_is_inside_its_interval_and_beside_the_planted_one(fit: saved_fit.SavedFit) -> None:
    budgets = np.geomspace(1e18, 1e21, 7)
    low, high = surface.optimal_params_interval(fit, budgets)
    best, tokens, _ = surface.optimal_point(fit, budgets)
    assert np.all((low < best) & (best < high))
    np.testing.assert_allclose(6.2 * best * tokens, budgets)
    planted, _ = compute_optimal.optimal_allocation(fit.law, PLANTED, budgets * 6 / 6.2)
    assert np.all((low < planted) & (planted < high))


def test_the_frontier_goes_ten_times_beyond_the_runs_dashed_there(fit: saved_fit.SavedFit) -> None:
    axes = surface.frontier(fit).axes[0]
    inside, beyond, rule = (np.array(line.get_data()) for line in axes.lines)
    assert inside[0].max() <= fit.points["flops"].max() < beyond[0].min()
    assert beyond[0].max() == pytest.approx(surface.AHEAD * fit.held_out["flops"].max())
    np.testing.assert_allclose(rule[0] / (6.2 * rule[1] ** 2), surface.RULE)


def test_contours_are_the_law_and_dots_the_runs(fit: saved_fit.SavedFit) -> None:
    axes = surface.surface(fit).axes[0]
    contours = next(c for c in axes.collections if hasattr(c, "levels"))
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        at = path.vertices
        if len(at):
            np.testing.assert_allclose(fit.predict({"params": at[:, 0], "tokens": at[:, 1]}), level, rtol=2e-3)
    dots = [c for c in axes.collections if isinstance(c, PathCollection) and c.get_label() != "held out"]
    np.testing.assert_allclose(np.asarray(dots[0].get_offsets()), fit.points[["params", "tokens"]])
