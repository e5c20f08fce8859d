from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.errors import TableError
from analysis.forecasting import sealed_forecast

DOCUMENT: dict[str, Any] = {
    "law": "chinchilla",
    "formula": "L = 1.7 + 420/N^0.35 + 1800/D^0.37",
    "source": "Hoffmann et al. 2022, eq. 2",
    "parameters": {"E": 1.7, "A": 420.0, "B": 1800.0, "alpha": 0.35, "beta": 0.37},
    "objective": {"name": "huber", "delta": 1e-3, "value": 1e-4},
    "params_column": "params_matmul",
    "holdout": "largest",
    "seed": 0,
    "uncertainty": "pairs bootstrap",
    "table": {"path": "t.csv", "sha256": "ab" * 32},
    "points": [{"params": 1e7, "tokens": 1e9, "loss": 3.9}, {"params": 1e8, "tokens": 1e9, "loss": 3.2}],
    "held_out": [{"params": 1e9, "tokens": 3e10, "loss": 2.3}],
}


def forecast_row(params: float, tokens: float) -> dict[str, Any]:
    middle = {"predicted": 2.5, "low": 2.4, "high": 2.6, "level": 0.9}
    return {"run_id": "x", "params": params, "tokens": tokens, "measured": 2.3, **middle}


def table(*rows: tuple[float, float, float, str]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=["params_matmul", "tokens", "loss", "status"])
    return frame.assign(run_id=[f"run{i}" for i in range(len(rows))])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sealed_forecast.write_sealed(DOCUMENT, [forecast_row(5e9, 1e11)], tmp_path / "lock.json")
    return tmp_path / "lock.json"


def test_a_sealed_forecast_has_its_targets_and_its_fit(path: Path) -> None:
    content = sealed_forecast.read_sealed(path)
    for name in ("law", "formula", "parameters", "objective", "params_column", "source"):
        assert content[name] == DOCUMENT[name]
    assert content["table_sha256"] == DOCUMENT["table"]["sha256"]
    target = content["targets"][0]
    assert (target["params"], target["tokens"], target["predicted"]) == (5e9, 1e11, 2.5)
    assert (target["low"], target["high"], target["level"], target["known"]) == (2.4, 2.6, 0.9, sealed_forecast.NEW)
    assert "measured" not in target, "a promise holds no outcome"
    written = datetime.fromisoformat(content["date"])
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=5)
    assert content["version"]


def test_the_hash_is_of_the_content_and_not_of_its_layout(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert sealed_forecast.read_sealed(path) == content
    assert sealed_forecast.sealed_hash(content) == content["sha256"]
    assert sealed_forecast.sealed_hash(content | {"points": 3}) != content["sha256"]


def test_a_sealed_forecast_is_never_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TableError, match=r"lock\.json"):
        sealed_forecast.write_sealed(DOCUMENT, [forecast_row(1e10, 1e11)], path)
    assert path.read_bytes() == before
    with pytest.raises(TableError, match=r"other\.json"):
        sealed_forecast.write_sealed(DOCUMENT, [], path.with_name("other.json"))
    assert not path.with_name("other.json").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"low": 2.4', '"low": 2.3'),
        ('"predicted": 2.5', '"predicted": 2.5000000001'),
        ('"tokens": 100000000000.0', '"tokens": 200000000000.0'),
        ('"alpha": 0.35', '"alpha": 0.36'),
        ('"date": "2', '"date": "1'),
        ("abab", "abac"),
        ('"known": "new"', '"known": "old"'),
    ],
)
def test_any_edit_is_an_error(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(TableError, match=r"lock\.json.*\b[0-9a-f]{64}\b.*\b[0-9a-f]{64}\b"):
        sealed_forecast.read_sealed(path)


def test_a_number_that_json_lacks_is_an_error(path: Path) -> None:
    path.write_text(path.read_text().replace('"low": 2.4', '"low": NaN', 1))
    with pytest.raises(TableError, match=r"lock\.json.*\bNaN\b"):
        sealed_forecast.read_sealed(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "targets'])
def test_a_file_that_is_no_sealed_forecast_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock.json").write_text(text)
    with pytest.raises(TableError, match=r"lock\.json"):
        sealed_forecast.read_sealed(tmp_path / "lock.json")
    with pytest.raises(TableError, match=r"none\.json.*--seal"):
        sealed_forecast.read_sealed(tmp_path / "none.json")


def test_another_schema_is_an_error(path: Path) -> None:
    content = json.loads(path.read_text()) | {"schema": 99}
    path.write_text(json.dumps(content | {"sha256": sealed_forecast.sealed_hash(content)}))
    with pytest.raises(TableError, match=r"lock\.json.*\b99\b"):
        sealed_forecast.read_sealed(path)


def test_each_finished_run_of_a_target_is_scored(path: Path) -> None:
    rows = sealed_forecast.score_sealed(
        sealed_forecast.read_sealed(path),
        table(
            (5e9 * 1.0009, 1e11, 2.45, "done"),
            (5e9, 1e11 * 0.9991, 2.65, "done"),
            (5e9 * 1.0011, 1e11, 2.45, "done"),
            (5e9, 1e11, np.nan, "failed"),
            (1e8, 1e9, 3.2, "done"),
        ),
    )
    assert [row["run_id"] for row in rows] == ["run0", "run1"]
    assert [row["inside"] for row in rows] == [True, False]
    assert [row["measured"] for row in rows] == [2.45, 2.65]
    assert [row["relative_error"] for row in rows] == pytest.approx([2.5 / 2.45 - 1, 2.5 / 2.65 - 1])
    assert {row["note"] for row in rows} == {""}


def test_a_target_without_a_run_has_no_score(path: Path) -> None:
    locked = sealed_forecast.read_sealed(path)
    for runs, note in ((table((1e8, 1e9, 3.2, "done")), ""), (table((5e9, 1e11, np.nan, "diverged")), "diverged")):
        (row,) = sealed_forecast.score_sealed(locked, runs)
        assert (row["measured"], row["inside"], row["relative_error"]) == (None, None, None)
        assert note in row["note"]
        assert bool(note) == bool(row["note"])


def test_the_note_says_whether_the_fit_knew_the_run(tmp_path: Path) -> None:
    rows = [forecast_row(1e8, 1e9), forecast_row(1e9, 3e10), forecast_row(5e9, 1e11)]
    content = sealed_forecast.write_sealed(DOCUMENT, rows, tmp_path / "lock.json")
    assert [target["known"] for target in content["targets"]] == [
        sealed_forecast.FITTED,
        sealed_forecast.HELD_OUT,
        sealed_forecast.NEW,
    ]
    scored = sealed_forecast.score_sealed(
        content, table(*((row["params"], row["tokens"], 2.5, "done") for row in rows))
    )
    notes = [row["note"] for row in scored]
    assert notes == [sealed_forecast.NOTES[sealed_forecast.FITTED], sealed_forecast.NOTES[sealed_forecast.HELD_OUT], ""]
    assert len(set(notes)) == 3


def test_the_table_must_have_the_params_column_of_the_fit(path: Path) -> None:
    runs = table((5e9, 1e11, 2.45, "done"))
    with pytest.raises(TableError, match="params_matmul"):
        sealed_forecast.score_sealed(
            sealed_forecast.read_sealed(path), runs.rename(columns={"params_matmul": "params_total"})
        )
    with pytest.raises(TableError, match=r"\b1\b.*run0.*loss.*-1"):
        sealed_forecast.score_sealed(sealed_forecast.read_sealed(path), runs.assign(loss=-1.0))


def test_a_run_without_a_finite_loss_counts_as_diverged(path: Path) -> None:
    runs = table((5e9, 1e11, np.nan, "done"))
    (row,) = [
        row for row in sealed_forecast.score_sealed(sealed_forecast.read_sealed(path), runs) if row["params"] == 5e9
    ]
    assert (row["measured"], row["inside"]) == (None, None)
    assert "diverged" in row["note"]
