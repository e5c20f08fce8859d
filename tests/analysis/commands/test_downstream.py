"""The verb, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.commands.downstream import downstream
from analysis.errors import TableError
from tests.analysis.downstream.test_decisions import make_recipe_table
from tests.conftest import in_process
from tests.support.task_tables import flat_accuracy, grid_of_cells, make_task_table, rising_accuracy


def line(printed: str, start: str) -> str:
    """The first printed line that begins so."""
    return next(text for text in printed.splitlines() if text.startswith(start))


def test_a_table_of_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.parquet"
    make_task_table({"addition": flat_accuracy, "copy": rising_accuracy}, 1).to_parquet(path)
    facts = downstream(path, holdout="largest", draws=20, out=tmp_path / "figures", json=tmp_path / "facts.json")
    printed = capsys.readouterr().out
    assert "no trend" in line(printed, "addition")
    assert "rises" in line(printed, "copy")
    assert json.loads((tmp_path / "facts.json").read_text()) == facts
    law = {entry["task"]: entry["law"] for entry in facts["tasks"]}
    assert law["addition"] is None
    assert law["copy"] in printed
    (held_out_run,) = next(entry["held_out"] for entry in facts["tasks"] if entry["task"] == "copy")
    assert held_out_run["run_id"] == "r035"
    (printed_line,) = [text for text in printed.splitlines() if "r035" in text]
    assert all(f"{held_out_run[name]:.3f}" in printed_line for name in ("predicted", "low", "high", "accuracy"))
    assert {Path(figure).name for figure in facts["figures"]} >= {"downstream_by_compute.svg", "downstream_signal.png"}
    assert all(Path(figure).stat().st_size > 5000 for figure in facts["figures"])


def test_recipes_are_decided_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.csv"
    pd.concat([make_recipe_table("a", 0.0, 0), make_recipe_table("b", 0.3, 1)]).to_csv(path, index=False)
    facts = downstream(path, ("t",), by="recipe", draws=20)
    assert [entry["name"] for entry in facts["decisions"]] == ["t", "loss"]
    assert re.search(r"\brecipe\b.*\ba, b\b", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plain.csv",), r"/accuracy.*/chance"),
        (("tasks.csv", "--task", "copi"), r"copi\b.*copy"),
        (("tasks.csv", "--by", "corpus"), "--by corpus"),
        (("tasks.csv", "--where", "flops<6e10"), r"copy.*\b6\b"),
        (("tasks.csv", "--holdout", "soon"), "--holdout soon"),
        (("tasks.csv", "--level", "2"), r"--level 2\.0"),
        (("absent.csv",), r"absent\.csv"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    rows = make_task_table({"copy": rising_accuracy}, 0)
    rows.to_csv(tmp_path / "tasks.csv", index=False)
    rows[["run_id", "params_matmul", "tokens", "loss"]].to_csv(tmp_path / "plain.csv", index=False)
    process = in_process("downstream", *arguments, cwd=tmp_path)
    assert process.returncode == 2, process.stdout + process.stderr
    (error_line,) = [text for text in process.stderr.splitlines() if text.strip()]
    assert re.search(expected, error_line)


def test_tasks_without_a_study_or_a_noise_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [
        make_task_table({"addition": flat_accuracy, "few": flat_accuracy}, seed, cells=grid_of_cells(3, 3))
        for seed in range(2)
    ]
    rows = pd.concat([table.assign(recipe=f"r{seed}") for seed, table in enumerate(tables)])
    rows["few/accuracy"] = rows["few/accuracy"].where(rows["params_matmul"] * rows["tokens"] < 5e9)
    rows.loc[rows["recipe"] == "r1", "few/accuracy"] = float("nan")
    rows.assign(run_id=range(len(rows))).drop(columns="addition/accuracy_stderr").to_csv(tmp_path / "t.csv")
    facts = downstream(tmp_path / "t.csv", by="recipe", draws=20, out=tmp_path, json=tmp_path / "facts.json")
    printed = capsys.readouterr().out
    assert [entry["task"] for entry in facts["tasks"]] == ["addition"]
    assert list(facts["not_studied"]) == list(facts["not_decided"]) == ["few"]
    assert re.search(r"\b1\b.*\b6\b", facts["not_studied"]["few"])
    assert "r1" in facts["not_decided"]["few"]
    printed_lines = [text for text in printed.splitlines() if text.startswith("few")]
    assert len(printed_lines) == 2
    assert printed_lines[0].endswith(facts["not_studied"]["few"])
    assert printed_lines[1].endswith(facts["not_decided"]["few"])
    assert "unknown" in line(printed, "addition")
    assert not (tmp_path / "downstream_signal.png").exists()
    with pytest.raises(TableError, match=r"few.*\b1\b"):
        downstream(tmp_path / "t.csv", ("addition", "few"), draws=20)
