"""Evaluations of checkpoints: `evaluations.jsonl` in a run folder, one line for each task and step.

    {"schema": 1, "step", "tokens", "task", "budget", "seed", "measurements": {"task/metric": [value, n, stderr]}}

Of several lines of one task and step the last counts; torn lines are ignored. `analysis` reads the same file
(analysis/tables/evaluations.py).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict

from scaling.files import append_json_line, read_json_lines, warn_once
from scaling.record.run_folder import EVALUATIONS, JsonValue, Value, to_json

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


class EvaluationLine(TypedDict):
    """A line of evaluations.jsonl: the fields of an Evaluation, and its schema."""

    schema: Literal[1]
    step: int
    tokens: int
    task: str
    budget: int
    seed: int
    measurements: dict[str, JsonValue]


def append_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Adds an evaluation to a run folder. Numbers that are not finite become null."""
    line = asdict(evaluation) | {"measurements": to_json(evaluation.measurements)}
    append_json_line(folder / EVALUATIONS, {"schema": SCHEMA, **line})


def read_evaluations(folder: Path) -> dict[tuple[str, int], Evaluation]:
    """The evaluations of a run folder by (task, step). Lines that are damaged, of another schema or without a value are
    left out with a warning: `scaling eval` evaluates again what they held."""
    path, evaluations = folder / EVALUATIONS, {}
    for number, line in read_json_lines(path, EvaluationLine):
        values = {name: Value(_number(v), n, _number(e)) for name, (v, n, e) in line["measurements"].items()}
        if not values:
            warn_once(f"{path}: line {number} is left out: measurements = {{}}: must hold a value")
            continue
        fields = {name: line[name] for name in ("step", "tokens", "task", "budget", "seed")}
        evaluations[line["task"], line["step"]] = Evaluation(**fields, measurements=values)
    return evaluations


def _number(value: float | None) -> float:
    return math.nan if value is None else value
