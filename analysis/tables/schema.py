"""The columns of the results table, one row per finished run: names, order and kinds.

Everything in analysis that reads or writes the table takes them from here. Their meanings and units are in
scaling/record/schema.py, and docs/conventions.md shows them; a test (tests/scaling/record/test_schema.py) keeps the
names and their order alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

Kind = Literal["text", "number"]

KINDS: Mapping[str, Kind] = {
    # what the run is and how it ended
    "run_id": "text",
    "sweep": "text",
    "status": "text",
    "flags": "text",
    "reason": "text",
    # its counts
    "params_total": "number",
    "params_non_embedding": "number",
    "params_matmul": "number",
    "width": "number",
    "depth": "number",
    "tokens": "number",
    "unique_tokens": "number",
    # its compute and its losses
    "flops": "number",
    "flops_6nd": "number",
    "loss": "number",
    "loss_stderr": "number",
    "bits_per_byte": "number",
    # its settings
    "seed": "number",
    "learning_rate": "number",
    "weight_decay": "number",
    "batch_tokens": "number",
    "budget_tokens": "number",
    "unique_limit": "number",
    "schedule": "text",
    "optimizer": "text",
    "parametrization": "text",
    # where it comes from
    "branch_of": "text",
    "flops_spent": "number",
    "recipe": "text",
    "overrides": "text",
    "learning_rate_from": "text",
    # how long it took
    "seconds": "number",
    "tokens_per_second": "number",
}
"""Column -> what it holds, in the order of the table. Measurements (`<task>/<metric>`, numbers) come after them."""

if TYPE_CHECKING:
    Row = dict[str, Any]
else:
    Row = TypedDict("Row", {n: (str if k == "text" else float) | None for n, k in KINDS.items()}, total=False)
    """The row of a result.json: a run of an earlier version, and one that failed, lacks some of the columns."""

COLUMNS: tuple[str, ...] = tuple(KINDS)
TEXT_COLUMNS: tuple[str, ...] = tuple(name for name, kind in KINDS.items() if kind == "text")
SORT_COLUMNS = ("params_total", "tokens", "seed", "run_id")
"""The rows of a table are in this order."""

DEFAULT_PARAMS_COLUMN = "params_matmul"
"""The count of parameters that a law is fitted to unless another is named: the weights that a token is multiplied by.
So 6 params tokens is exact for the matrix products, and the output head counts, which tiny models spend much of their
compute on."""

SURFACE_COLUMNS = ("params", "tokens")
"""What the loss surface L(N, D) is a function of."""

RUN_COLUMNS = (
    "sweep",
    "status",
    "params_total",
    "params_non_embedding",
    "params_matmul",
    "width",
    "depth",
    "seed",
    "learning_rate",
    "batch_tokens",
    "schedule",
    "branch_of",
)
"""The columns that hold for every checkpoint of a run, not only for its last one."""

TIMING_COLUMNS = ("seconds", "tokens_per_second")
"""The columns that differ between two runs of equal results."""
