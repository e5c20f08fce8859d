from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from analysis.forecasting import saved_fit
from analysis.plots import fit as fit_plot
from analysis.plots import style
from analysis.plots.style import LIGHT
from analysis.tables import results
from analysis.tables.results import select_points
from tests.conftest import simulated
from tests.support.figure_style import follows_the_style


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> saved_fit.SavedFit:
    folder = tmp_path_factory.mktemp("fit_plot")
    results.write_table(simulated(3e-3), folder)
    settings = saved_fit.FitSettings(holdout="largest", draws=64)
    return saved_fit.build_saved_fit(
        select_points(simulated(3e-3)), settings, {"path": "results.parquet", "sha256": ""}
    )


def scatter(axes: Axes, label: str = "") -> np.ndarray:
    """Offsets of the one scatter with that label."""
    found = [
        c for c in axes.collections if isinstance(c, PathCollection) and str(c.get_label()).startswith(label or "_")
    ]
    assert len(found) == 1
    return np.asarray(found[0].get_offsets())


@pytest.mark.parametrize(
    ("figure", "along", "by"),
    [(fit_plot.loss_by_tokens, "tokens", "params"), (fit_plot.loss_by_params, "params", "tokens")],
)
def test_surface_curves_are_the_law_and_points_the_runs(
    fit: saved_fit.SavedFit, figure: Callable[[saved_fit.SavedFit], Figure], along: str, by: str
) -> None:
    axes = figure(fit).axes[0]
    np.testing.assert_allclose(scatter(axes), fit.points[[along, "loss"]])
    curves = {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    levels = sorted({*fit.points[by], *fit.held_out[by]})
    assert len(curves) == len(levels)
    for level in levels:
        x, y = curves[f"{level:.6g}"].get_data()
        np.testing.assert_allclose(y, fit.predict({along: np.asarray(x), by: np.full(len(x), level)}))


def test_the_held_out_run_stands_on_its_interval(fit: saved_fit.SavedFit) -> None:
    axes = fit_plot.loss_by_tokens(fit).axes[0]
    row = fit.forecast(fit.held_out)[0]
    np.testing.assert_allclose(scatter(axes, "held out"), [[row["tokens"], row["measured"]]])
    bars = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert len(bars) == 1
    np.testing.assert_allclose(bars[0].get_segments()[0], [[row["tokens"], row["low"]], [row["tokens"], row["high"]]])


def test_residuals_are_measured_over_predicted(fit: saved_fit.SavedFit) -> None:
    axes = fit_plot.residuals(fit).axes[0]
    points = scatter(axes)
    np.testing.assert_allclose(points[:, 0], fit.points["flops"])
    np.testing.assert_allclose(points[:, 1], 100 * (fit.points["loss"] / fit.predict(fit.points) - 1))
    assert len(scatter(axes, "held out")) == 1


def test_a_fit_without_a_panel_has_no_figure_of_it(fit: saved_fit.SavedFit) -> None:
    assert set(fit_plot.available_figures(fit)) == set(fit_plot.FIGURES) - {"sensitivity"}


def test_files_are_whole_and_equal_figures_equal_bytes(fit: saved_fit.SavedFit, tmp_path: Path) -> None:
    """Two of them, to be quick."""
    first, second = (
        [
            style.save(fit_plot.FIGURES[name](fit, LIGHT), tmp_path / folder / f"{name}.{kind}")
            for name in ("loss_by_tokens", "residuals")
            for kind in ("svg", "png")
        ]
        for folder in "ab"
    )
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"<?xm") for path in first)


@pytest.mark.parametrize("name", fit_plot.FIGURES)
def test_every_figure_follows_the_style(fit: saved_fit.SavedFit, name: str) -> None:
    rows = [{"dial": "as fitted", "setting": "params_matmul", "n": 29, "forecast": 1.9} | fit.values]
    rows += [{**rows[0], "dial": "objective", "setting": "mse", "alpha": 0.36}]
    facts = {"exponent_a": fit.document["exponent_a"]}
    whole = saved_fit.SavedFit({**fit.document, "sensitivity": [row | facts for row in rows]})
    follows_the_style(fit_plot.FIGURES[name](whole, LIGHT), held_out=name != "sensitivity" and name != "isoflop")


def test_bands_hold_the_curve_and_end_where_the_forecast_has_them(fit: saved_fit.SavedFit) -> None:
    """A band is the interval that `forecast` gives, so that a held-out run's bar is as long as the band is wide."""
    axes = fit_plot.loss_by_tokens(fit).axes[0]
    bands = [c for c in axes.collections if c.get_label() == "interval" and not isinstance(c, LineCollection)]
    sizes = sorted({*fit.points["params"], *fit.held_out["params"]})
    assert len(bands) == len(sizes)
    row = fit.forecast(fit.held_out)[0]
    outline = bands[sizes.index(row["params"])].get_paths()[0].vertices
    near = outline[np.abs(np.log(outline[:, 0] / row["tokens"])) < 0.06]
    assert near[:, 1].min() == pytest.approx(row["low"], rel=0.01)
    assert near[:, 1].max() == pytest.approx(row["high"], rel=0.01)
