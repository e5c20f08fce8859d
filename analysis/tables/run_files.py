"""The files in a sweep's folder and in its run folders that analysis reads and writes: their names, and what those in
JSON hold.

The package `scaling` writes the files of a run folder; scaling/record/ describes what they hold.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

# In the folder of a sweep.
RUNS = "runs"
PLAN = "plan.json"
RESULTS_PARQUET, RESULTS_CSV = "results.parquet", "results.csv"
METRICS_PARQUET = "metrics.parquet"

# In a run folder, <sweep>/runs/<run_id>/.
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"

Scalar = str | float | bool | None
JsonValue = tuple[float | None, int, float | None]
"""A measured number as [value, n, stderr], with null for numbers that are not finite."""


class ResultFile(TypedDict):
    """The content of result.json. row: columns of the results table (analysis/tables/schema.py)."""

    schema: Literal[1]
    status: Literal["done", "diverged", "failed"]
    reason: NotRequired[str]
    row: dict[str, Scalar]
    measurements: dict[str, JsonValue]


class MetricsLine(TypedDict):
    """A line of metrics.jsonl; it may have further numbers."""

    step: int
    tokens: NotRequired[float]
    loss: NotRequired[float | None]
    grad_norm: NotRequired[float | None]
    learning_rate: NotRequired[float | None]
    validation_loss: NotRequired[float | None]
    tokens_per_second: NotRequired[float | None]


class EvaluationLine(TypedDict):
    """A line of evaluations.jsonl."""

    schema: Literal[1]
    step: int
    tokens: int
    task: str
    measurements: dict[str, JsonValue]
