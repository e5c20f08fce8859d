"""Results tables: run folders and files (analysis.tables.table_files) as one tidy table, one row per finished run.

The columns are those of analysis.tables.schema: losses in nats per token, counts as plain counts. Every row has every
count of parameters, and a fit names the one that it used.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import files
from analysis.errors import TableError
from analysis.files import write_by_rename
from analysis.tables import evaluations, run_status
from analysis.tables.run_files import RESULT, RESULTS_CSV, RESULTS_PARQUET, RUNS, ResultFile
from analysis.tables.schema import COLUMNS, DEFAULT_PARAMS_COLUMN, SORT_COLUMNS, SURFACE_COLUMNS, TEXT_COLUMNS, Row
from analysis.tables.table_files import read_file
from analysis.type_checks import find_misfit, fits

MAX_LISTED = 12
"""Names or values that an error lists."""
MAX_WARNINGS = 10
"""Damaged runs of a folder that are named, a line each."""


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A sweep folder or a file as one table, rows in a fixed order.

    Failed and diverged runs stay, with their status. `attrs["unfinished"]` counts run folders that hold no result yet;
    `attrs["damaged"]` names the runs that are left out, with a warning, because their result.json is damaged. The runs
    of a folder are not flagged: see `analysis.tables.flags.read_flagged_table`.

    Args:
      columns: our name -> name in the file, for tables made elsewhere.
    Raises:
      TableError: no such path, an unreadable or torn file, or a name in `columns` that the file lacks.
    """
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path}: no such file or folder")
    sources = {(columns or {}).get(name, name) for name in TEXT_COLUMNS}
    table = _read_folder(path) if path.is_dir() else read_file(path, sources)
    return rename_columns(table, path, columns)


def rename_columns(table: pd.DataFrame, path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The table with our names of columns beside those of the file; missing entries of text columns become "".

    Args:
      path: where the table was read; errors name it.
      columns: our name -> name in the file.
    Raises:
      TableError: a name in `columns` that the file lacks.
    """
    file_table = table
    for name, source in (columns or {}).items():
        require_columns(file_table, [source], f"{path}: --columns {name}={source}")
        if name != source:
            table = table.drop(columns=name, errors="ignore").assign(**{name: file_table[source]})
    for name in set(TEXT_COLUMNS) & set(table.columns):
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    if "flags" in table:
        table["flags"] = run_status.read_flags(table["flags"])
    return table


def _read_folder(folder: Path) -> pd.DataFrame:
    runs = folder / RUNS
    if not runs.is_dir():
        collected = folder / RESULTS_PARQUET
        if collected.exists():
            return read_file(collected, TEXT_COLUMNS)
        raise TableError(f"{folder}: holds neither {RUNS}/ nor {RESULTS_PARQUET}")
    folders = sorted(path for path in runs.iterdir() if path.is_dir())
    finished = [path for path in folders if (path / RESULT).exists()]
    rows, damaged = [], {}  # damaged: name of the run -> what is wrong
    for path in finished:
        try:
            rows.append(read_run(path))
        except TableError as error:
            damaged[path.name] = str(error)
    if damaged and not rows:
        raise TableError(f"no run of {len(finished)} has a readable result: {next(iter(damaged.values()))}")
    for name, error in list(damaged.items())[:MAX_WARNINGS]:
        files.warn_once(f"run {name} is left out: {error}")
    if len(damaged) > MAX_WARNINGS:
        files.warn_once(f"{folder}: {len(damaged) - MAX_WARNINGS} more runs are left out likewise")
    table = arrange(pd.DataFrame(rows))
    table.attrs["unfinished"] = len(folders) - len(finished)
    table.attrs["damaged"] = list(damaged)
    return table


def read_run(folder: Path) -> dict[str, Any]:
    """The row of a finished run: its result, and what `scaling eval` measured at its last step. Raises TableError when
    result.json is damaged, or is of another run than a run folder of a sweep."""
    path = folder / RESULT
    remedy = "run it again: `scaling sweep run` sets a damaged result aside"
    result: ResultFile = files.read_json(path, ResultFile, remedy=remedy)
    if misfit := find_misfit(result["row"], Row, "row"):
        raise TableError(f"{path}: {misfit}; {remedy}")
    # A whole number of more than 64 bits would make a column of Python objects.
    row = {name: float(v) if type(v) is int and not fits(v, int) else v for name, v in result["row"].items()}
    row = {"run_id": folder.name, **row, "status": result["status"], "reason": result.get("reason", "")}
    for name, (value, _, stderr) in result["measurements"].items():
        row[name], row[f"{name}_stderr"] = value, stderr
    if folder.parent.name == RUNS and row["run_id"] != folder.name:
        raise TableError(
            f"{path}: row.run_id = {row['run_id']!r}: must be {folder.name!r}, the name of its folder: another run was "
            f"trained there, or the folder was copied; move it out of {folder.parent}"
        )
    by_step = evaluations.read_run_evaluations(folder)
    at_the_end = (columns for tokens, columns in by_step.values() if tokens == row.get("tokens"))
    return row | next(at_the_end, {})


def arrange(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns of the schema first and the others after them by name, rows by parameters, tokens,
    seed and run_id. A column `reason` without any entry is dropped."""
    known = [name for name in COLUMNS if name in table]
    table = table[known + sorted(set(table.columns) - set(known))]
    if "reason" in table and not table["reason"].astype(bool).any():
        table = table.drop(columns="reason")
    order = [name for name in SORT_COLUMNS if name in table]
    return (table.sort_values(order, kind="stable") if order else table).reset_index(drop=True)


def write_table(table: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    """Writes results.parquet and results.csv by rename and returns their paths. Sweeps of equal results give equal
    bytes, except in schema.TIMING_COLUMNS."""
    table = arrange(table).copy()
    table.attrs = {}
    parquet, csv = folder / RESULTS_PARQUET, folder / RESULTS_CSV
    write_by_rename(parquet, lambda path: table.to_parquet(path, index=False, write_page_checksum=True))
    write_by_rename(csv, lambda path: table.to_csv(path, index=False))
    return parquet, csv


def hash_source(path: Path, table: pd.DataFrame) -> str:
    """sha256 of where a table comes from: of the bytes of a file; of a folder, of the table as it was read from it."""
    return hash_table(table) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


def hash_table(table: pd.DataFrame) -> str:
    """sha256 of a table's rows as CSV."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


_PAIR = re.compile(r"""\s*(?P<name>[^,=]+?)\s*=\s*(?P<source>"[^"]+"|'[^']+'|[^,\s].*?)\s*(?:,(?=[^,=]*=)|,?\s*$)""")


def parse_columns(text: str) -> dict[str, str]:
    """ "params=N,tokens=D" -> {"params": "N", "tokens": "D"}. A name in the file may hold commas; with an equals sign
    after a comma it needs quotes. Raises TableError on anything else."""
    pairs, position = {}, 0
    while text[position:].strip():
        pair = _PAIR.match(text, position)
        if pair is None:
            raise TableError(
                f"--columns {text}: must be OUR_NAME=NAME_IN_THE_FILE pairs, as in params=N,tokens=D,loss=L"
            )
        pairs[pair["name"]] = pair["source"].strip("'\"")
        position = pair.end()
    return pairs


@dataclass(frozen=True)
class Points:
    """The points that a law is fitted to.

    Attributes:
      table: columns run_id; cluster; flags and learning_rate_from if the results table has them; flops if they are
        known or follow from params and tokens; those of the law; and the response. All numbers are finite and above
        zero. Rows by training FLOPs, ascending.
      params_column: the column of the results table that `params` holds.
      num_dropped: rows left out because their run failed or diverged, or has no finite response.
    """

    table: pd.DataFrame
    params_column: str
    num_dropped: int


def select_points(
    table: pd.DataFrame,
    params_column: str | None = None,
    *,
    parameters: int = 5,
    columns: tuple[str, ...] = SURFACE_COLUMNS,
    response: str = "loss",
) -> Points:
    """The usable points of a table, checked.

    `cluster` is the run whose trunk a run branched from, else the run itself: points of one trunk share its noise.
    `flops` is the table's own column, else 6 * params * tokens.

    Args:
      params_column: the count of parameters to use as `params`. Default: `params` if the table has it, else
        params_matmul.
      parameters: number of free parameters of the law to be fitted.
      columns: the columns that the law is a function of.
      response: the column that it predicts.
    Raises:
      TableError: missing columns, values that are not finite and above zero, or fewer points than the law needs.
    """
    column = params_column or ("params" if "params" in table else DEFAULT_PARAMS_COLUMN)
    points = done_points(table, column, columns, response)
    dropped = len(table) - len(points)
    distinct = len(points[list(columns)].drop_duplicates())
    note = "; ".join([f", {dropped} rows were not done or have no {response}", *points.attrs["notes"]])
    require_points(distinct, parameters, note if dropped else "", columns)
    order = [name for name in ("flops", *columns, "run_id") if name in points]
    return Points(points.sort_values(order, kind="stable").reset_index(drop=True), column, dropped)


def done_points(
    table: pd.DataFrame, params_column: str, columns: tuple[str, ...] = SURFACE_COLUMNS, response: str = "loss"
) -> pd.DataFrame:
    """The rows whose status is done and whose response is a finite number, perhaps none, with the columns of
    `Points.table` in the order of the table.

    `attrs["notes"]` says, a line each, which rows were left out because their response is missing or infinite, and
    whether flops had to be computed because some row has none.

    Raises TableError for missing columns, or other values that are not finite and above zero.
    """
    sources = {name: params_column if name == "params" else name for name in (*columns, response)}
    require_columns(table, sources.values(), "the table")
    numbered = table.assign(row=(table.index if table.index.dtype.kind == "i" else np.arange(len(table))) + 1)
    done, notes = measured_rows(run_status.done_rows(numbered), response)
    rows = done["row"].tolist()
    ids = done["run_id"].astype(str).tolist() if "run_id" in table else [f"row {row}" for row in rows]
    branches = done["branch_of"].astype(str).tolist() if "branch_of" in table else [""] * len(rows)
    clusters = [branch or run for branch, run in zip(branches, ids, strict=True)]
    values = {name: _positive(done, source) for name, source in sources.items()}
    can_compute = set(SURFACE_COLUMNS) <= set(values)
    flops = pd.to_numeric(done["flops"], errors="coerce").to_numpy(np.float64) if "flops" in table else np.array([])
    is_usable = np.isfinite(flops) & (flops > 0)
    if "flops" in table and (is_usable.all() or "flops" in values):
        values = {"flops": _positive(done, "flops")} | values
    elif can_compute:
        values["flops"] = 6 * values["params"] * values["tokens"]
    if not is_usable.all() and "flops" not in columns:
        instead = "6 params tokens for all rows" if can_compute else "none"
        names = [_name_run(run) for run, usable in zip(ids, is_usable.tolist(), strict=True) if not usable]
        notes = [*notes, f"{shorten(names)}: no number of flops in {len(names)} of {len(ids)} rows; used: {instead}"]
    carried = {name: done[name].tolist() for name in ("flags", "learning_rate_from") if name in table}
    points = pd.DataFrame({"run_id": ids, "cluster": clusters, **carried, **values})
    points.attrs["notes"] = notes
    return points


def measured_rows(table: pd.DataFrame, response: str) -> tuple[pd.DataFrame, list[str]]:
    """(rows whose response is neither missing nor infinite, a note that names the others): those of runs that crashed.

    table: perhaps with a column `row`, the place of each row in the file, from 1.
    """
    numbers = pd.to_numeric(table[response], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    is_crashed = table[response].isna().to_numpy(bool) | np.isinf(numbers)
    if not is_crashed.any():
        return table, []
    rows = table["row"] if "row" in table else pd.Series(np.arange(len(table)) + 1, table.index)
    ids = table["run_id"].astype(str) if "run_id" in table else "row " + rows.astype(str)
    names = [_name_run(run) for run in ids[is_crashed]]
    return table[~is_crashed], [
        f"{shorten(names)}: {response} is no finite number; left out {len(names)} of {len(table)} rows"
    ]


def fill_flops(table: pd.DataFrame) -> pd.Series | None:
    """Training FLOPs, [rows]: the table's own, and 6 params tokens where it has none; None if neither is known."""
    params = "params" if "params" in table else DEFAULT_PARAMS_COLUMN
    if not {params, "tokens"} <= set(table):
        return table.get("flops")
    computed = 6 * pd.to_numeric(table[params], errors="coerce") * pd.to_numeric(table["tokens"], errors="coerce")
    return computed if "flops" not in table else pd.to_numeric(table["flops"], errors="coerce").fillna(computed)


MAX_NAMES = 5  # in a warning


def shorten(names: Sequence[str]) -> str:
    """The first few names, joined by ", ", and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _name_run(run: str) -> str:
    return run if run.startswith("row ") else f"run {run}"


def require_points(distinct: int, parameters: int, note: str = "", columns: tuple[str, ...] = SURFACE_COLUMNS) -> None:
    """Raises TableError unless there are more distinct points than parameters. note: ends the message."""
    if distinct <= parameters:
        raise TableError(
            f"fewer points than parameters: {distinct} distinct ({', '.join(columns)}) for {parameters} parameters; "
            f"at least {parameters + 1} are needed{note}"
        )


def _positive(table: pd.DataFrame, column: str) -> np.ndarray:
    """The column as float64: [rows]. Raises TableError that names the first row whose entry is no finite number above
    zero. table: with a column `row`, the place of each row in the file, from 1."""
    numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(bad):
        first = bad[0]
        run = f" (run {table['run_id'].iloc[first]})" if "run_id" in table else ""
        raise TableError(
            f"row {table['row'].iloc[first]}{run}: {column} = {table[column].iloc[first]}, must be a finite number "
            f"above zero" + (f"; {len(bad)} such rows" if len(bad) > 1 else "")
        )
    return numbers


def require_columns(table: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    """Raises TableError unless the table has these columns; the message begins with `where` and names near misses."""
    have = [str(name) for name in table.columns]
    missing = [name for name in needed if name not in have]
    if not missing:
        return
    by_lower_case = {name.lower(): name for name in have}
    nearest = {name: difflib.get_close_matches(name.lower(), by_lower_case, n=1) for name in missing}
    hints = [f"{by_lower_case[matches[0]]} for {name}" for name, matches in nearest.items() if matches]
    raise TableError(
        f"{where} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {', '.join(have)}"
        + (f"; did you mean {', '.join(hints)}?" if hints else "")
        + "; map columns with --columns params=N,tokens=D,loss=L"
    )
