from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import files
from analysis.errors import TableError
from analysis.tables import flags, results, table_checks, where
from scaling.record import run_folder
from tests.conftest import simulated


def run(sweep: Path, name: str, status: run_folder.Status = "done", loss: float = 2.0, **row: Any) -> Path:
    folder = sweep / "runs" / name
    folder.mkdir(parents=True)
    full = {"run_id": name, "params_matmul": 1e5, "tokens": 1e6, "flops": 6e11, "loss": loss, "seed": 0} | row
    measurements = {"loss/nats": (loss, 100, 0.01), "cloze/accuracy": (0.5, 10, 0.1)} if status == "done" else {}
    run_folder.write_result(
        folder, status=status, row=full, measurements=measurements, reason="" if status == "done" else "why"
    )
    return folder


def test_run_folders_become_rows_and_failures_stay(tmp_path: Path) -> None:
    run(tmp_path, "b", tokens=2e6)
    run(tmp_path, "a")
    run(tmp_path, "c", status="diverged", loss=math.nan, tokens=4e6)
    (tmp_path / "runs" / "d").mkdir()
    table = results.read_table(tmp_path)
    assert table["run_id"].tolist() == ["a", "b", "c"]
    assert table["status"].tolist() == ["done", "done", "diverged"]
    assert table["reason"].tolist() == ["", "", "why"]
    assert table["cloze/accuracy"].tolist()[:2] == [0.5, 0.5]
    assert table["cloze/accuracy_stderr"][0] == 0.1
    assert np.isnan(table["loss"][2])
    assert table.attrs["unfinished"] == 1


@pytest.mark.parametrize(
    "change",
    [
        *({"row": None}, {"status": "ok"}, {"row": {"loss": "2"}}, {"row": {"loss": [1]}}, {"row": {"own": {"a": 1}}}),
        *({"measurements": {"a/b": [1]}}, {"measurements": []}, {"schema": 2}, {"reason": 3}),
    ],
)
def test_a_damaged_result_is_named_and_costs_its_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    path = run(tmp_path, "abc") / "result.json"
    run(tmp_path, "def")
    path.write_text(text := json.dumps(json.loads(path.read_text()) | change))
    table = results.read_table(tmp_path)
    assert table["run_id"].tolist() == ["def"]
    assert table.attrs == {"unfinished": 0, "damaged": ["abc"]}
    assert re.search(rf"abc/result\.json\W+{next(iter(change))}\b", capsys.readouterr().err)
    assert path.read_text() == text


def test_the_result_of_another_run_in_a_run_folder_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "a1")
    copy = run(tmp_path, "a1-copy", run_id="a1")
    assert results.read_table(tmp_path)["run_id"].tolist() == ["a1"]
    stderr_text = capsys.readouterr().err
    assert re.search(rf"{re.escape(str(copy / run_folder.RESULT))}.*\brun_id = 'a1'.*'a1-copy'", stderr_text)
    shutil.move(copy, tmp_path / "mine")
    assert results.read_run(tmp_path / "mine")["run_id"] == "a1", "a folder that a user named"
    assert results.read_table(tmp_path)["run_id"].tolist() == ["a1"]


def test_a_torn_result_is_named_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path, "abc") / "result.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(TableError, match=r"abc/result\.json"):
        results.read_table(tmp_path)
    run(tmp_path, "def")
    assert results.read_table(tmp_path)["run_id"].tolist() == ["def"]
    assert "abc/result.json" in capsys.readouterr().err
    assert len(path.read_text()) == 40


def test_a_few_of_many_damaged_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "whole")
    for i in range(results.MAX_WARNINGS + 7):
        path = run(tmp_path, f"torn{i:02}") / "result.json"
        path.write_text(path.read_text()[:40])
    assert len(results.read_table(tmp_path).attrs["damaged"]) == results.MAX_WARNINGS + 7
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == results.MAX_WARNINGS + 1
    assert re.search(r"\b7\b", lines[-1])


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_files_of_every_kind_read_the_same(tmp_path: Path, suffix: str) -> None:
    table, path = simulated(), tmp_path / f"t.{suffix}"
    {
        "csv": lambda: table.to_csv(path, index=False),
        "parquet": lambda: table.to_parquet(path),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True, double_precision=15),
    }[suffix]()
    pd.testing.assert_frame_equal(results.read_table(path)[list(table)], table, check_dtype=False, rtol=1e-12)


def test_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(TableError, match=r"results\.parquet.*(Not a directory|File exists)"):
        results.write_table(simulated(), tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_equal_tables_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    table = simulated()
    for name, same_table in (("a", table), ("b", table.sample(frac=1, random_state=1)[list(table)[::-1]])):
        results.write_table(same_table, tmp_path / name)
    for file in ("results.csv", "results.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["results.csv", "results.parquet"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "f.json", {"a": 1})
    with pytest.raises(ValueError, match="nan"):
        files.write_json(path, {"a": math.nan})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.json"]


def test_columns_are_mapped_from_other_names(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    simulated().rename(columns={"params_matmul": "N", "tokens": "D", "loss": "L"})[["N", "D", "L"]].to_csv(
        path, index=False
    )
    points = results.select_points(results.read_table(path, results.parse_columns("params=N, tokens=D,loss=L")))
    assert points.params_column == "params"
    expected = simulated().sort_values("tokens")
    assert sorted(points.table["params"]) == sorted(expected["params_matmul"])
    np.testing.assert_allclose(points.table["flops"], 6 * points.table["params"] * points.table["tokens"])


def test_what_is_not_done_is_not_fitted(tmp_path: Path) -> None:
    table = simulated()
    table.loc[3, ["status", "loss"]] = ["failed", np.nan]
    points = results.select_points(table)
    assert points.num_dropped == 1
    assert len(points.table) == 29
    assert table["run_id"][3] not in set(points.table["run_id"])
    assert points.table["flops"].is_monotonic_increasing


def test_branches_of_one_trunk_are_one_cluster() -> None:
    table = simulated()
    table.loc[:1, "branch_of"] = "trunk"
    clusters = results.select_points(table).table.set_index("run_id")["cluster"]
    assert clusters[table["run_id"][0]] == clusters[table["run_id"][1]] == "trunk"
    assert clusters.nunique() == 29


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="loss"), [r"\bloss\b.*--columns"]),
        (lambda t: t.rename(columns={"tokens": "Tokens"}), [r"\btokens\b", r"\bTokens\b.*\bTokens\b"]),
        (lambda t: t.assign(tokens=t["tokens"].where(t.index != 4, -1.0)), [r"row 5\b.*tokens = -1\.0"]),
        (lambda t: t.assign(loss=t["loss"].where(t.index != 2, 0)), [r"row 3\b.*loss = 0"]),
        (lambda t: t.assign(tokens=t["tokens"].where(t.index != 2)), [r"row 3\b.*tokens = nan"]),
        (lambda t: t.assign(loss=np.nan), [r"\b0\b.*\b6\b.*\b30\b.*loss"]),
        (lambda t: t.assign(loss="x"), [r"row 1\b.*loss = x", r"\b30\b"]),
        (lambda t: t.head(5), [r"\b5\b.*params, tokens.*\b5\b.*\b6\b"]),
        (lambda t: pd.concat([t.head(5)] * 4), [r"\b5\b.*params, tokens.*\b5\b.*\b6\b"]),
        (lambda t: t.assign(status="failed"), [r"\b0\b.*\b6\b.*\b30\b"]),
    ],
)
def test_a_table_that_cannot_be_fitted_names_what_it_lacks(change: Any, words: list[str]) -> None:
    with pytest.raises(TableError) as error:
        results.select_points(change(simulated()))
    assert "\n" not in str(error.value)
    for word in words:
        assert re.search(word, str(error.value))


def test_the_row_of_an_error_is_a_whole_number_in_a_table_of_numbers() -> None:
    table = pd.DataFrame({"params": [1, 2, 3], "tokens": [10, 0, 30], "loss": [3.0, 2.5, 2.0]})
    with pytest.raises(TableError, match=r"^row 2: tokens = 0,"):
        results.select_points(table, parameters=1)


def test_an_error_of_columns_lists_the_columns_of_the_file(tmp_path: Path) -> None:
    pd.DataFrame({"N": [1.0], "D": [2.0]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match=r"--columns loss=L\b.*\bL; it has N, D;"):
        results.read_table(tmp_path / "t.csv", {"params": "N", "tokens": "D", "loss": "L"})


def test_two_columns_can_be_exchanged(tmp_path: Path) -> None:
    pd.DataFrame({"N": [1.0], "D": [2.0]}).to_csv(tmp_path / "t.csv", index=False)
    table = results.read_table(tmp_path / "t.csv", {"N": "D", "D": "N"})
    assert (table["N"].tolist(), table["D"].tolist()) == ([2.0], [1.0])


def test_paths_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("")
    (tmp_path / "t.parquet").write_text("no parquet")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("absent.csv", r"absent\.csv"),
        ("t.xlsx", r"t\.xlsx.*\.csv"),
        ("t.parquet", r"t\.parquet"),
        ("empty", "empty.*runs/.*results.parquet"),
    ):
        with pytest.raises(TableError, match=words):
            results.read_table(tmp_path / name)
    for text in ("params", "params=", "=N", "params=,tokens=D", "params=N,=D"):
        with pytest.raises(TableError, match=f"--columns {text}"):
            results.parse_columns(text)


def test_analysis_loads_neither_flax_nor_training(tmp_path: Path) -> None:
    program = (
        "import sys, pkgutil, importlib, analysis\n"
        "names = [m.name for m in pkgutil.walk_packages(analysis.__path__, 'analysis.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names), [m for m in ('flax', 'scaling', 'sweeps', 'orbax', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    count, _, loaded = done.stdout.strip().partition(" ")
    assert int(count) >= 30, "its packages too"
    assert loaded == "[]"


def test_flags_go_with_the_points_and_are_empty_text_in_any_file(tmp_path: Path) -> None:
    for i in range(3):
        run(tmp_path, f"r{i}", tokens=1e6 * (i + 1), batch_tokens=1e3 if i else 1e5)
    table = flags.read_flagged_table(tmp_path)
    assert "flags" not in results.read_table(tmp_path)
    assert table["flags"].tolist() == ["undertrained", "", ""]
    assert re.search(r"\b10\b.*\b50\b", table["reason"][0]), "steps, and the fewest"
    assert table["reason"].tolist()[1:] == ["", ""]
    assert results.select_points(table, parameters=1).table["flags"].tolist() == ["undertrained", "", ""]
    for path in results.write_table(where.filter_rows(table, "flags=="), tmp_path):
        again = results.read_table(path)
        assert again["flags"].tolist() == ["", ""]
        assert "reason" not in again, "it holds nothing"
        assert len(where.filter_rows(again, "flags==")) == 2


def test_rows_keep_their_names_when_others_are_left_out() -> None:
    table = simulated().drop(columns="run_id").assign(kind=["a", "b"] * 15)
    table.loc[3, "loss"] = -1.0
    with pytest.raises(TableError, match=r"row 4\b.*loss = -1\.0"):
        results.select_points(where.filter_rows(table, "kind==b"))
    points = results.select_points(where.filter_rows(table, "kind==a")).table
    assert sorted(points["run_id"]) == sorted(f"row {row}" for row in range(1, 31, 2))


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_crashed_run_is_left_out_by_name_and_the_rest_stays(loss: float) -> None:
    table = simulated().drop(columns="run_id").reset_index(drop=True)
    table.loc[[3, 7], "loss"] = loss
    points = results.select_points(where.filter_rows(table, "tokens>0"))
    assert (len(points.table), points.num_dropped) == (28, 2)
    note = table_checks.check_points(points)[0]
    assert re.search(r"row 4, row 8: loss\b.*\b2 of 30\b", note)


def test_flops_that_some_row_lacks_are_6_params_tokens_and_a_note_says_so() -> None:
    table = simulated().drop(columns=["run_id", "flops"], errors="ignore").reset_index(drop=True)
    exact = table["params_matmul"] * table["tokens"]
    own = table.assign(flops=8 * exact)
    assert results.select_points(own).table["flops"].tolist() == sorted(own["flops"])
    for flops, count in ((own["flops"].where(table.index != 2), 1), (np.nan, 30), (0, 30), ("n/a", 30)):
        points = results.select_points(table.assign(flops=flops)).table
        assert points["flops"].tolist() == pytest.approx(sorted(6 * exact))
        assert re.search(rf"row .*flops in {count} of 30\b", points.attrs["notes"][0])


def test_unknown_flops_of_crashed_runs_do_not_matter() -> None:
    table = simulated()
    table.loc[3, ["status", "loss", "flops"]] = ["failed", np.nan, np.nan]
    assert results.select_points(table).table.attrs["notes"] == []


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", {}),
        (" params=N, tokens = D ,", {"params": "N", "tokens": "D"}),
        ("loss=val loss, nats,params=N[/x]", {"loss": "val loss, nats", "params": "N[/x]"}),
        ("""loss='a, b=c',tokens="D, x=y" """, {"loss": "a, b=c", "tokens": "D, x=y"}),
        ("x=lr=1", {"x": "lr=1"}),
    ],
)
def test_names_of_columns_may_hold_commas(text: str, columns: dict[str, str]) -> None:
    assert results.parse_columns(text) == columns
