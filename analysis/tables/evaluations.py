"""Reads evaluations.jsonl of a run folder, which `scaling eval` appends to; scaling/record/evaluations.py describes its
lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.errors import TableError
from analysis.tables.run_files import EVALUATIONS

SCHEMA = 1


def read_run_evaluations(folder: Path) -> dict[int, tuple[int, dict[str, float]]]:
    """Step -> (tokens trained on by then, columns) of each evaluated checkpoint of a run, by step.

    The columns are those of the results table: `<task>/<metric>` and, if it has a sampling error,
    `<task>/<metric>_stderr`. Torn lines are ignored; of several lines of one task and step the last counts.

    Raises TableError on lines of another schema or form.
    """
    path = folder / EVALUATIONS
    try:
        return _columns_by_step(path)
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: {error}; delete it and evaluate again") from None


def _columns_by_step(path: Path) -> dict[int, tuple[int, dict[str, float]]]:
    lines: dict[tuple[int, str], dict[str, Any]] = {}  # (step, task) -> its last line
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["schema"] != SCHEMA:
            raise ValueError(f"schema = {line['schema']!r}: this version reads {SCHEMA}")
        lines[line["step"], line["task"]] = line
    by_step: dict[int, tuple[int, dict[str, float]]] = {}
    for (step, _), line in sorted(lines.items()):
        _, columns = by_step.setdefault(step, (line["tokens"], {}))
        for name, (value, n, stderr) in line["measurements"].items():
            columns |= {name: value} | ({f"{name}_stderr": stderr} if n else {})
    return by_step
