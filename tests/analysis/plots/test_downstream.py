from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.downstream.accuracy_models import BITS_SIGMOID, COMPUTE
from analysis.downstream.decisions import decision_accuracy
from analysis.downstream.study import Study, studies
from analysis.plots import downstream
from analysis.plots.style import DARK, LIGHT
from tests.analysis.downstream.test_decisions import make_recipe_table
from tests.support.figure_style import follows_the_style
from tests.support.task_tables import flat_accuracy, grid_of_cells, make_task_table, rising_accuracy


@pytest.fixture(scope="module")
def found() -> list[Study]:
    rows = make_task_table(
        {"addition": flat_accuracy, "cloze": lambda n, d: 0.9 * rising_accuracy(n, d), "copy": rising_accuracy}, 1
    )
    return studies(rows, holdout="largest", models=(COMPUTE, BITS_SIGMOID), draws=40)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_figures_follow_the_style(found: list[Study], theme) -> None:
    for name, figure in downstream.figures(found, theme=theme).items():
        interval = name != "downstream_signal"
        follows_the_style(figure, intervals=interval, held_out=name == "downstream_by_compute", theme=theme)
        assert to_hex(figure.get_facecolor()) == theme.paper


def test_every_task_has_a_panel_that_says_its_verdict_chance_and_ceiling(found: list[Study]) -> None:
    figure = downstream.by_compute(found)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [study.accuracy_forecast is None for study in found] == [True, False, False]
    assert len({study.verdict for study in found}) == 2
    for axes, study in zip(panels, found, strict=True):
        assert axes.get_title(loc="left") == f"{study.task}: {study.verdict}"
        said = " ".join(text.get_text() for text in axes.texts)
        assert "chance 0.25" in said
        assert "ceiling 1" in said
        curves = [line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2]
        assert bool(curves) == (study.accuracy_forecast is not None), "a law where there is one"
        assert axes.get_ylim()[0] <= 0
    limits = {tuple(np.round(np.log10(axes.get_xlim()), 6)) for axes in panels}
    assert len(limits) == 1, "one compute axis for all"


def test_points_bars_band_and_diamond_are_where_the_numbers_are(found: list[Study]) -> None:
    study = found[-1]
    (axes,) = downstream.by_compute(study).axes
    runs = next(c for c in axes.collections if len(c.get_offsets()) == len(study.points))
    np.testing.assert_allclose(runs.get_offsets(), study.points[["flops", "accuracy"]].to_numpy())
    diamond = next(c for c in axes.collections if c.get_label() == "held out")
    np.testing.assert_allclose(diamond.get_offsets(), study.held_out[["flops", "accuracy"]].to_numpy())
    band = next(c for c in axes.collections if c.get_label() == "interval").get_paths()[0].vertices
    curve = study.curve()
    assert band[:, 1].min() == pytest.approx(curve["low"].min())
    assert band[:, 1].max() == pytest.approx(curve["high"].max())


def test_the_second_step_is_drawn_against_bits_per_byte(found: list[Study]) -> None:
    assert found[-1].bits_model is not None
    (axes,) = downstream.by_bits(found[-1]).axes
    low, high = sorted(axes.get_xlim())
    assert axes.xaxis_inverted(), "better to the right"
    bits = found[-1].points["bits_per_byte"]
    assert low < bits.min()
    assert high > bits.max()
    without = [study for study in found if study.bits_model is None]
    assert "downstream_by_bits" not in downstream.figures(without)


def test_decisions_are_drawn_with_a_coin_and_intervals() -> None:
    rows = pd.concat(
        [make_recipe_table(name, shift, seed) for seed, (name, shift) in enumerate([("a", 0.0), ("b", 0.3)])]
    )
    figure = downstream.decision_accuracy([decision_accuracy(rows, "recipe", "t"), decision_accuracy(rows, "recipe")])
    follows_the_style(figure)
    (axes,) = figure.axes
    assert [0.5, 0.5] in [list(line.get_ydata()) for line in axes.lines]
    labels = {text.get_text() for text in axes.texts} - {""}
    assert len(labels) == 4, "a coin, and the three ways to decide"


def test_a_task_whose_noise_is_unknown_has_no_place_among_signals() -> None:
    rows = make_task_table({"addition": flat_accuracy, "cloze": flat_accuracy}, 0, cells=grid_of_cells(3, 3))
    known = studies(rows)
    unknown = studies(rows.drop(columns="cloze/accuracy_stderr"))
    (axes,) = downstream.signal_to_noise(unknown).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["addition"]
    assert np.isfinite(axes.get_xlim()).all()
    assert "cloze" in said(downstream.signal_to_noise(unknown)), "named in the note"
    assert unknown[1].verdict != known[1].verdict
    assert unknown[1].verdict in downstream.by_compute(unknown[1]).axes[0].get_title(loc="left")
    assert "downstream_signal" not in downstream.figures(unknown[1:])


def said(figure: Figure) -> str:
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    return " ".join(text.get_text() for text in texts)
