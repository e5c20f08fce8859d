from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import simulated
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from analysis import optimum, plots, results, saved
from analysis.results import fit_points


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> saved.SavedFit:
    folder = tmp_path_factory.mktemp("plots")
    results.write(simulated(3e-3), folder)
    settings = saved.Settings(holdout="largest", draws=64)
    return saved.build(fit_points(simulated(3e-3)), settings, {"path": "results.parquet", "sha256": ""})


def scatter(axes: Axes, label: str = "") -> np.ndarray:
    """Offsets of the one scatter with that label."""
    found = [
        c for c in axes.collections if isinstance(c, PathCollection) and str(c.get_label()).startswith(label or "_")
    ]
    assert len(found) == 1
    return np.asarray(found[0].get_offsets())


@pytest.mark.parametrize(
    ("figure", "along", "by"),
    [(plots.loss_by_tokens, "tokens", "params"), (plots.loss_by_params, "params", "tokens")],
)
def test_surface_curves_are_the_law_and_points_the_runs(
    fit: saved.SavedFit, figure: Callable[[saved.SavedFit], Figure], along: str, by: str
) -> None:
    axes = figure(fit).axes[0]
    np.testing.assert_allclose(scatter(axes), fit.points[[along, "loss"]])
    curves = {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    levels = sorted({*fit.points[by], *fit.held_out[by]})
    assert len(curves) == len(levels)
    for level in levels:
        x, y = curves[f"{level:.6g}"].get_data()
        np.testing.assert_allclose(y, fit.predict({along: np.asarray(x), by: np.full(len(x), level)}))


def test_the_held_out_run_stands_on_its_interval(fit: saved.SavedFit) -> None:
    axes = plots.loss_by_tokens(fit).axes[0]
    row = fit.forecast(fit.held_out)[0]
    np.testing.assert_allclose(scatter(axes, "held out"), [[row["tokens"], row["measured"]]])
    bars = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert len(bars) == 1
    np.testing.assert_allclose(bars[0].get_segments()[0], [[row["tokens"], row["low"]], [row["tokens"], row["high"]]])


def test_isoflop_slices_have_their_minimum_on_the_frontier(fit: saved.SavedFit) -> None:
    axes = plots.isoflop(fit).axes[0]
    lines = {str(line.get_label()): np.array(line.get_data()) for line in axes.lines}
    best, lowest = lines.pop("frontier")
    whole = [np.array(line.get_data()) for line in axes.lines if str(line.get_label()).startswith("_")]
    assert len(whole) == len(best) == 5
    for (x, y), n, loss in zip(whole, best, lowest, strict=True):
        assert y.min() == pytest.approx(loss, rel=1e-4)
        assert x[np.argmin(y)] == pytest.approx(n, rel=0.05)
    budgets = [float(label) for label in lines if not label.startswith("_")]
    np.testing.assert_allclose(best, optimum.frontier(fit.law, fit.values, budgets)[0], rtol=1e-3)


def test_residuals_are_measured_over_predicted(fit: saved.SavedFit) -> None:
    axes = plots.residuals(fit).axes[0]
    points = scatter(axes)
    np.testing.assert_allclose(points[:, 0], fit.points["flops"])
    np.testing.assert_allclose(points[:, 1], 100 * (fit.points["loss"] / fit.predict(fit.points) - 1))
    assert len(scatter(axes, "held out")) == 1


def test_files_are_whole_and_equal_figures_equal_bytes(fit: saved.SavedFit, tmp_path: Path) -> None:
    first, second = plots.save_all(fit, tmp_path / "a"), plots.save_all(fit, tmp_path / "b")
    assert "sensitivity" not in plots.drawable(fit), "this fit has no panel"
    assert {path.name for path in first} == {f"{n}.{kind}" for n in plots.drawable(fit) for kind in ("svg", "png")}
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"<?xm") for path in first)


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (33_000, "33k"), (217_280, "217k"), (999_960, "1M"), (1.2e9, "1.2B"), (2e12, "2T")],
)
def test_counts_read_as_people_say_them(count: float, text: str) -> None:
    assert plots.compact(count) == text


def test_scientific() -> None:
    assert plots.scientific(1.2e15) == "1.2×10¹⁵"
    assert plots.scientific(1e-3) == "10⁻³"
