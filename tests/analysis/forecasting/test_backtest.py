from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.commands import backtest as backtest_verbs
from analysis.errors import TableError
from analysis.fitting import bootstrap
from analysis.fitting.fit import Fit, compute_weights, fit_law, huber
from analysis.forecasting.backtest import backtest
from analysis.forecasting.law_choice import Candidate, choose
from analysis.forecasting.prediction_intervals import build_predictive
from analysis.laws import chinchilla
from analysis.laws.surface import interaction
from analysis.tables import public
from analysis.tables.public import PublicTable
from analysis.tables.results import select_points
from scaling import cli
from tests.conftest import simulated

PLAIN = Candidate(chinchilla, huber(), 0.0)
CROSSED = Candidate(interaction, huber(), 0.0)
FACTORS, DRAWS, SEED = (3.0, 10.0, 300.0), 32, 5
SCORES = ("n_train", "n_test", "mean_relative_error", "rmsle", "bias", "coverage_80", "coverage_90")


def back_test(points: pd.DataFrame, factors: tuple[float, ...] = FACTORS) -> pd.DataFrame:
    return backtest(points, factors, (PLAIN,), (PLAIN, CROSSED), draws=DRAWS, seed=SEED)


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    return select_points(simulated(3e-3)).table


@pytest.fixture(scope="module")
def found(points: pd.DataFrame) -> pd.DataFrame:
    return back_test(points)


@pytest.fixture(scope="module")
def tenth(points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, Fit]:
    """Runs of at most a tenth of the largest compute, the rest, and the plain law of the former."""
    cut = points["flops"] <= points["flops"].max() / 10
    train, test = points[cut].reset_index(drop=True), points[~cut].reset_index(drop=True)
    return train, test, fit_law(chinchilla, train, train["loss"])


def row(found: pd.DataFrame, factor: float, law: str) -> pd.Series:
    return found[(found["factor"] == factor) & (found["law"] == law)].iloc[0]


def test_a_factor_that_leaves_too_few_is_left_out(points: pd.DataFrame, found: pd.DataFrame) -> None:
    assert (points["flops"] <= points["flops"].max() / 300).sum() == 6, "an interaction needs seven"
    laws = ["chinchilla huber", "chosen"]
    assert found[["factor", "law"]].to_numpy().tolist() == [[f, law] for f in (3.0, 10.0) for law in laws]
    assert back_test(points, (1.0,)).empty


def test_scores_are_those_of_a_law_fitted_below_the_cut(
    found: pd.DataFrame, tenth: tuple[pd.DataFrame, pd.DataFrame, Fit]
) -> None:
    train, test, fit = tenth
    said, measured = row(found, 10.0, "chinchilla huber"), test["loss"].to_numpy()
    predicted = fit.predict(test)
    assert (said["n_train"], said["n_test"]) == (len(train), len(test)) == (24, 6)
    assert said["mean_relative_error"] == pytest.approx(np.mean(np.abs(predicted - measured) / measured), rel=1e-8)
    assert said["rmsle"] == pytest.approx(np.sqrt(np.mean((np.log(predicted) - np.log(measured)) ** 2)), rel=1e-8)
    assert said["bias"] == pytest.approx(np.mean(np.log(predicted) - np.log(measured)), rel=1e-8)
    assert said["bias"] != 0


def test_a_plain_laws_interval_is_that_of_its_bootstrap(
    found: pd.DataFrame, tenth: tuple[pd.DataFrame, pd.DataFrame, Fit]
) -> None:
    train, test, fit = tenth
    draws = bootstrap.bootstrap(fit, train, train["loss"], train["run_id"], draws=DRAWS, seed=SEED)
    spread = np.array([chinchilla(dict(zip(chinchilla.parameters, draw, strict=True)), test) for draw in draws])
    said = row(found, 10.0, "chinchilla huber")
    for level in (80, 90):
        low, high = np.quantile(spread, [0.5 - level / 200, 0.5 + level / 200], axis=0)
        assert said[f"coverage_{level}"] == np.mean((low <= test["loss"]) & (test["loss"] <= high))
    assert said["half_width_90"] == pytest.approx(np.median(np.log(high / low)) / 2, rel=1e-8)


def test_the_chosen_law_and_its_interval_come_from_runs_below_the_cut(
    found: pd.DataFrame, tenth: tuple[pd.DataFrame, pd.DataFrame, Fit]
) -> None:
    train, test, _ = tenth
    choice = choose(train, (PLAIN, CROSSED), seed=SEED)
    fit = fit_law(choice.best.law, train, train["loss"])
    band = build_predictive(fit, choice.best, train, choice, draws=DRAWS, seed=SEED)
    said, predicted = row(found, 10.0, "chosen"), fit.predict(test)
    assert said["choice"] == choice.best.name
    assert said["mean_relative_error"] == pytest.approx(np.mean(np.abs(predicted / test["loss"] - 1)), rel=1e-8)
    low, high = band.interval(predicted, test, test["flops"], 0.8, seed=SEED)
    assert said["coverage_80"] == np.mean((low <= test["loss"]) & (test["loss"] <= high))
    low, high = band.interval(predicted, test, test["flops"], 0.9, seed=SEED)
    assert said["coverage_90"] == np.mean((low <= test["loss"]) & (test["loss"] <= high))
    assert said["half_width_90"] == pytest.approx(np.median(np.log(high / low)) / 2, rel=1e-8)


def test_plain_and_chosen_laws_use_their_weighting(
    points: pd.DataFrame, tenth: tuple[pd.DataFrame, pd.DataFrame, Fit]
) -> None:
    train, test, plain = tenth
    weighted = Candidate(chinchilla, huber(), 2.0)
    fit = fit_law(chinchilla, train, train["loss"], weights=compute_weights(train["flops"], 2.0))
    error = np.mean(np.abs(fit.predict(test) / test["loss"] - 1))
    assert error != pytest.approx(np.mean(np.abs(plain.predict(test) / test["loss"] - 1)), rel=0.05)
    said = backtest(points, (10.0,), (weighted,), (weighted,), draws=8)
    assert said["mean_relative_error"].to_numpy() == pytest.approx([error, error], rel=1e-6)


def test_held_out_losses_change_scores_only(points: pd.DataFrame, found: pd.DataFrame) -> None:
    """With every loss above the cut a thousandfold, choice and intervals are the same bit for bit; the bias is not."""
    wild = points.assign(loss=points["loss"].where(points["flops"] <= points["flops"].max() / 10, points["loss"] * 1e3))
    moved = back_test(wild, (10.0,))
    before = found[found["factor"] == 10.0].reset_index(drop=True)
    for name in ("law", "n_train", "n_test", "half_width_90", "choice"):
        pd.testing.assert_series_equal(moved[name], before[name], check_exact=True)
    assert moved["bias"].to_numpy() == pytest.approx(before["bias"].to_numpy() - np.log(1e3), rel=1e-8)
    assert (moved["coverage_90"] == 0).all()


def test_the_verb_prints_a_row_a_law_and_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = simulated(3e-3).rename(columns={"params_matmul": "N", "tokens": "D", "loss": "L"}).assign(corpus="a")
    pd.concat([table, table.assign(corpus="b", L=9.0)]).to_csv(tmp_path / "t.csv", index=False)
    flags = ["--columns", "params=N,tokens=D,loss=L", "--where", "corpus==a", "--draws", "32", "--json"]
    with pytest.raises(SystemExit) as done:
        cli.main(["backtest", str(tmp_path / "t.csv"), "--factors", "3,1000", *flags, str(tmp_path / "b.json")])
    assert done.value.code == 0
    rows = json.loads((tmp_path / "b.json").read_text())
    assert [r["law"] for r in rows] == ["chinchilla huber", "interaction huber", "chosen"]
    for facts in rows:
        assert {"factor", *SCORES} <= set(facts)
        assert (facts["factor"], facts["n_train"], facts["n_test"]) == (3, 27, 3)
        assert all(isinstance(facts[name], float) for name in SCORES[2:])
        assert 0 <= facts["coverage_80"] <= facts["coverage_90"] <= 1
    assert rows[0]["choice"] is None
    assert rows[2]["choice"].split()[0] in ("chinchilla", "interaction")
    printed = capsys.readouterr().out
    for facts in rows:
        assert facts["law"] in printed
        assert f"{facts['mean_relative_error']:.2%}" in printed


@pytest.mark.parametrize("text", ["", "3,", "3;10", "1", "0.5,3", "nan"])
def test_factors_are_numbers_above_one(tmp_path: Path, text: str) -> None:
    simulated().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match=rf"--factors {re.escape(text)}"):
        backtest_verbs.backtest(tmp_path / "t.csv", factors=text)


def test_factors_that_leave_no_runs_are_an_error(tmp_path: Path) -> None:
    simulated().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match="1e3,1e6"):
        backtest_verbs.backtest(tmp_path / "t.csv", factors="1e3,1e6", json=tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_coverage_is_the_back_test_of_every_public_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {name: PublicTable(name, f"{name}.csv", "simulated", lambda table: table) for name in ("first", "second")}
    for seed, name in enumerate(tables):
        plain = simulated(3e-3, seed).rename(columns={"params_matmul": "params"})[["params", "tokens", "flops", "loss"]]
        plain.to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.setattr(public, "PUBLIC_TABLES", tables)
    monkeypatch.setattr(
        backtest_verbs.backtesting, "backtest", lambda points, factors, *, draws, seed: back_test(points, factors)
    )
    found = backtest_verbs.coverage(tmp_path, "10", 8, 0, out=tmp_path / "c.md", json=tmp_path / "c.json")
    assert found[["table", "law"]].to_numpy().tolist() == [
        [name, law] for name in tables for law in ("chinchilla huber", "chosen")
    ]
    written = json.loads((tmp_path / "c.json").read_text())
    assert [r["mean_relative_error"] for r in written["tables"]] == found["mean_relative_error"].tolist()
    total = backtest_verbs.summarize(found)
    assert [r["coverage_90"] for r in written["summary"]] == total["coverage_90"].tolist()
    assert (tmp_path / "c.md").read_text() == backtest_verbs.to_markdown(found, total)
    printed = capsys.readouterr().out
    assert "second" in printed
    (tmp_path / "second.csv").unlink()
    with pytest.raises(TableError, match=r"second\.csv.*--data"):
        backtest_verbs.coverage(tmp_path, "10")


def two_tables() -> pd.DataFrame:
    numbers = [("a", 1, 4, 0.01, 0.5, 0.75, 0.1), ("b", 2, 12, 0.04, 1.0, 1.0, 0.3)]
    columns = ["table", "n_train", "n_test", "mean_relative_error", "coverage_80", "coverage_90", "half_width_90"]
    return pd.DataFrame(numbers, columns=columns).assign(factor=3.0, law="chosen", choice="chinchilla huber")


def test_a_summary_averages_errors_geometrically_and_pools_runs() -> None:
    (said,) = backtest_verbs.summarize(two_tables()).to_dict("records")
    assert (said["factor"], said["law"], said["tables"], said["n_test"]) == (3.0, "chosen", 2, 16)
    assert said["mean_relative_error"] == pytest.approx(0.02)
    assert said["coverage_80"] == pytest.approx((4 * 0.5 + 12 * 1.0) / 16)
    assert said["coverage_90"] == pytest.approx((4 * 0.75 + 12 * 1.0) / 16)
    assert said["tables_90"] == pytest.approx(0.875), "each table once"
    assert said["half_width_90"] == pytest.approx(0.2)


def test_a_summary_keeps_factors_and_laws_apart() -> None:
    both = pd.concat([two_tables(), two_tables().assign(factor=10.0), two_tables().assign(law="plain")])
    said = backtest_verbs.summarize(both)
    assert said[["factor", "law"]].to_numpy().tolist() == [[3.0, "chosen"], [10.0, "chosen"], [3.0, "plain"]]
    assert (said["tables"] == 2).all()


def test_markdown_has_every_table() -> None:
    found = two_tables()
    text = backtest_verbs.to_markdown(found, backtest_verbs.summarize(found))
    lines = text.splitlines()
    assert "| 3 | chosen | 2 | 16 | 2.00% | 87.50% | 93.75% | 87.50% | 20.00% |" in lines
    assert "| table | 3x chosen |" in lines
    assert "| b | 4.00% |" in lines
    assert "| a | 3 | 1 | 4 | chinchilla huber | 1.00% | 50.00% | 75.00% | 10.00% |" in lines
    for above, below in itertools.pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|")


def test_twins_of_runs_above_the_cut_are_not_fitted(points: pd.DataFrame) -> None:
    """A twin whose FLOPs were counted otherwise lies below the cut, and would tell the fit what it is tested on."""
    largest = points.loc[[points["flops"].idxmax()]]
    twins = pd.concat([points, largest.assign(run_id="twin", flops=points["flops"].max() / 4)], ignore_index=True)
    by_law = back_test(twins, (3.0,)).set_index("law")
    assert (by_law["n_train"] == (points["flops"] <= points["flops"].max() / 3).sum()).all()
    assert (by_law["n_test"] == len(points) - by_law["n_train"]).all()
