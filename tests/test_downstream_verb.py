"""The verb, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import in_process
from task_tables import flat, grid, rising, table
from test_decisions import recipe

from analysis.downstream_verb import downstream_verb
from analysis.results import TableError


def test_a_table_of_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.parquet"
    table({"addition": flat, "copy": rising}, 1).to_parquet(path)
    facts = downstream_verb(path, holdout="largest", draws=20, out=tmp_path / "figures", json=tmp_path / "facts.json")
    said = capsys.readouterr().out
    assert "addition: no trend" in said
    assert "copy: rises" in said
    assert "held out r035: predicted" in said
    assert json.loads((tmp_path / "facts.json").read_text()) == facts
    law = {entry["task"]: entry["law"] for entry in facts["tasks"]}
    assert law["addition"] is None
    assert law["copy"] in said
    assert {Path(figure).name for figure in facts["figures"]} >= {"downstream_by_compute.svg", "downstream_signal.png"}
    assert all(Path(figure).stat().st_size > 5000 for figure in facts["figures"])


def test_recipes_are_decided_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.csv"
    pd.concat([recipe("a", 0.0, 0), recipe("b", 0.3, 1)]).to_csv(path, index=False)
    facts = downstream_verb(path, ("t",), by="recipe", draws=20)
    assert [entry["name"] for entry in facts["decisions"]] == ["t", "loss"]
    assert "decisions by recipe (a, b)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plain.csv",), "run scaling eval first"),
        (("tasks.csv", "--task", "copi"), "did you mean copy?"),
        (("tasks.csv", "--by", "corpus"), "--by corpus: the table lacks that column"),
        (("tasks.csv", "--where", "flops<6e10"), "runs have it, at least 6"),
        (("tasks.csv", "--holdout", "soon"), "must be largest, none, or a number"),
        (("tasks.csv", "--level", "2"), "--level 2.0: must be between 0 and 1"),
        (("absent.csv",), "no such file"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    rows = table({"copy": rising}, 0)
    rows.to_csv(tmp_path / "tasks.csv", index=False)
    rows[["run_id", "params_matmul", "tokens", "loss"]].to_csv(tmp_path / "plain.csv", index=False)
    done = in_process("downstream", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.strip().splitlines() if line.strip()]
    assert said in line


def test_tasks_without_a_study_or_a_noise_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [table({"addition": flat, "few": flat}, seed, cells=grid(3, 3)) for seed in range(2)]
    rows = pd.concat([each.assign(recipe=f"r{seed}") for seed, each in enumerate(made)])
    rows["few/accuracy"] = rows["few/accuracy"].where(rows["params_matmul"] * rows["tokens"] < 5e9)
    rows.loc[rows["recipe"] == "r1", "few/accuracy"] = float("nan")
    rows.assign(run_id=range(len(rows))).drop(columns="addition/accuracy_stderr").to_csv(tmp_path / "t.csv")
    facts = downstream_verb(tmp_path / "t.csv", by="recipe", draws=20, out=tmp_path, json=tmp_path / "facts.json")
    said = capsys.readouterr().out
    assert [entry["task"] for entry in facts["tasks"]] == ["addition"]
    assert "few: not studied; 1 runs have it" in said
    assert "few: not decided; --by recipe: recipe r1: task few: no run that is done has it" in said
    assert list(facts["not_studied"]) == list(facts["not_decided"]) == ["few"]
    assert "unknown" in next(line for line in said.splitlines() if line.startswith("addition"))
    assert not (tmp_path / "downstream_signal.png").exists()
    with pytest.raises(TableError, match="task few: 1 runs have it"):
        downstream_verb(tmp_path / "t.csv", ("addition", "few"), draws=20)
