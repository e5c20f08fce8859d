"""What `scaling eval` found, out of run folders: `evaluations.jsonl`, whose lines scaling/record/evaluations.py
describes.

Not in the design's list of modules: `results` makes tables of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE, SCHEMA = "evaluations.jsonl", 1


def read_run_evaluations(folder: Path) -> dict[int, tuple[int, dict[str, float]]]:
    """Step -> (tokens trained on by then, columns) of each evaluated checkpoint of a run, ascending: `<task>/<metric>`
    and `<task>/<metric>_stderr` as the results table has them, none of the latter where a number is known exactly.

    Torn lines are ignored; of lines of one task and step the last counts. Raises ValueError on another schema.
    """
    path = folder / FILE
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["schema"] != SCHEMA:
            raise ValueError(f"schema = {line['schema']!r}: this version reads {SCHEMA}")
        lines[line["step"], line["task"]] = line
    found: dict[int, tuple[int, dict[str, float]]] = {}
    for (step, _), line in sorted(lines.items()):
        _, row = found.setdefault(step, (line["tokens"], {}))
        for name, (value, n, stderr) in line["measurements"].items():
            row |= {name: value} | ({f"{name}_stderr": stderr} if n else {})
    return found
