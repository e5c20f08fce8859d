from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.commands import fit
from analysis.commands.forecast import forecast
from analysis.errors import TableError
from analysis.forecasting.sealed_forecast import HELD_OUT, NOTES
from analysis.laws import chinchilla
from tests.conftest import PLANTED, in_process, simulated


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only a table and the fit.json of it, with the largest run held out."""
    folder = tmp_path_factory.mktemp("fitted")
    simulated(3e-3).to_csv(folder / "t.csv", index=False)
    fit.fit(folder / "t.csv", holdout="largest", draws=32)
    return folder / "fit.json"


def test_the_run_held_out_is_forecast_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = simulated()
    table.to_csv(tmp_path / "t.csv", index=False)
    fit.fit(tmp_path / "t.csv", holdout="largest", draws=32)
    capsys.readouterr()
    facts = forecast(tmp_path / "fit.json")
    assert facts == json.loads((tmp_path / "forecast.json").read_text())
    assert {"predicted", "measured", "relative_error", "low", "high"} <= set(facts)
    assert facts["measured"] == table.loc[table["flops"].idxmax(), "loss"]
    assert facts["predicted"] == pytest.approx(facts["measured"], rel=1e-6)
    printed = capsys.readouterr().out
    assert printed.count(f"{facts['measured']:.4f}") >= 4, "what was predicted, its interval, and what was measured"


def test_a_run_that_nobody_trained(tmp_path: Path) -> None:
    simulated().to_csv(tmp_path / "t.csv", index=False)
    fit.fit(tmp_path / "t.csv", draws=16)
    facts = forecast(tmp_path / "fit.json", params_value=7e10, tokens=1.4e12, json=tmp_path / "f.json")
    truth = float(chinchilla(PLANTED, {"params": 7e10, "tokens": 1.4e12}))
    assert facts["predicted"] == pytest.approx(truth, rel=1e-5)
    assert facts["measured"] is None
    assert json.loads((tmp_path / "f.json").read_text()) == facts
    with pytest.raises(TableError, match=r"fit\.json.*--params-value"):
        forecast(tmp_path / "fit.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"params_value": 1e9}, "--params-value.*--tokens"),
        ({"tokens": 1e9}, "--params-value.*--tokens"),
        ({"params_value": -1.0, "tokens": 1e9}, r"--params-value -1\.0"),
        ({"table": Path("t.csv")}, "--table.*--score"),
        ({"columns": "params=N"}, "--columns.*--score"),
        ({"where": "seed==1"}, "--where.*--score"),
        ({"fit": None}, "--score.*--table"),
        ({"score": Path("l.json"), "table": Path("t.csv")}, r"--score l\.json.*FIT"),
        ({"fit": None, "score": Path("l.json")}, r"--score l\.json.*--table"),
        ({"fit": None, "score": Path("l.json"), "tokens": 1e9, "table": Path("t.csv")}, r"--score l\.json.*--tokens"),
    ],
)
def test_flags_that_do_not_go_together_write_nothing(
    fitted: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(TableError, match=words):
        forecast(**({"fit": fitted, "out": tmp_path / "f.json"} | options))
    assert not list(tmp_path.iterdir())


def test_locked_today_scored_when_the_run_exists(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, out = tmp_path / "lock.json", tmp_path / "f.json"
    facts = forecast(fitted, params_value=2e9, tokens=6e10, seal=lock, out=out)
    assert facts["sha256"] in capsys.readouterr().out
    assert json.loads(lock.read_text())["sha256"] == facts["sha256"]
    table = simulated(3e-3)
    table.to_csv(tmp_path / "before.csv", index=False)
    before = forecast(score=lock, table=tmp_path / "before.csv")
    assert (before["scored"], before["inside"], before["waiting"]) == (0, 0, 1)
    assert f"{facts['predicted']:.4f}" in capsys.readouterr().out
    table.loc[len(table)] = table.loc[0].to_dict() | {"run_id": "new", "params_matmul": 2e9, "tokens": 6e10}
    for loss, inside in ((facts["predicted"], 1), (facts["high"] * 1.01, 0)):
        table.loc[len(table) - 1, "loss"] = loss
        table.to_csv(tmp_path / "after.csv", index=False)
        after = forecast(score=lock, table=tmp_path / "after.csv", json=tmp_path / "score.json")
        assert (after["scored"], after["inside"], after["waiting"]) == (1, inside, 0)
        assert after["mean_relative_error"] == pytest.approx(abs(facts["predicted"] / loss - 1))
        assert json.loads((tmp_path / "score.json").read_text()) == after
        printed = capsys.readouterr().out
        assert f"{loss:.4f}" in printed
        assert ("OUTSIDE" in printed) == (not inside)


def test_a_note_of_a_score_is_on_the_line_of_its_run(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    forecast(fitted, seal=tmp_path / "sealed.json", out=tmp_path / "f.json")
    capsys.readouterr()
    forecast(score=tmp_path / "sealed.json", table=fitted.parent / "t.csv")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith(NOTES[HELD_OUT])]
    assert " to " in line, "the interval stands on the same line"


def test_a_lock_that_is_there_stops_the_whole_command(fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("mine")
    with pytest.raises(TableError, match=r"lock\.json"):
        forecast(fitted, seal=tmp_path / "lock.json", out=tmp_path / "f.json")
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
    assert (tmp_path / "lock.json").read_text() == "mine"


def test_the_command_line_takes_a_fit_or_a_lock(fitted: Path, tmp_path: Path) -> None:
    locked = in_process("forecast", fitted, "--seal", "lock.json", "--out", "f.json", cwd=tmp_path)
    assert locked.returncode == 0, locked.stderr
    assert NOTES[HELD_OUT] in locked.stdout
    table = fitted.parent / "t.csv"
    scored = in_process("forecast", "--score", "lock.json", "--table", table, "--json", "s.json", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    facts = json.loads((tmp_path / "s.json").read_text())
    assert facts["scored"] == 1
    assert facts["rows"][0]["note"] == NOTES[HELD_OUT]
    neither = in_process("forecast", cwd=tmp_path)
    assert neither.returncode == 2
    assert neither.stderr.count("\n") == 1


def test_a_run_in_billions_is_warned_of_in_print_and_in_json(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = forecast(fitted, params_value=7, tokens=140, out=tmp_path / "f.json")
    assert any("billions" in note and "7e+09" in note for note in facts["warnings"])
    assert facts["warnings"][0] in capsys.readouterr().out
    assert facts["times_largest"]["params"] == pytest.approx(7e-9)
    assert json.loads((tmp_path / "f.json").read_text()) == facts


def test_rows_that_where_leaves_out_are_not_scored(fitted: Path, tmp_path: Path) -> None:
    forecast(fitted, seal=tmp_path / "sealed.json", out=tmp_path / "f.json")
    largest = simulated(3e-3).nlargest(1, "flops")
    rows = pd.concat([largest.assign(corpus="c4"), largest.assign(corpus="code", loss=9.0)])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    table = {"score": tmp_path / "sealed.json", "table": tmp_path / "rows.csv"}
    assert forecast(**table)["scored"] == 2
    assert [row["measured"] for row in forecast(**table, where="corpus==code")["rows"]] == [9.0]
