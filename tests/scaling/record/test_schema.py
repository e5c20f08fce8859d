"""The columns of a results table and the names of a run's files: written once, the same in docs and `analysis`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.tables import run_files
from analysis.tables import schema as table_schema
from scaling.config.run_config import RunConfig
from scaling.record import run_folder, schema
from tests.conftest import ROOT


def test_the_docs_have_the_columns_of_the_schema() -> None:
    text = (ROOT / "docs" / "conventions.md").read_text()
    assert schema.markdown_table() in text


def test_each_column_is_named_once_in_the_docs_table() -> None:
    section = (ROOT / "docs" / "conventions.md").read_text().partition("## Columns of the results table")[2]
    section = section.partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == schema.NAMES
    assert len(set(schema.NAMES)) == len(schema.NAMES)


def test_the_columns_that_follow_from_a_config_are_in_the_schema_with_their_types() -> None:
    row = run_folder.result_row(RunConfig(), tokens=4096, unique_tokens=2048)
    schema.check_row(row)
    kinds = {column.name: column.type for column in schema.COLUMNS}
    types = {"text": str, "integer": int, "number": float}
    assert {name for name, value in row.items() if value is not None and type(value) is not types[kinds[name]]} == set()


@pytest.mark.parametrize("name", ["los", "flags", "cloze/accuracy"])
def test_a_result_with_a_column_of_no_schema_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        run_folder.write_result(tmp_path, status="done", row={"loss": 1.0, name: 2.0}, measurements={})
    assert not (tmp_path / run_folder.RESULT).exists()


def test_analysis_has_the_same_columns_in_the_same_order() -> None:
    assert table_schema.COLUMNS == schema.NAMES


def test_analysis_has_the_same_names_of_files() -> None:
    shared = {name for name in vars(run_files) if name.isupper()} & set(vars(run_folder))
    assert shared >= {"CONFIG", "RESULT", "METRICS", "EVALUATIONS"}
    assert {name: getattr(run_files, name) for name in shared} == {name: getattr(run_folder, name) for name in shared}
