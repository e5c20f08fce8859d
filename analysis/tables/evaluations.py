"""Reads evaluations.jsonl of a run folder, which `scaling eval` appends to; scaling/record/evaluations.py describes its
lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis import files
from analysis.tables.run_files import EVALUATIONS, EvaluationLine


def read_run_evaluations(folder: Path) -> dict[int, tuple[int, dict[str, float | None]]]:
    """Step -> (tokens trained on by then, columns) of each evaluated checkpoint of a run, by step.

    The columns are those of the results table: `<task>/<metric>` and, if it has a sampling error,
    `<task>/<metric>_stderr`. Torn lines are ignored, and damaged ones with a warning; of several lines of one task and
    step the last counts.
    """
    lines: dict[tuple[int, str], dict[str, Any]] = {}  # (step, task) -> its last line
    path = folder / EVALUATIONS
    for number, line in files.read_json_lines(path, EvaluationLine):
        if line["measurements"]:
            lines[line["step"], line["task"]] = line
        else:
            files.warn_once(f"{path}: line {number} is left out: measurements = {{}}: must hold a value")
    by_step: dict[int, tuple[int, dict[str, float | None]]] = {}
    for (step, _), line in sorted(lines.items()):
        _, columns = by_step.setdefault(step, (line["tokens"], {}))
        for name, (value, n, stderr) in line["measurements"].items():
            columns |= {name: value} | ({f"{name}_stderr": stderr} if n else {})
    return by_step
