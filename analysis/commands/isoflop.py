"""`scaling isoflop`: compute-optimal sizes by approaches 1 and 2 of Hoffmann et al. (2022), with the bias of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.text import Text

from analysis import api, files
from analysis.commands.printing import make_console, print_warnings
from analysis.errors import TableError
from analysis.fitting.isoflop import akima, approach_1, approach_2, budget_warnings
from analysis.tables import results, table_checks


def isoflop(
    table: Path,
    columns: str = "",
    where: str = "",
    params_column: str | None = None,
    bias_flops: float = 1e24,
    json: Path | None = None,
) -> dict[str, Any]:
    """Fit compute-optimal sizes by approaches 1 and 2 of Hoffmann et al. (2022), for comparison with a fitted law, each
    with the bias that its grid of runs gives it.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file, with several sizes at each of several budgets of FLOPs.
      columns: Names of columns in a table made elsewhere, as in params=N,tokens=D,loss=L. Runs are grouped into budgets
        by flops, or by 6 params tokens where the table has no flops: flops=NAME names another column. Default: as they
        are.
      where: Rows to use, as in "corpus==c4". Default: all rows.
      params_column: The count of parameters to use. Default: params if the table has it, else params_matmul.
      bias_flops: Training FLOPs at which the bias is stated.
      json: Also write what is printed to this file, as JSON. Default: no file.
    """
    if not bias_flops > 0:
        raise TableError(f"--bias-flops {bias_flops:g}: must be above zero, as 1e24")
    rows = api.load(table, columns=results.parse_columns(columns), where=where)
    with_params = rows if params_column is None else rows.assign(params=rows[params_column])
    console, facts = make_console(), {}
    points = usable_points(with_params)
    notes = [*points.attrs.get("notes", []), *table_checks.flag_warnings(points), *budget_warnings(with_params)]
    print_warnings(notes, console)
    for name, approach in (("approach_1", approach_1), ("approach_2", approach_2), ("akima", akima)):
        try:
            optimum = approach(with_params, at=bias_flops)
        except TableError as error:
            console.print(Text.assemble(f"{name}: ", ("none", "yellow"), f": {error!s}"))
            continue
        console.print(repr(optimum))
        facts[name] = optimum.facts()
    if notes:
        facts["warnings"] = notes
    if json:
        files.write_json(json, facts)
    return facts


def usable_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The points of the table that can be fitted; none where the approaches will say why."""
    try:
        return results.select_points(rows, parameters=0).table
    except TableError:
        return rows.iloc[:0]
