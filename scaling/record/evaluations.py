"""What checkpoints were found able to do: `evaluations.jsonl` in the run folder, one line a (task, step).

    {"schema": 1, "step", "tokens", "task", "budget", "seed", "measurements": {"task/metric": [value, n, stderr]}}

The last line of a (task, step) counts; torn lines are ignored. Analysis reads the same file
(analysis/tables/evaluations.py).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling.errors import InputError
from scaling.files import append_json_line, read_json_lines
from scaling.record.run_folder import EVALUATIONS, Value, to_json

SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """A task asked of the checkpoint after `step` steps, `tokens` tokens, with so large a budget and this seed."""

    step: int
    tokens: int
    task: str
    budget: int
    seed: int
    measurements: dict[str, Value]


def append_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Adds an evaluation to a run folder. Numbers that are not finite become null."""
    line = asdict(evaluation) | {"measurements": to_json(evaluation.measurements)}
    append_json_line(folder / EVALUATIONS, {"schema": SCHEMA, **line})


def read_evaluations(folder: Path) -> dict[tuple[str, int], Evaluation]:
    """The evaluations of a run folder by task and step. Raises InputError on a line of another schema, or
    of something else."""
    path, found = folder / EVALUATIONS, {}
    for number, line in read_json_lines(path):
        if isinstance(line, dict) and (schema := line.pop("schema", None)) != SCHEMA:
            raise InputError(f"{path}: schema = {schema!r}: this version reads {SCHEMA}")
        try:
            measured = {name: Value(_number(v), n, _number(e)) for name, (v, n, e) in line.pop("measurements").items()}
            found[line["task"], line["step"]] = Evaluation(**line, measurements=measured)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(f"{path}: line {number} is no evaluation; delete it and evaluate again") from None
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
