"""`scaling isoflop`: compute-optimal sizes by approaches 1 and 2 of Hoffmann et al. (2022), with their biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis import api, files
from analysis.errors import TableError
from analysis.fitting.isoflop import akima, approach_1, approach_2
from analysis.tables import results, table_checks


def isoflop(
    table: Path,
    columns: str = "",
    where: str = "",
    params_column: str | None = None,
    bias_flops: float = 1e24,
    json: Path | None = None,
) -> dict[str, Any]:
    """Compute-optimal sizes by Chinchilla's approaches 1 and 2, for comparison, each with the bias of its grid.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file, with several sizes at each of several budgets of FLOPs.
      columns: Names in a table made elsewhere, as in params=N,tokens=D,loss=L.
      where: Rows to use, as in "corpus==c4".
      params_column: Which count of parameters to use.
      bias_flops: FLOPs at which the bias is stated.
      json: Also write what was found to this file.
    """
    rows = api.load(table, columns=results.parse_columns(columns), where=where)
    counted = rows if params_column is None else rows.assign(params=rows[params_column])
    console, facts = Console(soft_wrap=True, highlight=False), {}
    for note in table_checks.flag_warnings(rows[rows["status"] == "done"] if "status" in rows else rows):
        console.print(f"[yellow]warning:[/] {escape(note)}")
    for name, approach in (("approach_1", approach_1), ("approach_2", approach_2), ("akima", akima)):
        try:
            found = approach(counted, at=bias_flops)
        except TableError as error:
            console.print(f"{name}: [yellow]none[/]: {escape(str(error))}")
            continue
        console.print(escape(repr(found)))
        facts[name] = found.facts()
    if json:
        files.write_json(json, facts)
    return facts
