"""`scaling sweep collect`: writes the results and the logged steps of a sweep's runs as tables.

It imports neither JAX nor the laws, which take two seconds: it is called again and again while a sweep runs.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd

from analysis import files
from analysis.commands.printing import make_console
from analysis.errors import TableError
from analysis.tables import flags, metrics, results, table_checks
from analysis.tables.run_files import RESULTS_CSV, RUNS
from analysis.terminal import labelled


def collect(name: str, out: Path = Path("out"), json: Path | None = None) -> None:
    """Write the results table of a sweep, one row per finished run, as results.parquet and results.csv, and every
    logged step of every run as metrics.parquet.

    It can be run again while the sweep runs: only the logs that have changed are read. It names the runs that are
    flagged: failed, diverged, undertrained, best at the edge of a learning-rate scan, rising in loss at the end, or off
    the collapse of the loss curves.

    Args:
      name: Name of the sweep, as in `scaling sweep plan NAME`.
      out: Folder that holds the folders of the sweeps.
      json: Also write the rows to this file, as JSON. Default: no file.
    """
    folder = out / name
    table = results.read_table(folder)
    if table.empty:
        raise TableError(f"{folder}: no run has finished; `scaling sweep run {shlex.quote(name)}` trains them")
    if (folder / RUNS).is_dir():
        metrics.compact_metrics(folder)
        table = flags.add_flags(table, folder / RUNS)
    parquet, _ = results.write_table(table, folder)
    counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
    num_unfinished = table.attrs.get("unfinished", 0)
    unfinished = f", {num_unfinished} unfinished left out" if num_unfinished else ""
    console = make_console()
    damaged = f", {len(table.attrs['damaged'])} damaged left out" if table.attrs.get("damaged") else ""
    console.print(f"wrote {parquet} and {RESULTS_CSV}: {counts}{unfinished}{damaged}")
    for row in table[table["run_id"].isin(table_checks.flags_by_run(table))].to_dict("records"):
        run = f"run {row['run_id']} ({row['flags']}): {row['reason']}"
        console.print(labelled("flagged:", "yellow", run))
    if json:
        rows = table.to_dict("records")
        files.write_json(json, [{k: None if pd.isna(v) else v for k, v in row.items()} for row in rows])
