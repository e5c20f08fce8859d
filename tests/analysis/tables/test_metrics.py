"""The table of metrics agrees with every metrics.jsonl, compacted or not, and only changed files are read again."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.commands.collect import collect
from analysis.errors import TableError
from analysis.tables import metrics as store
from analysis.tables.metrics import compact_metrics, load_metrics
from scaling.record.run_folder import append_metrics, read_metrics, write_result

KNOWN = ["run_id", "step", "tokens", "loss", "grad_norm", "learning_rate", "validation_loss", "tokens_per_second"]


def a_run(sweep: Path, name: str, steps: int = 20, scale: float = 1.0) -> Path:
    run = sweep / "runs" / name
    run.mkdir(parents=True, exist_ok=True)
    for step in range(1, steps + 1):
        rate = math.nan if step == 1 else 1000.0
        append_metrics(run, {"step": step, "tokens": 8 * step, "loss": scale / step, "tokens_per_second": rate})
    return run


def of(table: pd.DataFrame, run: str) -> pd.DataFrame:
    return table[table["run_id"] == run]


def rows_of_run(table: pd.DataFrame, run: Path) -> list[dict[str, Any]]:
    """The rows of a run, as dictionaries without missing values."""
    rows = of(table, run.name).drop(columns="run_id").to_dict("records")
    return [{name: value for name, value in row.items() if not pd.isna(value)} for row in rows]


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run folder by its contract, without values that are not numbers."""
    return [{name: value for name, value in line.items() if value is not None} for line in read_metrics(run)]


def test_steps_are_the_same_compacted_or_not(tmp_path: Path) -> None:
    b, a = a_run(tmp_path, "b", scale=2.0), a_run(tmp_path, "a", steps=3)
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "a file").touch()
    before = load_metrics(tmp_path)
    assert list(before) == KNOWN
    assert before["run_id"].tolist() == ["a"] * 3 + ["b"] * 20
    assert (before["step"].dtype, before["tokens"].dtype, before["loss"].dtype) == (np.int64, np.int64, np.float64)
    assert rows_of_run(before, a) == lines(a)
    assert rows_of_run(before, b) == lines(b)
    assert not (tmp_path / "metrics.parquet").exists(), "reading writes nothing"
    done = compact_metrics(tmp_path)
    assert (done.num_runs, done.num_rows, done.num_read, done.num_removed) == (2, 23, 2, 0)
    pd.testing.assert_frame_equal(load_metrics(tmp_path), before)
    pd.testing.assert_frame_equal(load_metrics(str(tmp_path / "runs" / "a")), load_metrics(tmp_path, ["a", "nobody"]))
    assert pd.read_parquet(tmp_path / "metrics.parquet")["loss"].tolist() == before["loss"].tolist(), "of any reader"
    assert analysis.load_metrics is load_metrics


def test_a_resume_a_validation_and_torn_lines(tmp_path: Path) -> None:
    run = a_run(tmp_path, "a", steps=6)
    append_metrics(run, {"step": 6, "validation_loss": 2.5})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tokens": 56, "loss": 0.')
    assert rows_of_run(load_metrics(tmp_path), run) == lines(run)
    assert len(load_metrics(tmp_path)) == 6
    for step in range(5, 10):
        append_metrics(run, {"step": step, "tokens": 8 * step, "loss": 7.0 + step, "learning_rate": 1e-3})
    append_metrics(run, {"step": 9, "validation_loss": 1.5})
    with (run / "metrics.jsonl").open("a") as file:
        file.write("[1, 2]\n7\n{}\nnull\n" + '{"loss": 3.0}\n{"step": 10, "tokens": 80, "loss": 1.0}')
    table = load_metrics(tmp_path)
    assert table["step"].tolist() == [*range(1, 11)]
    assert table["loss"].tolist()[3:] == [0.25, 12.0, 13.0, 14.0, 15.0, 16.0, 1.0]
    assert table["validation_loss"].dropna().tolist() == [2.5, 1.5]
    assert table["tokens_per_second"].tolist()[4:6] == [1000.0, 1000.0], "what the later line of a step leaves out"
    compact_metrics(tmp_path)
    pd.testing.assert_frame_equal(load_metrics(tmp_path), table)


def test_any_log_reads_as_the_contract_has_it(tmp_path: Path) -> None:
    """Compares random logs, some torn or resumed, with scaling/record/run_folder.py's own reader."""
    rng = np.random.default_rng(0)
    runs = []
    for i in range(30):
        run = tmp_path / "runs" / f"{i:02}"
        run.mkdir(parents=True)
        step = 0
        for _ in range(rng.integers(0, 40)):
            step = max(1, step + 1 - (int(rng.integers(1, 6)) if rng.random() < 0.1 else 0))
            append_metrics(run, {"step": step, "tokens": step * 8, "loss": float(rng.random())})
            if rng.random() < 0.2:
                append_metrics(run, {"step": step, "validation_loss": float(rng.random()), "depth": 2})
            if rng.random() < 0.05:
                with (run / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 3, "loss": 1.'[: rng.integers(1, 22)])
        runs.append(run)
    table = load_metrics(tmp_path)
    for run in runs:
        assert rows_of_run(table, run) == lines(run), run.name
    assert list(table) == [*KNOWN, "depth"]


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        a_run(tmp_path, name)
    compact_metrics(tmp_path)
    read: list[str] = []
    whole = store.read_whole_lines
    monkeypatch.setattr(store, "read_whole_lines", lambda path: read.append(path.parent.name) or whole(path))
    inode = (tmp_path / "metrics.parquet").stat().st_ino
    assert compact_metrics(tmp_path).num_read == 0
    assert len(load_metrics(tmp_path)) == 80
    assert (read, (tmp_path / "metrics.parquet").stat().st_ino) == ([], inode), "neither read nor written"
    append_metrics(tmp_path / "runs" / "b", {"step": 21, "tokens": 168, "loss": 0.5})
    a_run(tmp_path, "aa", steps=2)
    for path in (tmp_path / "runs" / "d").iterdir():
        path.unlink()
    expected = [("a", 20), ("aa", 2), ("b", 21), ("c", 20)]
    assert list(load_metrics(tmp_path).groupby("run_id", observed=True).size().items()) == expected
    assert sorted(read) == ["aa", "b"]
    done = compact_metrics(tmp_path)
    assert (done.num_runs, done.num_rows, done.num_read, done.num_removed) == (4, 63, 2, 1)
    assert sorted(read) == ["aa", "aa", "b", "b"]
    assert list(load_metrics(tmp_path).groupby("run_id", observed=True).size().items()) == expected
    assert len(read) == 4
    path = tmp_path / "runs" / "c" / "metrics.jsonl"
    path.write_text(path.read_text().replace("8,", "9,"))
    assert compact_metrics(tmp_path).num_read == 1, "of the same length"
    assert of(load_metrics(tmp_path), "c")["tokens"].tolist()[0] == 9


def test_unknown_columns_are_kept_whatever_they_hold(tmp_path: Path) -> None:
    for name, values in {"a": (1, 2), "b": (1.5, 2), "c": ("x", None), "d": ([1], {"y": 2})}.items():
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        for step, value in enumerate(values):
            line = {"step": step, "tokens": 1e6 if name == "b" else step, "loss": None if name == "b" else 1.0}
            append_metrics(run, line | {"mixed": value, f"own/{name}": value if name != "d" else "z"})
    before = load_metrics(tmp_path)
    assert list(before) == [*KNOWN, "mixed", "own/a", "own/b", "own/c", "own/d"]
    assert before["mixed"].tolist()[:5] == ["1", "2", "1.5", "2.0", "x"]
    assert before["mixed"].tolist()[6:] == ["[1]", '{"y": 2}']
    assert of(before, "b")["own/b"].tolist() == [1.5, 2.0]
    assert of(before, "b")["tokens"].tolist() == [1_000_000, 1_000_000]
    assert of(before, "b")["loss"].isna().all()
    compact_metrics(tmp_path)
    pd.testing.assert_frame_equal(load_metrics(tmp_path), before)
    append_metrics(tmp_path / "runs" / "a", {"step": 3, "tokens": 3, "mixed": 7})
    compact_metrics(tmp_path)
    assert load_metrics(tmp_path)["mixed"].tolist()[:3] == ["1", "2", "7"]


@pytest.mark.parametrize(
    "damage",
    [
        *(b'{"step": "3", "loss": 1.0}', b'{"step": 3, "loss": "x"}', b'{"step": 3, "l\xffss": 1.0}', b"null", b"[1]"),
        *(b'{"step": 3, "loss": NaN}', b'{"step": 3, "a": "\\ud800"} {}', b'{"step": 3, "x": ' + b"[" * 200_000 + b"}"),
    ],
)
def test_a_damaged_line_is_named_and_costs_itself_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: bytes
) -> None:
    a, b = a_run(tmp_path, "a", steps=2), a_run(tmp_path, "b", steps=2)
    with (a / "metrics.jsonl").open("ab") as file:
        file.write(damage + b"\n")
    append_metrics(a, {"step": 4, "tokens": 32})
    compact_metrics(tmp_path)
    for run in (a, b):
        assert load_metrics(run)["step"].tolist() == ([1, 2, 4] if run == a else [1, 2])
    assert load_metrics(tmp_path)["step"].tolist() == [1, 2, 4, 1, 2]
    assert re.search(rf"{a}/metrics\.jsonl\W*line 3\b", capfd.readouterr().err)


def test_a_flipped_bit_in_the_compacted_table_is_seen(tmp_path: Path) -> None:
    a_run(tmp_path, "a")
    path = compact_metrics(tmp_path).path
    whole, before = path.read_bytes(), load_metrics(tmp_path)
    for place in range(4, len(whole) - 4, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        pd.testing.assert_frame_equal(load_metrics(tmp_path), before)
        compact_metrics(tmp_path)
        pd.testing.assert_frame_equal(load_metrics(tmp_path), before)


def test_what_a_machine_that_lost_power_leaves_behind(tmp_path: Path) -> None:
    """A file with zero bytes in place of lines, and one with values that do not fit a column of numbers."""
    a, b = a_run(tmp_path, "a", steps=2), a_run(tmp_path, "b", steps=2)
    with (a / "metrics.jsonl").open("ab") as file:
        file.write(bytes(64) + b"\n" + b'\xff\xfe{"step": 3}\n' + bytes(8))
    for run in (a, b):
        append_metrics(run, {"step": 3, "tokens": 24, "when": "2026-11-22T10:00:00", "count": 2**70})
    table = load_metrics(tmp_path)
    assert table["step"].tolist() == [1, 2, 3] * 2
    assert table["tokens"].tolist() == [8, 16, 24] * 2
    assert table["when"].dropna().str.startswith("2026-11-22").tolist() == [True, True]
    assert [float(value) for value in table["count"].dropna()] == [2.0**70] * 2


def test_a_table_that_is_not_ours_or_torn_is_made_anew(tmp_path: Path) -> None:
    a_run(tmp_path, "a")
    path = compact_metrics(tmp_path).path
    whole = path.read_bytes()
    for wrong in (b"", whole[: len(whole) // 2], b"PAR1 nonsense PAR1"):
        path.write_bytes(wrong)
        assert len(load_metrics(tmp_path)) == 20
        assert compact_metrics(tmp_path).num_read == 1
    pd.DataFrame({"step": [1]}).to_parquet(path)
    assert len(load_metrics(tmp_path)) == 20
    assert compact_metrics(tmp_path).num_read == 1


def test_a_folder_without_runs_is_read_from_its_table(tmp_path: Path) -> None:
    run = a_run(tmp_path, "a")
    compact_metrics(tmp_path)
    (run / "metrics.jsonl").unlink()
    run.rmdir()
    (tmp_path / "runs").rmdir()
    assert len(load_metrics(tmp_path)) == 20
    for folder in (tmp_path / "none", tmp_path.parent):
        with pytest.raises(TableError, match=re.escape(str(folder))):
            load_metrics(folder)
    with pytest.raises(TableError, match="runs/"):
        compact_metrics(tmp_path)


def test_no_lines_at_all(tmp_path: Path) -> None:
    run = a_run(tmp_path, "a", steps=0)
    assert load_metrics(tmp_path).empty
    (run / "metrics.jsonl").write_text("torn")
    assert list(load_metrics(tmp_path)) == KNOWN
    assert compact_metrics(tmp_path).num_rows == 0
    assert compact_metrics(tmp_path).num_read == 0
    assert load_metrics(tmp_path).empty
    (run / "metrics.jsonl").write_text('{"loss": 3.0}\n{"step": 1, "tokens": 8}\n')
    assert load_metrics(tmp_path)["tokens"].tolist() == [8], "a line that names no step tells of none"


def test_a_kill_while_it_writes_leaves_the_old_table(tmp_path: Path) -> None:
    """The process dies after it wrote the new file and before it renamed it."""
    a_run(tmp_path, "a")
    compact_metrics(tmp_path)
    a_run(tmp_path, "b")
    program = (
        "import os, sys, pathlib; from analysis.tables.metrics import compact_metrics\n"
        "pathlib.Path.replace = lambda *_: os._exit(9)\n"
        "compact_metrics(pathlib.Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    assert len(pd.read_parquet(tmp_path / "metrics.parquet")) == 20
    assert len(load_metrics(tmp_path)) == 40
    assert compact_metrics(tmp_path).num_read == 1


def test_collect_brings_the_table_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "s", "a")
    row = {"run_id": "a", "tokens": 160, "batch_tokens": 8, "loss": 0.5, "seed": 0}
    write_result(run, status="done", row=row, measurements={})
    collect("s", tmp_path)
    assert len(pd.read_parquet(tmp_path / "s" / "metrics.parquet")) == 20
    append_metrics(run, {"step": 21, "tokens": 168, "loss": 0.5})
    collect("s", tmp_path)
    assert len(pd.read_parquet(tmp_path / "s" / "metrics.parquet")) == 21


def test_collect_and_status_load_no_laws() -> None:
    program = "import sys, analysis.commands.collect; print([m for m in ('jax', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_300_runs_of_2000_steps_load_and_group_in_two_seconds(tmp_path: Path) -> None:
    """The bound is on CPU seconds of this process, so that other processes do not count."""
    text = "".join(
        json.dumps(
            {"step": i, "tokens": 512 * i, "loss": 1.2345678 + 1 / i, "grad_norm": 0.5, "learning_rate": 1e-3 / i}
        )
        + "\n"
        for i in range(1, 2001)
    )
    for i in range(300):
        run = tmp_path / "runs" / f"{i:012x}"
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(text)
    compact_metrics(tmp_path)
    began = time.process_time()
    table = load_metrics(tmp_path)
    binned = table.groupby(["run_id", table["step"] // 100], observed=True)["loss"].mean()
    took = time.process_time() - began
    assert (len(table), len(binned)) == (600_000, 300 * 21)
    assert took < 2
    os.utime(run / "metrics.jsonl")
    began = time.process_time()
    assert compact_metrics(tmp_path).num_read == 1
    assert time.process_time() - began < 4
