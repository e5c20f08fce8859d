from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import fit, laws
from analysis.errors import TableError
from analysis.fitting import bootstrap
from analysis.fitting.fit import compute_weights, fit_law, lad
from analysis.forecasting import saved_fit
from analysis.forecasting.law_choice import CANDIDATES, choose
from analysis.forecasting.saved_fit import FitSettings
from analysis.laws import chinchilla, surface
from analysis.tables import results
from analysis.tables.results import select_points
from tests.conftest import PLANTED, ROOT, simulated

QUICK = FitSettings(draws=16, seed=2)
RIVALS = tuple(c for c in CANDIDATES if c.weight_power in (0.0, 1.0))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, saved_fit.SavedFit]:
    folder = tmp_path_factory.mktemp("saved")
    results.write_table(simulated(3e-3), folder)
    settings = saved_fit.FitSettings(holdout="largest", draws=64, seed=3)
    table = folder / "results.parquet"
    origin = {"path": str(table), "sha256": results.hash_source(table, results.read_table(table))}
    table = simulated(3e-3).assign(learning_rate_from="scan: made")
    table.loc[table["flops"].idxmax(), "learning_rate_from"] = "rule: held out"
    return folder, saved_fit.build_saved_fit(select_points(table), settings, origin)


def test_a_fit_says_how_the_learning_rates_of_its_points_were_found(built: tuple[Path, saved_fit.SavedFit]) -> None:
    _, fit = built
    assert fit.document["learning_rates"] == {"scan: made": len(fit.points)}
    assert "learning_rate_from" not in fit.points


def test_a_fit_read_back_forecasts_the_same(built: tuple[Path, saved_fit.SavedFit]) -> None:
    folder, fit = built
    loaded = saved_fit.read_fit(saved_fit.write_fit(fit, folder / "fit.json"))
    assert loaded.forecast(loaded.held_out) == fit.forecast(fit.held_out)
    assert loaded.values == fit.values
    assert loaded.document["table"]["path"] == "results.parquet", "relative to the fit"
    assert loaded.document["table"]["sha256"] == sha256((folder / "results.parquet").read_bytes()).hexdigest()


def test_the_settings_are_saved() -> None:
    settings = FitSettings(fixed={"E": 1.7}, bounds={"alpha": (0.1, np.float64("inf"))}, draws=16, objective=lad)
    document = json.loads(
        saved_fit.build_saved_fit(select_points(simulated(3e-3)), settings, {"path": "", "sha256": ""}).to_json()
    )
    asked = {"objective": "lad", "delta": None, "weight_power": 0.0, "draws": 16}
    assert document["settings"] == asked | {"fixed": {"E": 1.7}, "bounds": {"alpha": "0.1:inf"}}


def test_points_stay_numbers_where_none_is_held_out(built: tuple[Path, saved_fit.SavedFit]) -> None:
    document = built[1].document
    for held in ([], document["held_out"]):
        fit = saved_fit.SavedFit({**document, "held_out": held})
        assert len(fit.held_out) == len(held)
        assert pd.concat([fit.points, fit.held_out]).dtypes.equals(fit.points.dtypes)


def test_a_forecast_is_the_law_and_its_interval(built: tuple[Path, saved_fit.SavedFit]) -> None:
    _, fit = built
    row = fit.forecast(fit.held_out)[0]
    held = fit.held_out.iloc[0]
    predicted = laws.chinchilla(fit.values, {"params": held["params"], "tokens": held["tokens"]})
    assert row["predicted"] == pytest.approx(float(predicted))
    assert row["measured"] == held["loss"]
    assert row["relative_error"] == pytest.approx(float(predicted) / held["loss"] - 1)
    low, high = fit.predictive.interval(predicted, fit.held_out, fit.held_out["flops"], 0.9, seed=3)
    assert (row["low"], row["high"]) == (low[0], high[0])
    assert low[0] < row["predicted"] < high[0]


def test_standard_errors_are_those_of_the_draws(built: tuple[Path, saved_fit.SavedFit]) -> None:
    _, fit = built
    assert fit.draws.shape == (64, 5)
    for i, name in enumerate(laws.chinchilla.parameters):
        assert fit.document["standard_errors"][name] == pytest.approx(np.std(fit.draws[:, i], ddof=1), rel=1e-6)
    a = fit.draws[:, 4] / (fit.draws[:, 3] + fit.draws[:, 4])
    assert fit.document["standard_errors"]["exponent_a"] == pytest.approx(np.std(a, ddof=1), rel=1e-6)


def test_hold_out_rules() -> None:
    points = select_points(simulated()).table
    fitted, held = saved_fit.hold_out(points, "largest")
    assert held["flops"].tolist() == [points["flops"].max()]
    assert len(fitted) == 29
    fitted, held = saved_fit.hold_out(points, "1e19")
    assert (fitted["flops"] < 1e19).all()
    assert (held["flops"] >= 1e19).all()
    assert len(held) > 1
    assert len(saved_fit.hold_out(points, "none")[1]) == 0
    assert len(saved_fit.hold_out(points, "10,000 PFLOPs")[1]) == len(held)
    with pytest.raises(TableError, match="--holdout biggest"):
        saved_fit.hold_out(points, "biggest")
    most = re.escape(f"{points['flops'].max():.4g}")
    with pytest.raises(TableError, match=rf"--holdout 1e30.*{most}"):
        saved_fit.hold_out(points, "1e30")


def test_the_held_out_run_changes_nothing_in_the_values() -> None:
    """With another loss of the held-out run, every value is the same bit for bit."""
    tables = [simulated(3e-3), simulated(3e-3)]
    largest = tables[1]["flops"].idxmax()
    tables[1].loc[largest, "loss"] *= 3
    values = []
    for table in tables:
        fitted, held = saved_fit.hold_out(select_points(table).table, "largest")
        assert held["run_id"].tolist() == [table["run_id"][largest]]
        values.append(saved_fit.fit_law(laws.chinchilla, fitted, fitted["loss"].to_numpy()).values)
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "text", ['{"schema": 1', "[]", '{"schema": 99, "law": "chinchilla"}', '{"schema": 1, "law": "x"}']
)
def test_a_file_that_is_no_fit_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(TableError, match=r"fit\.json"):
        saved_fit.read_fit(tmp_path / "fit.json")


def edit_draws(document: dict[str, Any]) -> None:
    document["draws"][1].append(1.0)


def edit_member(document: dict[str, Any]) -> None:
    document["predictive"]["members"][0]["draws"][0] = [1.0]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d.update(points=[]), "points"),
        (lambda d: d.update(level=1.5), "level"),
        (lambda d: d.update(seed=-1), "seed"),
        (lambda d: d["points"][2].update(loss=None), r"points\[2\]\.loss"),
        (lambda d: d["parameters"].pop("E"), "parameters"),
        (lambda d: d["parameters"].update(E="1"), r"parameters\.E"),
        (lambda d: d["intervals"].pop("A"), "intervals"),
        (lambda d: d["table"].update(path=None), r"table\.path"),
        (lambda d: d.update(formula=math.inf), "Infinity"),
        (lambda d: d["predictive"]["chances"].append(1.0), r"predictive\.chances"),
        (lambda d: d["predictive"].update(members={}), r"predictive\.members"),
        (edit_draws, r"draws\[1\]"),
        (edit_member, r"predictive\.members\[0\]\.draws\[0\]"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, edit: Callable[[dict[str, Any]], object], named: str) -> None:
    path = tmp_path / "fit.json"
    document = json.loads((ROOT / "tests" / "golden" / "earlier_layout" / "fit.json").read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(TableError, match=rf"fit\.json: .*{named}.*scaling fit"):
        saved_fit.read_fit(path)


def test_too_few_points_after_the_holdout_is_an_error() -> None:
    points = select_points(simulated().iloc[:7])
    with pytest.raises(TableError, match=r"\b[0-5]\b.*\b5\b.*--holdout"):
        saved_fit.build_saved_fit(
            points, saved_fit.FitSettings(holdout=str(points.table["flops"].iloc[3]), draws=4), {}
        )


def test_the_file_is_plain_json(built: tuple[Path, saved_fit.SavedFit], tmp_path: Path) -> None:
    document = json.loads(saved_fit.write_fit(built[1], tmp_path / "fit.json").read_text())
    needed = {"law", "parameters", "standard_errors", "intervals", "exponent_a", "objective", "params_column", "points"}
    assert needed <= set(document)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated(3e-3, seed=1)


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-tests of four candidates, not ten."""
    monkeypatch.setattr(saved_fit, "choose", partial(choose, candidates=RIVALS))


def with_wild_losses(table: pd.DataFrame, held: pd.Series) -> pd.DataFrame:
    """The same runs, with other losses of those held out: from a thousandth to ten times."""
    factors = np.random.default_rng(0).choice([1e-3, 0.5, 10.0], len(table))
    return table.assign(loss=table["loss"] * np.where(held, factors, 1.0))


@pytest.mark.usefixtures("rivals")
@pytest.mark.parametrize(("rule", "count"), [("largest", 1), ("1e19", 10)])
def test_held_out_runs_change_neither_the_choice_nor_the_fit(table: pd.DataFrame, rule: str, count: int) -> None:
    held = table["flops"] >= (table["flops"].max() if rule == "largest" else 1e19)
    assert held.sum() == count
    settings = FitSettings(draws=16, holdout=rule)
    first, second = (fit(t, "chosen", settings).document for t in (table, with_wild_losses(table, held)))
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"table", "held_out"}, "every other entry, to the last bit"
    assert first["n"] == 30 - count
    assert first["choice"]["drift"] is not None
    assert len(first["choice"]["candidates"]) == len(RIVALS) == 4


@pytest.mark.usefixtures("rivals")
def test_a_named_law_is_not_replaced_by_the_choice() -> None:
    """A surface with an interaction: the choice is that law, but Chinchilla where it is named."""
    planted = {**PLANTED, "gamma": 0.15, "B": PLANTED["B"] / 1e8**0.15}
    table = simulated()
    columns = {"params": table["params_matmul"], "tokens": table["tokens"]}
    noise = np.exp(np.random.default_rng(1).normal(0, 1e-3, len(table)))
    table = table.assign(loss=surface.interaction(planted, columns) * noise)
    chosen, named = fit(table, "chosen", QUICK), fit(table, "chinchilla", QUICK)
    assert (chosen.law.name, chosen.document["chosen"]) == ("interaction", True)
    assert (named.law.name, named.document["chosen"]) == ("chinchilla", False)
    assert chosen.document["choice"] == named.document["choice"]
    assert chosen.document["choice"]["chosen"].startswith("interaction huber")
    assert chosen.values["gamma"] == pytest.approx(0.15, abs=0.02)
    assert {member.law.name for member in named.predictive.members} == {"chinchilla", "interaction"}
    points = select_points(table).table
    weights = compute_weights(points["flops"], chosen.document["weight_power"])
    assert chosen.values == fit_law(surface.interaction, points, points["loss"], weights=weights).values


@pytest.mark.usefixtures("rivals")
def test_a_chosen_weighting_applies_to_the_fit_and_its_bootstrap() -> None:
    table = simulated(3e-3, seed=3)
    built = fit(table, "chosen", QUICK)
    assert built.document["choice"]["chosen"] == "chinchilla huber C^1"
    assert built.document["weight_power"] == 1.0
    points = select_points(table).table
    weights = compute_weights(points["flops"], 1.0)
    alone = fit_law(chinchilla, points, points["loss"], weights=weights)
    assert built.values == alone.values
    draws = bootstrap.bootstrap(alone, points, points["loss"], points["cluster"], weights=weights, draws=16, seed=2)
    np.testing.assert_allclose(built.draws, draws, rtol=1e-6)


@pytest.mark.usefixtures("rivals")
def test_settings_reach_the_estimator(table: pd.DataFrame) -> None:
    settings = FitSettings(objective=lad, weight_power=0.5, fixed={"alpha": 0.33}, bounds={"E": (0.5, 1.5)}, draws=8)
    built = fit(table, settings=settings)
    points = select_points(table).table
    weights = compute_weights(points["flops"], 0.5)
    alone = fit_law(
        chinchilla, points, points["loss"], lad, weights=weights, fixed={"alpha": 0.33}, bounds={"E": (0.5, 1.5)}
    )
    assert built.values == alone.values
    assert built.values["alpha"] == pytest.approx(0.33, rel=1e-8)
    assert built.values["E"] == pytest.approx(1.5, rel=1e-8)
    assert built.document["bounds_hit"] == ["E"]
    assert built.document["fixed"] == ["alpha"]
    assert np.ptp(built.draws[:, 3]) < 1e-8, "a held parameter is held in every draw"
    assert (built.draws[:, 0] <= 1.5 * (1 + 1e-8)).all()
    assert built.document["standard_errors"]["alpha"] < 1e-8
    ahead = np.concatenate([member.draws for member in built.predictive.members if member.law is chinchilla])
    assert np.ptp(ahead[:, 3]) < 1e-8, "and in those of a forecast"
    assert (ahead[:, 0] <= 1.5 * (1 + 1e-8)).all()


@pytest.mark.usefixtures("rivals")
def test_fixed_parameters_need_fewer_points(table: pd.DataFrame) -> None:
    four = table.iloc[[0, 7, 14, 29]]
    with pytest.raises(TableError, match=r"\b4\b.*\b5\b"):
        fit(four, settings=QUICK)
    held = {name: PLANTED[name] for name in ("E", "alpha", "beta")}
    built = fit(four, settings=FitSettings(draws=4, fixed=held))
    assert built.document["n"] == 4
    assert {name: built.values[name] for name in held} == pytest.approx(held)


def test_twins_of_a_held_out_run_are_held_out_too() -> None:
    table = simulated(3e-3)
    twin = table.loc[[table["flops"].idxmax()]].assign(run_id="twin", flops=lambda t: t["flops"] * 0.999)
    points = select_points(pd.concat([table, twin], ignore_index=True)).table
    for rule, count in (("largest", 2), (f"{points['flops'].max()}", 2), ("none", 0)):
        fitted, held_out = saved_fit.hold_out(points, rule)
        assert (len(fitted), len(held_out)) == (31 - count, count)
        assert ("twin" in set(held_out["run_id"])) == (count > 0)
