"""What was found of checkpoints on the way, as one table.

Not in the design's list of modules: `results` holds one row a run, this one row an evaluated checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import errors
from analysis.tables import results

_OF_A_RUN = (
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


def load_evaluations(folder: str | Path) -> pd.DataFrame:
    """Every evaluated checkpoint of a sweep, or of one run: what `scaling eval --step all` found.

    Columns: run_id, step, tokens (trained on by then), flops and flops_6nd (spent by then), what the results table says
    of the run whatever its length, and those of the measurements. Rows by size, tokens, seed and id. A checkpoint
    before the last has not been through the end of its schedule.

    Raises TableError when the folder is neither, or nothing in it has been evaluated.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise errors.TableError(f"{folder}: no such folder")
    runs = sorted((folder / "runs").iterdir()) if (folder / "runs").is_dir() else [folder]
    rows = []
    for run in runs:
        found = results.evaluated_steps(run)
        whole = results.read_run(run) if found and (run / "result.json").exists() else {"run_id": run.name}
        of_run = {name: whole[name] for name in ("run_id", *_OF_A_RUN) if name in whole}
        for step, (tokens, columns) in found.items():
            spent = {name: whole[name] * tokens / whole["tokens"] for name in ("flops", "flops_6nd") if name in whole}
            rows.append({**of_run, "step": step, "tokens": tokens, **spent, **columns})
    if not rows:
        raise errors.TableError(f"{folder}: no checkpoint has been evaluated: scaling eval {folder} --step all")
    return results.arrange(pd.DataFrame(rows))


def load_evaluations_beside(table: Path) -> pd.DataFrame | None:
    """The evaluated checkpoints of the sweep that a table is of, be it the sweep's folder or a file in it; None where
    there are none."""
    folder = table if table.is_dir() else table.parent
    try:
        return load_evaluations(folder) if (folder / "runs").is_dir() else None
    except errors.TableError:
        return None
