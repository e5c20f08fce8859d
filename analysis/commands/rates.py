"""`scaling rates`: finds the best learning rate of each model size, and the power law through them."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from analysis import files
from analysis.commands.printing import make_console, print_table
from analysis.fitting.learning_rate_law import find_scans, fit_rate_law, rate_document, why_no_optimum
from analysis.plots import learning_rates, style
from analysis.tables import flags, results
from analysis.tables.schema import DEFAULT_PARAMS_COLUMN, TIMING_COLUMNS


def rates(
    table: Path,
    out: Path | None = None,
    figure_file: Path | None = None,
    params_column: str = DEFAULT_PARAMS_COLUMN,
) -> None:
    """Find the best learning rate of each model size in a table of learning-rate scans, and the power law through them.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file, with runs that differ only in their learning rate.
      out: Also write the law to this file, as the JSON that a recipe reads. Default: no file.
      figure_file: Also draw the scans into this file, PNG or SVG. Default: no figure.
      params_column: The count of parameters that the law is a function of.
    """
    rows = flags.read_flagged_table(table)
    law = fit_rate_law(find_scans(rows, params_column))
    scan_table = Table(box=None, pad_edge=False)
    for heading in ("scan", "N", "tried", "best", "law", "loss"):
        scan_table.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for scan in law.scans:
        best = f"{scan.at_bound}!" if scan.at_bound else f"{scan.best:.3g}"
        tried = f"{scan.rates[0]:.3g} to {scan.rates[-1]:.3g}"
        scan_table.add_row(scan.name, f"{scan.params:,.0f}", tried, best, f"{law(scan.params):.3g}", f"{scan.loss:.4f}")
    console = make_console()
    print_table(scan_table, console)
    console.print(str(law))
    if left_out := [f"{scan.name} ({why_no_optimum(scan)})" for scan in law.scans if scan.at_bound]:
        console.print(f"left out: {', '.join(left_out)}")
    if out is not None:
        sweep = str(rows["sweep"].iloc[0]) if "sweep" in rows and len(rows) else table.stem
        # without the timing columns, so that equal runs have equal hashes
        untimed = rows.drop(columns=list(TIMING_COLUMNS), errors="ignore")
        files.write_json(out, rate_document(law, sweep, results.hash_table(untimed)))
    if figure_file is not None:
        style.save(learning_rates.rate_scans(law), figure_file)
