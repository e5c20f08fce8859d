"""The evaluated checkpoints of a sweep as one table, one row per checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd

from analysis.errors import TableError
from analysis.files import warn_once
from analysis.tables import results
from analysis.tables.evaluations import read_run_evaluations
from analysis.tables.run_files import RESULT, RUNS
from analysis.tables.schema import RUN_COLUMNS

FLOPS_COLUMNS = ("flops", "flops_6nd")


def load_evaluations(folder: str | Path) -> pd.DataFrame:
    """Every evaluated checkpoint of a sweep, or of one run, as `scaling eval --step all` measures them.

    Columns: run_id, step, tokens (trained on by then), flops and flops_6nd (spent by then), schema.RUN_COLUMNS, and
    those of the measurements. Rows by parameters, tokens, seed and run_id. The learning rate of a checkpoint before the
    last one has not decayed to the end of its schedule.

    Raises TableError if there is no such folder, or nothing in it has been evaluated.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder")
    runs = sorted((folder / RUNS).iterdir()) if (folder / RUNS).is_dir() else [folder]
    rows = []
    for run in runs:
        by_step = read_run_evaluations(run)
        try:
            run_row = results.read_run(run) if by_step and (run / RESULT).exists() else {"run_id": run.name}
        except TableError as error:
            warn_once(f"run {run.name} is left out: {error}")
            continue
        shared = {name: run_row[name] for name in ("run_id", *RUN_COLUMNS) if name in run_row}
        flops = {name: run_row[name] for name in FLOPS_COLUMNS if run_row.get(name) and run_row.get("tokens")}
        for step, (tokens, columns) in by_step.items():
            # FLOPs grow in proportion to the tokens trained on
            share = {name: total * tokens / run_row["tokens"] for name, total in flops.items()}
            rows.append({**shared, "step": step, "tokens": tokens, **share, **columns})
    if not rows:
        raise TableError(
            f"{folder}: no checkpoint has been evaluated: scaling eval {shlex.quote(str(folder))} --step all"
        )
    return results.arrange(pd.DataFrame(rows))


def load_evaluations_beside(table: Path) -> pd.DataFrame | None:
    """The evaluated checkpoints of the sweep that a table belongs to; None if there are none.

    table: the path of the sweep's folder, or of a file in it.
    """
    folder = table if table.is_dir() else table.parent
    try:
        return load_evaluations(folder) if (folder / RUNS).is_dir() else None
    except TableError:
        return None
