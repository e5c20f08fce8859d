"""`scaling sweep collect`: what the runs of a sweep left, as tables.

Not in the design's list of modules: it is asked for again and again while a sweep runs, and does without JAX and the
laws, which cost the other verbs two seconds to import.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis import files
from analysis.errors import TableError
from analysis.tables import metrics, results, table_checks


def collect(name: str, out: Path = Path("out"), json: Path | None = None) -> None:
    """Write the results table of a sweep, one row a finished run, as results.parquet and results.csv, and every logged
    step of every run as metrics.parquet. Again: only what has changed is read.

    Runs with something wrong with them are named: diverged, undertrained, best at the edge of a scan of learning rates,
    or off the collapse of the loss curves.

    Args:
      name: The sweep, as in `scaling sweep plan NAME`.
      out: Folder of the sweeps.
      json: Also write the rows to this file.
    """
    folder = out / name
    if (folder / "runs").is_dir():
        metrics.compact_metrics(folder)
    table = results.read_table(folder)
    if table.empty:
        raise TableError(f"{folder}: no run has finished; `scaling sweep run {name}` trains them")
    parquet, _ = results.write_table(table, folder)
    counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
    left = table.attrs["unfinished"]
    unfinished = f", {left} unfinished left out" if left else ""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"wrote {parquet} and results.csv: {counts}{unfinished}")
    for row in table[table["run_id"].isin(table_checks.flags_by_run(table))].to_dict("records"):
        console.print(f"[yellow]flagged:[/] run {row['run_id']} ({row['flags']}): {escape(row['reason'])}")
    if json:
        files.write_json(json, [{k: None if pd.isna(v) else v for k, v in r.items()} for r in table.to_dict("records")])
