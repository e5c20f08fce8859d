"""Evaluations of checkpoints: `evaluations.jsonl` in a run folder, one line for each task and step.

    {"schema": 1, "step", "tokens", "task", "budget", "seed", "measurements": {"task/metric": [value, n, stderr]}}

Of several lines of one task and step the last counts; torn lines are ignored. `analysis` reads the same file
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
    """The values of a task for one checkpoint.

    Attributes:
        step, tokens: steps and tokens after which the checkpoint was saved.
        task: name of the task.
        budget: number of questions, at most.
        seed: seed of the questions.
        measurements: "<task>/<metric>" -> value.
    """

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
    """The evaluations of a run folder by (task, step). Raises InputError on a line that is not an evaluation of this
    schema."""
    path, evaluations = folder / EVALUATIONS, {}
    for number, line in read_json_lines(path):
        if isinstance(line, dict) and (schema := line.pop("schema", None)) != SCHEMA:
            raise InputError(f"{path}: schema = {schema!r}: this version reads {SCHEMA}")
        try:
            values = {name: Value(_number(v), n, _number(e)) for name, (v, n, e) in line.pop("measurements").items()}
            evaluations[line["task"], line["step"]] = Evaluation(**line, measurements=values)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(f"{path}: line {number} is no evaluation; delete it and evaluate again") from None
    return evaluations


def _number(value: float | None) -> float:
    return math.nan if value is None else value
