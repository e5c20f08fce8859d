from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import simulated

from analysis import laws, results, saved
from analysis.results import TableError, fit_points


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, saved.SavedFit]:
    folder = tmp_path_factory.mktemp("saved")
    results.write(simulated(3e-3), folder)
    settings = saved.Settings(holdout="largest", draws=64, seed=3)
    table = folder / "results.parquet"
    origin = {"path": str(table), "sha256": results.content_hash(table)}
    fit = saved.build(fit_points(simulated(3e-3)), settings, origin)
    return folder, fit


def test_what_is_read_back_forecasts_the_same(built: tuple[Path, saved.SavedFit]) -> None:
    folder, fit = built
    loaded = saved.load(saved.save(fit, folder / "fit.json"))
    assert loaded.forecast(loaded.held_out) == fit.forecast(fit.held_out)
    assert loaded.values == fit.values
    assert loaded.document["table"]["path"] == "results.parquet", "relative to the fit"
    assert loaded.document["table"]["sha256"] == results.content_hash(folder / "results.parquet")


def test_a_forecast_is_the_law_and_its_interval(built: tuple[Path, saved.SavedFit]) -> None:
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


def test_standard_errors_are_those_of_the_draws(built: tuple[Path, saved.SavedFit]) -> None:
    _, fit = built
    assert fit.draws.shape == (64, 5)
    for i, name in enumerate(laws.chinchilla.parameters):
        assert fit.document["standard_errors"][name] == pytest.approx(np.std(fit.draws[:, i], ddof=1), rel=1e-6)
    a = fit.draws[:, 4] / (fit.draws[:, 3] + fit.draws[:, 4])
    assert fit.document["standard_errors"]["exponent_a"] == pytest.approx(np.std(a, ddof=1), rel=1e-6)


def test_hold_out_rules() -> None:
    points = fit_points(simulated()).table
    fitted, held = saved.hold_out(points, "largest")
    assert held["flops"].tolist() == [points["flops"].max()]
    assert len(fitted) == 29
    fitted, held = saved.hold_out(points, "1e19")
    assert (fitted["flops"] < 1e19).all()
    assert (held["flops"] >= 1e19).all()
    assert len(held) > 1
    assert len(saved.hold_out(points, "none")[1]) == 0
    for rule, words in (("biggest", "must be largest, none, or a number"), ("1e30", "no run has so many FLOPs")):
        with pytest.raises(TableError, match=words):
            saved.hold_out(points, rule)


def test_the_held_out_run_changes_nothing_in_the_fit() -> None:
    """Move its loss a long way: every value stays, bit for bit."""
    tables = [simulated(3e-3), simulated(3e-3)]
    largest = tables[1]["flops"].idxmax()
    tables[1].loc[largest, "loss"] *= 3
    values = []
    for table in tables:
        fitted, held = saved.hold_out(fit_points(table).table, "largest")
        assert held["run_id"].tolist() == [table["run_id"][largest]]
        values.append(saved.fit_law(laws.chinchilla, fitted, fitted["loss"].to_numpy()).values)
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "text", ['{"schema": 1', "[]", '{"schema": 99, "law": "chinchilla"}', '{"schema": 1, "law": "x"}']
)
def test_what_is_no_fit_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(TableError, match=r"fit\.json: not a saved fit"):
        saved.load(tmp_path / "fit.json")


def test_too_few_left_after_holding_out() -> None:
    points = fit_points(simulated().iloc[:7])
    with pytest.raises(TableError, match=r"fewer points than parameters: [0-5] distinct .*holds out"):
        saved.build(points, saved.Settings(holdout=str(points.table["flops"].iloc[3]), draws=4), {})


def test_the_file_is_plain_json(built: tuple[Path, saved.SavedFit], tmp_path: Path) -> None:
    document = json.loads(saved.save(built[1], tmp_path / "fit.json").read_text())
    needed = {"law", "parameters", "standard_errors", "intervals", "exponent_a", "objective", "params_column", "points"}
    assert needed <= set(document)
