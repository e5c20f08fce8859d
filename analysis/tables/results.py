"""Results tables: run folders, CSV, Parquet and JSONL read into one tidy table with canonical columns.

The columns are those of the results schema (one row a finished run, losses in nats per token, counts as counts). Every
row carries every counting convention; a fit names the one it used. For tables made here that is `params_matmul` unless
told otherwise: the numbers that a token is multiplied by, so that training FLOPs are 6 N D exactly under that
convention, and the head, which tiny models spend much of their compute on, is counted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.files import write_by_rename
from analysis.tables import evaluations, flags

DEFAULT_PARAMS_COLUMN = "params_matmul"
_LEADING = ("run_id", "sweep", "status", "flags", "reason")
_COUNTS = ("params_total", "params_non_embedding", "params_matmul", "width", "depth", "tokens", "unique_tokens")
_LOSSES = ("flops", "flops_6nd", "loss", "loss_stderr", "bits_per_byte")
_SETTINGS = ("seed", "learning_rate", "weight_decay", "batch_tokens", "budget_tokens", "unique_limit", "schedule")
_KINDS = ("optimizer", "parametrization")
_ORIGIN = ("branch_of", "flops_spent", "recipe", "overrides", "learning_rate_from", "seconds", "tokens_per_second")
CANONICAL = _LEADING + _COUNTS + _LOSSES + _SETTINGS + _KINDS + _ORIGIN
_TEXT = (*_LEADING, "schedule", "optimizer", "parametrization", "branch_of", *_ORIGIN[2:5])
MAX_LISTED = 12
_ORDER = ("params_total", "tokens", "seed", "run_id")


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A sweep folder, CSV, Parquet or JSONL file as one table, rows in a fixed order.

    Failed and diverged runs stay, with their status. `attrs["unfinished"]` counts run folders that hold no result yet.
    The runs of a folder are flagged (analysis.tables.flags).

    Args:
      columns: canonical name -> name in the file, for tables made elsewhere.
    Raises:
      TableError: no such path, unreadable or torn file, or a mapped column that the file lacks.
    """
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path}: no such file or folder")
    table = _read_folder(path) if path.is_dir() else _read_file(path)
    for canonical, source in (columns or {}).items():
        require_columns(table, [source], f"{path}: --columns {canonical}={source}")
        table = table.drop(columns=canonical, errors="ignore") if canonical != source else table
        table[canonical] = table[source]
    for name in set(_TEXT) & set(table.columns):
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    return table


def _read_file(path: Path) -> pd.DataFrame:
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": pd.read_csv,
        ".parquet": pd.read_parquet,
        ".jsonl": lambda file: pd.read_json(file, lines=True),
    }
    if path.suffix not in readers:
        raise TableError(f"{path}: a table is a sweep folder, or a file ending in {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except (ValueError, OSError, UnicodeError) as error:
        raise TableError(f"{path}: not a readable {path.suffix[1:]} table ({str(error).splitlines()[0]})") from None


def _read_folder(folder: Path) -> pd.DataFrame:
    runs = folder / "runs"
    if not runs.is_dir():
        collected = folder / "results.parquet"
        if collected.exists():
            return _read_file(collected)
        raise TableError(f"{folder}: holds neither runs/ nor results.parquet")
    folders = sorted(path for path in runs.iterdir() if path.is_dir())
    finished = [path for path in folders if (path / "result.json").exists()]
    table = arrange(pd.DataFrame([read_run(path) for path in finished]))
    table = arrange(flags.add_flags(table, runs)) if finished else table
    table.attrs["unfinished"] = len(folders) - len(finished)
    return table


def read_run(folder: Path) -> dict[str, Any]:
    """The row of a finished run: its result, and what `scaling eval` found at its end. Raises TableError when torn."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text())
        row = {"run_id": folder.name, **result["row"], "status": result["status"], "reason": result.get("reason", "")}
        for name, (value, _, stderr) in result["measurements"].items():
            row[name], row[f"{name}_stderr"] = value, stderr
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: not a whole result ({error}): a torn write? delete it and run again") from None
    at_the_end = (columns for tokens, columns in evaluated_steps(folder).values() if tokens == row.get("tokens"))
    return row | next(at_the_end, {})


def evaluated_steps(folder: Path) -> dict[int, tuple[int, dict[str, float]]]:
    """As `evaluated.columns`. Raises TableError on lines that are not ours."""
    try:
        return evaluations.read_run_evaluations(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{folder / evaluations.FILE}: {error}; delete it and evaluate again") from None


def arrange(table: pd.DataFrame) -> pd.DataFrame:
    """Canonical columns first, measurements after in order of name, rows by size, horizon, seed and id."""
    known = [name for name in CANONICAL if name in table]
    table = table[known + sorted(set(table.columns) - set(known))]
    if "reason" in table and not table["reason"].astype(bool).any():
        table = table.drop(columns="reason")
    order = [name for name in _ORDER if name in table]
    return (table.sort_values(order, kind="stable") if order else table).reset_index(drop=True)


def write_table(table: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    """Writes results.parquet and results.csv by rename. Equal sweeps give equal bytes, timing columns apart."""
    table = arrange(table).copy()
    table.attrs = {}
    parquet, csv = folder / "results.parquet", folder / "results.csv"
    write_by_rename(parquet, lambda path: table.to_parquet(path, index=False))
    write_by_rename(csv, lambda path: table.to_csv(path, index=False))
    return parquet, csv


def content_hash(path: Path) -> str:
    """sha256 of a table file; of a sweep folder, of the table that its runs make."""
    return hash_table(read_table(path)) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


def hash_table(table: pd.DataFrame) -> str:
    """sha256 of a table's rows as CSV."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def parse_columns(text: str) -> dict[str, str]:
    """ "params=N,tokens=D" -> {"params": "N", "tokens": "D"}. Raises TableError on anything else."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not source.strip() for name, _, source in pairs):
        raise TableError(f"--columns {text}: write canonical=source pairs, as in params=N,tokens=D,loss=L")
    return {name.strip(): source.strip() for name, _, source in pairs}


@dataclass(frozen=True)
class Points:
    """What a law is fitted to.

    table: columns run_id, cluster, flags and learning_rate_from where the table has them, those of the law, flops where
      they can be told, and the response; all numbers finite and positive; by training FLOPs, ascending.
    params_column: the counting convention behind `params`.
    num_dropped: rows left out because their run failed or diverged.
    """

    table: pd.DataFrame
    params_column: str
    num_dropped: int


SURFACE_COLUMNS = ("params", "tokens")


def select_points(
    table: pd.DataFrame,
    params_column: str | None = None,
    *,
    parameters: int = 5,
    columns: tuple[str, ...] = SURFACE_COLUMNS,
    response: str = "loss",
) -> Points:
    """The usable points of a table, checked.

    `cluster` is the trunk that a run branched from, else the run itself: points of one trunk share its noise. `flops`
    is the table's own column, else 6 * params * tokens.

    Args:
      params_column: counting convention; `params` if the table has it, else params_matmul, unless given.
      parameters: number of parameters of the law to be fitted.
      columns: those that the law reads, `params` being the one that the convention names.
      response: the one that it predicts.
    Raises:
      TableError: missing columns, values that are not finite and positive, or fewer points than a law needs.
    """
    column = params_column or ("params" if "params" in table else DEFAULT_PARAMS_COLUMN)
    points = done_points(table, column, columns, response)
    dropped = len(table) - len(points)
    distinct = len(points[list(columns)].drop_duplicates())
    require_points(distinct, parameters, f", {dropped} rows were not done" if dropped else "", columns)
    order = [name for name in ("flops", *columns, "run_id") if name in points]
    return Points(points.sort_values(order, kind="stable").reset_index(drop=True), column, dropped)


def done_points(
    table: pd.DataFrame, params_column: str, columns: tuple[str, ...] = SURFACE_COLUMNS, response: str = "loss"
) -> pd.DataFrame:
    """The rows that are done, in the order of the table, perhaps none: the columns of `Points.table`. Raises TableError
    for missing columns, or values that are not finite and positive."""
    sources = {name: params_column if name == "params" else name for name in (*columns, response)}
    require_columns(table, sources.values(), "the table")
    numbered = table.assign(row=(table.index if table.index.dtype.kind == "i" else np.arange(len(table))) + 1)
    done = numbered[numbered["status"] == "done"] if "status" in table else numbered
    rows = done["row"].tolist()
    ids = done["run_id"].astype(str).tolist() if "run_id" in table else [f"row {row}" for row in rows]
    branches = done["branch_of"].astype(str).tolist() if "branch_of" in table else [""] * len(rows)
    clusters = [branch or run for branch, run in zip(branches, ids, strict=True)]
    values = {name: _positive(done, source) for name, source in sources.items()}
    if "flops" in table:
        values = {"flops": _positive(done, "flops")} | values
    elif set(SURFACE_COLUMNS) <= set(values):
        values["flops"] = 6 * values["params"] * values["tokens"]
    carried = {name: done[name].tolist() for name in ("flags", "learning_rate_from") if name in table}
    return pd.DataFrame({"run_id": ids, "cluster": clusters, **carried, **values})


def require_points(distinct: int, parameters: int, note: str = "", columns: tuple[str, ...] = SURFACE_COLUMNS) -> None:
    """Raises TableError unless a law with that many parameters leaves at least one degree of freedom."""
    if distinct <= parameters:
        raise TableError(
            f"fewer points than parameters: {distinct} distinct ({', '.join(columns)}) for {parameters} parameters; "
            f"at least {parameters + 1} are needed{note}"
        )


def _positive(table: pd.DataFrame, column: str) -> np.ndarray:
    """The column as float64. Raises TableError naming the first row that is not a finite positive number."""
    numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(bad):
        entry = table.iloc[bad[0]]
        run = f" (run {entry['run_id']})" if "run_id" in table else ""
        raise TableError(
            f"row {entry['row']}{run}: {column} = {entry[column]}, must be a finite number above zero"
            + (f"; {len(bad)} such rows" if len(bad) > 1 else "")
        )
    return numbers


def require_columns(table: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    have = [str(name) for name in table.columns]
    missing = [name for name in needed if name not in have]
    if not missing:
        return
    lower = {name.lower(): name for name in have}
    close = {m: difflib.get_close_matches(m.lower(), lower, n=1) for m in missing}
    hints = [f"{lower[found[0]]} for {name}" for name, found in close.items() if found]
    raise TableError(
        f"{where} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {', '.join(have)}"
        + (f"; did you mean {', '.join(hints)}?" if hints else "")
        + "; map columns with --columns params=N,tokens=D,loss=L"
    )
