"""How the runs of other people's tables ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import load
from analysis.errors import TableError
from analysis.tables import run_status, table_checks
from analysis.tables.results import select_points


def read(folder: Path, where: str = "", **columns: list[Any]) -> pd.DataFrame:
    table = pd.DataFrame(columns)
    counts = {"params": range(1, len(table) + 1), "tokens": 1, "loss": 2.0}
    table.assign(**counts).to_csv(folder / "t.csv", index=False)
    return load(folder / "t.csv", where=where)


@pytest.mark.parametrize(
    ("name", "words", "statuses"),
    [
        ("status", ["finished", "Completed ", "success", "ok"], ["done"] * 4),
        ("State", ["finished", "crashed", "killed", "running"], ["done", "failed", "failed", "unfinished"]),
        ("run_state", ["COMPLETED", "OUT_OF_MEMORY", "TIMEOUT", "diverged"], ["done", "failed", "failed", "diverged"]),
        ("State", ["CA", "NY", "WA", "TX"], ["done"] * 4),
        ("status", ["", "", "", ""], ["done"] * 4),
        ("flags", ["ok", "crashed", "undertrained, diverged", "undertrained"], ["done", "failed", "diverged", "done"]),
        ("flags", [0, 1, 0, 0], ["done"] * 4),
    ],
)
def test_the_usual_words_are_read(tmp_path: Path, name: str, words: list[Any], statuses: list[str]) -> None:
    table = read(tmp_path, **{name: words})
    assert run_status.read_statuses(table).tolist() == statuses
    assert len(select_points(table, parameters=0).table) == statuses.count("done")


def test_other_words_are_named_with_the_flag_that_chooses_them(tmp_path: Path) -> None:
    words = ["Ended well", "finished", "Ended well", "crashed"]
    with pytest.raises(TableError, match=r"column status: 'Ended well' in 2 rows.*--where \"status==Ended well\""):
        select_points(read(tmp_path, status=words))
    for where, count in (("status==Ended well", 2), ("status!=finished", 2), ("status==finished", 1)):
        assert len(select_points(read(tmp_path, where, status=words), parameters=0).table) == count


@pytest.mark.parametrize("flags", [[0, 1, 0], [False, True, False], ["ok", "rerun", "none"], ["", "rising", None]])
def test_only_rows_with_a_flag_are_flagged(tmp_path: Path, flags: list[Any]) -> None:
    (warning,) = table_checks.flag_warnings(read(tmp_path, flags=flags))
    assert re.search(r"\brow 2\b.*\b1 of 3\b", warning)
    assert len(read(tmp_path, "flags==", flags=flags)) == 2


def test_usual_words_are_named_by_ours_and_others_stay() -> None:
    table = pd.DataFrame({"status": ["done", "Finished", "crashed", "weird", None]})
    assert run_status.name_statuses(table).tolist() == ["done", "done", "failed", "weird", ""]
    assert run_status.name_statuses(pd.DataFrame({"loss": [1.0]})).tolist() == ["done"]
