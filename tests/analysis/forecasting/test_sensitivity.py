from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import api
from analysis.fitting.fit import Fit, Objective, compute_weights, fit_law, huber, lad, mse, mse_log
from analysis.forecasting import sensitivity
from analysis.forecasting.saved_fit import FitSettings, SavedFit
from analysis.laws import chinchilla
from analysis.tables.results import select_points
from tests.conftest import simulated

pytestmark = pytest.mark.usefixtures("no_rivals")

ODD = 11  # the place of a run whose loss is 10 % too high
Panel = list[dict[str, Any]]


def noisy() -> pd.DataFrame:
    """Two countings that differ by an embedding, and one run that is off."""
    table = simulated(2e-3, seed=1).assign(params_total=lambda t: t["params_matmul"] + 3e7)
    table.loc[ODD, "loss"] *= 1.1
    return table


@pytest.fixture(scope="module")
def built() -> SavedFit:
    return api.fit(noisy(), settings=FitSettings(draws=4))


@pytest.fixture(scope="module")
def panel(built: SavedFit) -> Panel:
    return sensitivity.build_panel(built, noisy())


def row(panel: Panel, dial: str, setting: str | None = None) -> dict[str, Any]:
    (found,) = [r for r in panel if r["dial"] == dial and setting in (None, r["setting"])]
    return found


def agree(said: dict[str, Any], fit: Fit, points: pd.DataFrame) -> None:
    """The row is that of a fit; its forecast the least loss that ten times the largest compute buys, by search.

    points: every run in that counting. The table's flops are not 6 N D: the budget in 6 N D keeps their usual ratio.
    """
    for name in ("alpha", "beta", "E"):
        assert said[name] == pytest.approx(fit.values[name], rel=1e-4)
    exponent = fit.values["beta"] / (fit.values["alpha"] + fit.values["beta"])
    assert said["exponent_a"] == pytest.approx(exponent, rel=1e-4)
    budget = 10 * points["flops"].max() * np.median(6 * points["params"] * points["tokens"] / points["flops"])
    sizes = np.geomspace(1e8, 1e11, 10001)
    assert said["forecast"] == pytest.approx(
        fit.predict({"params": sizes, "tokens": budget / 6 / sizes}).min(), rel=1e-5
    )


def test_the_fit_itself_comes_first(built: SavedFit, panel: Panel) -> None:
    assert (panel[0]["dial"], panel[0]["setting"], panel[0]["n"]) == ("as fitted", "params_matmul", 30)
    assert {name: panel[0][name] for name in ("alpha", "beta", "E")} == {
        name: built.values[name] for name in ("alpha", "beta", "E")
    }
    assert panel[0]["exponent_a"] == built.document["exponent_a"]
    points = select_points(noisy()).table
    agree(panel[0], fit_law(chinchilla, points, points["loss"]), points)


def test_the_panel_has_every_kind_of_variant(panel: Panel) -> None:
    assert [(r["dial"], r["setting"]) for r in panel[1:]] == [
        ("counting", "params_total"),
        ("window", "upper half of compute"),
        ("window", "lower half"),
        ("outliers", "1 left out"),
        ("objective", "lad"),
        ("objective", "mse_log"),
        ("objective", "mse"),
        ("objective", "huber 0.01"),
        ("weighting", "C^0.5"),
        ("weighting", "C^1"),
    ]


def test_another_count_of_params_is_a_fit_to_its_column(panel: Panel) -> None:
    points = select_points(noisy(), "params_total").table
    said = row(panel, "counting")
    agree(said, fit_law(chinchilla, points, points["loss"]), points)
    assert said["n"] == 30
    assert abs(said["alpha"] - panel[0]["alpha"]) > 0.01


@pytest.mark.parametrize("half", ["upper half of compute", "lower half"])
def test_a_window_is_a_fit_of_its_runs(panel: Panel, half: str) -> None:
    points = select_points(noisy()).table
    middle = points["flops"].median()
    kept = points[points["flops"] >= middle if half.startswith("upper") else points["flops"] <= middle]
    said = row(panel, "window", half)
    agree(said, fit_law(chinchilla, kept, kept["loss"]), points)
    assert said["n"] == len(kept) == 15


def test_the_variant_without_outliers_is_a_fit_of_the_others(panel: Panel) -> None:
    points = select_points(noisy().drop(index=ODD)).table
    said = row(panel, "outliers")
    agree(said, fit_law(chinchilla, points, points["loss"]), points)
    assert said["n"] == 29


@pytest.mark.parametrize(
    ("setting", "objective"), [("lad", lad), ("mse_log", mse_log), ("mse", mse), ("huber 0.01", huber(1e-2))]
)
def test_another_objective_is_minimised(panel: Panel, setting: str, objective: Objective) -> None:
    points = select_points(noisy()).table
    agree(row(panel, "objective", setting), fit_law(chinchilla, points, points["loss"], objective), points)


def test_another_weighting_is_by_compute(panel: Panel) -> None:
    points = select_points(noisy()).table
    weights = compute_weights(points["flops"], 1.0)
    agree(row(panel, "weighting", "C^1"), fit_law(chinchilla, points, points["loss"], weights=weights), points)


def test_without_an_outlier_or_another_counting_there_is_no_such_row() -> None:
    table = simulated(2e-3, seed=1).drop(columns="params_total")
    built = api.fit(table, settings=FitSettings(draws=4))
    away = np.abs(built.residuals - np.median(built.residuals))
    assert away.max() < 5 * 1.4826 * np.median(away)
    dials = [r["dial"] for r in sensitivity.build_panel(built, table)]
    assert "outliers" not in dials
    assert "counting" not in dials


def test_fixed_parameters_and_held_out_runs_stay_so() -> None:
    table = noisy()
    settings = FitSettings(draws=4, fixed={"alpha": 0.33}, holdout="largest", objective=lad, weight_power=0.5)
    wild = table.assign(loss=table["loss"].where(table["flops"] < table["flops"].max(), 9.0))
    panels = [api.fit(t, settings=settings, panel=True).document["sensitivity"] for t in (table, wild)]
    assert panels[0] == panels[1]
    assert [r["alpha"] for r in panels[0]] == pytest.approx([0.33] * len(panels[0]), rel=1e-8)
    assert [r["n"] for r in panels[0] if r["dial"] in ("as fitted", "counting", "objective")] == [29] * 6
    assert [r["setting"] for r in panels[0] if r["dial"] == "objective"] == [
        "huber 0.001",
        "mse_log",
        "mse",
        "huber 0.01",
    ]
    assert [r["setting"] for r in panels[0] if r["dial"] == "weighting"] == ["C^0", "C^1"]
    points = select_points(table).table.iloc[:-1]
    weights = compute_weights(points["flops"], 0.5)
    again = fit_law(chinchilla, points, points["loss"], huber(), weights=weights, fixed={"alpha": 0.33})
    agree(row(panels[0], "objective", "huber 0.001"), again, points)


def test_a_variant_with_too_few_runs_is_left_out() -> None:
    table = simulated(2e-3).iloc[::4]
    assert len(table) == 8
    dials = {r["dial"] for r in sensitivity.build_panel(api.fit(table, settings=FitSettings(draws=4)), table)}
    assert "window" not in dials
    assert {"counting", "objective", "weighting"} <= dials


def test_the_panel_is_saved_with_the_fit(built: SavedFit, panel: Panel) -> None:
    again = sensitivity.add_panel(built, noisy())
    assert json.loads(again.to_json())["sensitivity"] == panel
    assert {**again.document, "sensitivity": None} == {**built.document, "sensitivity": None}


def test_the_printed_panel_has_every_row_and_says_what_is_forecast(panel: Panel) -> None:
    console = Console(width=200, record=True, quiet=False, file=None, highlight=False)
    with console.capture() as capture:
        console.print(sensitivity.panel_table([*panel, {**panel[0], "dial": "none", "alpha": None, "beta": None}]))
    lines = capture.get().splitlines()
    for said in panel:
        (line,) = [line for line in lines if line.startswith(f"{said['dial']} ") and f" {said['setting']} " in line]
        for name in ("alpha", "beta", "exponent_a", "E", "forecast"):
            assert f"{said[name]:.4g}" in line.split()
        assert line.split()[-1] == str(said["n"])
    assert [line.split().count("-") for line in lines if line.startswith("none ")] == [2]
    caption = " ".join(" ".join(lines).partition("forecast: ")[2].split())
    assert f"at {sensitivity.FORECAST_FACTOR:g}x" in caption
