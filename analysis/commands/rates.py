"""`scaling rates`: the best learning rate of each size, and the law through them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis import files
from analysis.fitting.learning_rate_law import find_scans, fit_rate_law, rate_document, why_no_optimum
from analysis.plots import learning_rates, style
from analysis.tables import results


def rates(
    table: Path,
    out: Path | None = None,
    figure_file: Path | None = None,
    params_column: str = results.DEFAULT_PARAMS_COLUMN,
) -> None:
    """Finds the best learning rate of each size in a sweep of scans, and the power law through them.

    Args:
        table: a sweep folder, CSV, Parquet or JSONL file.
        out: write what a recipe reads (JSON) to this file.
        figure_file: draw the scans into this file, PNG or SVG.
        params_column: the counting of parameters that the law is in.
    """
    read = results.read_table(table)
    law = fit_rate_law(find_scans(read, params_column))
    shown = Table(box=None, pad_edge=False)
    for heading in ("scan", "N", "tried", "best", "law", "loss"):
        shown.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for scan in law.scans:
        best = f"{scan.at_bound}!" if scan.at_bound else f"{scan.best:.3g}"
        tried = f"{scan.rates[0]:.3g} to {scan.rates[-1]:.3g}"
        row = (f"{scan.params:,.0f}", tried, best, f"{law(scan.params):.3g}", f"{scan.loss:.4f}")
        shown.add_row(scan.name, *row)
    console = Console()
    console.print(shown)
    console.print(str(law), soft_wrap=True, highlight=False)
    if left_out := [f"{scan.name} ({why_no_optimum(scan)})" for scan in law.scans if scan.at_bound]:
        console.print(f"left out: {', '.join(left_out)}", soft_wrap=True, highlight=False)
    if out is not None:
        sweep = str(read["sweep"].iloc[0]) if "sweep" in read and len(read) else table.stem
        files.write_json(out, rate_document(law, sweep, results.hash_table(_settled(read))))
    if figure_file is not None:
        style.save(learning_rates.tried(law), figure_file)


def _settled(table: pd.DataFrame) -> pd.DataFrame:
    """Without what a clock gave, so that equal runs have one hash."""
    return table.drop(columns=["seconds", "tokens_per_second"], errors="ignore")
