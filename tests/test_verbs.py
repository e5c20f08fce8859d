from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import PLANTED, simulated
from test_results import run

from analysis import verbs
from analysis.results import TableError


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_planted_law_is_recovered_from_a_file(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    table, path = simulated(), tmp_path / f"t.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    facts = verbs.fit(path, holdout="largest", draws=32, json=tmp_path / "facts.json")
    for name, value in PLANTED.items():
        assert facts["parameters"][name] == pytest.approx(value, rel=1e-5)
    assert facts["points"] == 29
    assert json.loads((tmp_path / "facts.json").read_text())["parameters"] == facts["parameters"]
    assert "29 points fitted, 1 held out" in capsys.readouterr().out


def test_the_counting_convention_is_named_and_moves_the_law(tmp_path: Path) -> None:
    simulated().assign(params_total=lambda t: t["params_matmul"] + 3e7).to_csv(tmp_path / "t.csv", index=False)
    default = verbs.fit(tmp_path / "t.csv", draws=8)
    total = verbs.fit(tmp_path / "t.csv", params="params_total", draws=8)
    assert (default["params_column"], total["params_column"]) == ("params_matmul", "params_total")
    assert abs(total["parameters"]["alpha"] - default["parameters"]["alpha"]) > 0.02


def test_collect_writes_the_table_of_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tokens in (("b", 2e6), ("a", 1e6)):
        run(tmp_path / "s", name, tokens=tokens)
    run(tmp_path / "s", "c", status="failed", loss=float("nan"), tokens=4e6)
    (tmp_path / "s" / "runs" / "d").mkdir()
    verbs.collect("s", out=tmp_path, json=tmp_path / "rows.json")
    assert pd.read_csv(tmp_path / "s" / "results.csv")["run_id"].tolist() == ["a", "b", "c"]
    assert [row["loss"] for row in json.loads((tmp_path / "rows.json").read_text())] == [2.0, 2.0, None]
    printed = capsys.readouterr().out
    assert "2 done, 1 failed, 1 unfinished left out" in printed
    (tmp_path / "none" / "runs").mkdir(parents=True)
    with pytest.raises(TableError, match="no run has finished"):
        verbs.collect("none", out=tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delta": 0.0}, "--delta 0.0: must be above zero"),
        ({"draws": 1}, "--draws 1: must be at least 2"),
        ({"level": 1.0}, "--level 1.0: must be between 0 and 1"),
        ({"params": "params_totl"}, "did you mean params_total"),
        ({"holdout": "large"}, "--holdout large"),
        ({"columns": "params:N"}, "canonical=source"),
    ],
)
def test_wrong_options_write_nothing(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    simulated().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match=words):
        verbs.fit(tmp_path / "t.csv", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
