"""The columns of a results table, one row a finished run. Every writer of a row is checked against this list; the
table of columns in docs/conventions.md is its text, and `analysis` keeps the same names in the same order.

Beside these, a table has a pair of columns `<task>/<metric>` and `<task>/<metric>_stderr` for each measured number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict


@dataclass(frozen=True)
class Column:
    """One column. unit: of a number; empty for text and pure numbers. meaning: one line, as docs/conventions.md has it.

    in_row: whether a run writes it into the `row` of its result.json; the others are added when a table is made.
    """

    name: str
    type: Literal["text", "integer", "number"]
    unit: str
    meaning: str
    in_row: bool = True


COLUMNS: tuple[Column, ...] = (
    Column("run_id", "text", "", "the run's id, a hash of the fields of its config that change the result"),
    Column("sweep", "text", "", "the sweep that planned the run; empty for a run of its own"),
    Column("status", "text", "", "`done`, `diverged` or `failed`"),
    Column("flags", "text", "", "what is wrong with the run, in words; empty for nothing", in_row=False),
    Column("reason", "text", "", "why the run failed or diverged", in_row=False),
    Column("params_total", "integer", "parameters", "every trained number; a tied head once"),
    Column(
        "params_non_embedding",
        "integer",
        "parameters",
        "all but the input embedding (Kaplan et al. 2020 leave a tied head out too)",
    ),
    Column(
        "params_matmul",
        "integer",
        "parameters",
        "what a token is multiplied by: blocks and head, tied or not; neither norms nor the look-up",
    ),
    Column("width", "integer", "", "model width"),
    Column("depth", "integer", "", "number of layers"),
    Column("tokens", "integer", "tokens", "target tokens trained on"),
    Column("unique_tokens", "integer", "tokens", "how many of `tokens` were distinct; empty when not known"),
    Column(
        "flops",
        "number",
        "FLOPs",
        "training, head and attention included, with half of attention's positions, as a causal model needs",
    ),
    Column("flops_6nd", "number", "FLOPs", "6 x `params_matmul` x `tokens`"),
    Column("loss", "number", "nats per token", "validation loss"),
    Column("loss_stderr", "number", "nats per token", "standard error of `loss` over validation sequences"),
    Column("bits_per_byte", "number", "bits per byte", "validation loss per byte of text, whatever the vocabulary"),
    Column("seed", "integer", "", "seed of the initial weights and of the order of batches"),
    Column("learning_rate", "number", "", "peak learning rate"),
    Column("weight_decay", "number", "", "decoupled weight decay"),
    Column("batch_tokens", "integer", "tokens", "tokens of an optimizer step"),
    Column("budget_tokens", "integer", "tokens", "tokens that the run was to train on, in whole batches"),
    Column("unique_limit", "integer", "tokens", "`data.unique_tokens` of the config; empty for the whole corpus"),
    Column("schedule", "text", "", "learning-rate schedule: `cosine` or `wsd`"),
    Column("optimizer", "text", "", "`adamw` or `muon`"),
    Column("parametrization", "text", "", "`standard`, `mup` or `completep`"),
    Column(
        "branch_of", "text", "", "run_id of the trunk whose stable phase the run shares; empty for a run of its own"
    ),
    Column(
        "flops_spent", "number", "FLOPs", "the part of `flops` that this run added: a branch leaves its trunk's out"
    ),
    Column("recipe", "text", "", "the recipe's call that gave the config; empty for one written by hand"),
    Column("overrides", "text", "", "fields set beside the recipe, as `model.width=64; seed=1`"),
    Column("learning_rate_from", "text", "", "how the learning rate was found: a rule, a scan, or an override"),
    Column("seconds", "number", "seconds", "wall time of the session that ended the run, without compilation"),
    Column("tokens_per_second", "number", "tokens per second", "rate of that session"),
)
if TYPE_CHECKING:
    ResultRow = dict[str, Any]
else:
    _TYPES = {"text": str | None, "integer": int | None, "number": float | None}
    ResultRow = TypedDict("ResultRow", {c.name: _TYPES[c.type] for c in COLUMNS if c.in_row}, total=False)
    """The row in a result.json: a run of an earlier version, and one that failed, lacks some of the columns."""
NAMES: tuple[str, ...] = tuple(column.name for column in COLUMNS)
_ROW_NAMES = frozenset(column.name for column in COLUMNS if column.in_row)


def check_row(names: Iterable[str]) -> None:
    """Raises ValueError when a row has a column that is not in the schema, or that only a table has."""
    unknown = sorted(set(names) - _ROW_NAMES)
    if unknown:
        raise ValueError(f"row of a result: {', '.join(unknown)} not among the columns of scaling/record/schema.py")


def markdown_table() -> str:
    """The columns as the table of docs/conventions.md."""
    lines = [f"| `{column.name}` | {column.unit or column.type} | {column.meaning} |" for column in COLUMNS]
    return "\n".join(["| column | unit or type | what it holds |", "|---|---|---|", *lines])
