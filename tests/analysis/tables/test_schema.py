"""The columns of the results table."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from analysis.tables import results, schema

ROOT = Path(__file__).parents[3]


def test_the_parts_of_the_schema_are_columns() -> None:
    assert len(set(schema.COLUMNS)) == len(schema.COLUMNS)
    for names in (schema.TEXT_COLUMNS, schema.SORT_COLUMNS, schema.RUN_COLUMNS, schema.TIMING_COLUMNS):
        assert set(names) <= set(schema.COLUMNS)
    assert schema.DEFAULT_PARAMS_COLUMN in schema.COLUMNS


def test_a_table_has_the_columns_in_order_and_measurements_after_them() -> None:
    row = {name: "" if kind == "text" else 1.0 for name, kind in schema.KINDS.items()}
    row |= {"reason": "why", "b/accuracy": 0.5, "a/accuracy": 0.5}
    table = results.arrange(pd.DataFrame([dict(reversed(row.items()))]))
    assert tuple(table) == (*schema.COLUMNS, "a/accuracy", "b/accuracy")


def test_names_of_files_stand_once_in_analysis() -> None:
    literal = re.compile(
        r'"(runs|config\.json|environment\.json|result\.json|metrics\.\w+|evaluations\.jsonl|plan\.json)"'
    )
    files = [path for path in (ROOT / "analysis").rglob("*.py") if path.name != "run_files.py"]
    # "runs" is also the id of a section of the report page and the name of its tables' class
    uses = {(path.name, match[1]) for path in files for match in literal.finditer(path.read_text())}
    assert {use for use in uses if use[1] != "runs"} == set()
