"""evaluations.jsonl as analysis reads it: columns of each step, and one table of a sweep."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from analysis.errors import TableError
from analysis.tables import evaluations as evaluated
from analysis.tables.checkpoints import load_evaluations, load_evaluations_beside
from analysis.tables.run_files import EVALUATIONS
from scaling.record import run_folder


def line(step: int, task: str, value: float | None, **about: object) -> str:
    measurements = {f"{task}/accuracy": [value, 10, 0.1], f"{task}/chance": [0.25, 0, 0.0]}
    return json.dumps(
        {"schema": 1, "step": step, "tokens": step * 100, "task": task, "measurements": measurements} | about
    )


def test_the_last_line_of_a_task_and_step_counts_and_torn_ones_do_not(tmp_path: Path) -> None:
    assert evaluated.read_run_evaluations(tmp_path) == {}
    kept = [line(2, "a", 0.5), line(1, "a", 0.4), line(2, "b", 0.3), line(2, "a", 0.6), '{"schema": 1, "step": 2, "ta']
    (tmp_path / EVALUATIONS).write_text("\n".join(kept))
    found = evaluated.read_run_evaluations(tmp_path)
    assert list(found) == [1, 2]
    assert found[1] == (100, {"a/accuracy": 0.4, "a/accuracy_stderr": 0.1, "a/chance": 0.25})
    assert found[2][1]["a/accuracy"] == 0.6
    assert found[2][1]["b/accuracy"] == 0.3


def test_a_sweep_is_one_table_with_what_each_run_spent_by_then(tmp_path: Path) -> None:
    for name, size in (("large", 20), ("small", 10)):
        folder = tmp_path / "runs" / name
        row = {"run_id": name, "params_total": size, "tokens": 400, "flops": 4000.0 * size, "loss": 1.0}
        run_folder.write_result(folder, status="done", row=row, measurements={"loss/nats": (1.0, 5, 0.1)})
        (folder / EVALUATIONS).write_text(f"{line(4, 'a', None)}\n{line(2, 'a', 0.5)}\n")
    (tmp_path / "runs" / "never asked").mkdir()
    table = load_evaluations(tmp_path)
    assert table["run_id"].tolist() == ["small", "small", "large", "large"]
    assert table["tokens"].tolist() == [200, 400, 200, 400]
    assert table["flops"].tolist() == [20_000, 40_000, 40_000, 80_000]
    assert table["a/accuracy"].tolist()[::2] == [0.5, 0.5]
    assert np.isnan(table["a/accuracy"][1])
    assert "loss" not in table, "which was measured at the end alone"


def test_what_is_no_evaluation_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="nowhere"):
        load_evaluations(tmp_path / "nowhere")
    with pytest.raises(TableError, match=r"scaling eval .* --step all"):
        load_evaluations(tmp_path)
    (tmp_path / EVALUATIONS).write_text(line(1, "a", 0.5, schema=2))
    with pytest.raises(TableError, match=r"scaling eval .* --step all"):
        load_evaluations(tmp_path)


def test_damage_costs_its_line_or_its_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "runs" / name
        row = {"run_id": name, "params_total": 9, "tokens": 400, "flops": 4000.0, "loss": 1.0}
        run_folder.write_result(folder, status="done", row=row, measurements={})
        (folder / EVALUATIONS).write_text(f"{line(2, 't', 0.5)}\n{line(3, 't', 0.5, tokens=None)}\n")
    (tmp_path / "runs" / "a" / "result.json").write_text("{}")
    table = load_evaluations(tmp_path)
    assert (table["run_id"].tolist(), table["step"].tolist()) == (["b"], [2])
    printed = capsys.readouterr().err
    assert re.search(rf"b/{EVALUATIONS}\W*line 2\b.*\btokens = None\b", printed)
    assert re.search(r"a/result\.json\W*schema\b", printed)


def test_the_checkpoints_of_a_table_are_those_of_its_folder(tmp_path: Path) -> None:
    assert load_evaluations_beside(tmp_path) is None
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert load_evaluations_beside(tmp_path) is None
    (tmp_path / "runs" / "a" / EVALUATIONS).write_text(f"{line(1, 'a', 0.4)}\n{line(2, 'a', 0.5)}\n")
    for table in (tmp_path, tmp_path / "results.parquet"):
        found = load_evaluations_beside(table)
        assert found is not None
        assert found["a/accuracy"].tolist() == [0.4, 0.5]
