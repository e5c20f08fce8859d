"""`scaling backtest` and `scaling coverage`: forecasts of the largest runs from the rest, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from analysis import files
from analysis.errors import TableError
from analysis.forecasting import backtest as backtesting
from analysis.forecasting.backtest import CHOSEN
from analysis.tables import public, results, table_checks
from analysis.tables import where as clauses


def backtest(
    table: Path,
    factors: str = "3,10,30",
    columns: str = "",
    where: str = "",
    params_column: str | None = None,
    draws: int = 200,
    seed: int = 0,
    json: Path | None = None,
) -> pd.DataFrame:
    """Hold out the top of compute, forecast it, and score the forecasts: every plain law, and the chosen one.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file.
      factors: The fit sees runs of at most Cmax over each of these.
      columns: Names in a table made elsewhere, as in params=N,tokens=D,loss=L.
      where: Rows to use, as in "corpus==c4".
      params_column: Which count of parameters to fit against.
      draws: Bootstrap resamples.
      seed: Seed of the bootstrap.
      json: Also write the rows to this file.
    """
    rows = clauses.filter_rows(results.read_table(table, results.parse_columns(columns)), where)
    points = results.select_points(rows, params_column).table
    found = backtesting.backtest(points, _factors(factors), draws=draws, seed=seed)
    if found.empty:
        raise TableError(f"{table}: no factor of {factors} leaves enough runs below the cut and any above it")
    print_scores(found, "factor")
    for note in table_checks.flag_warnings(points):
        Console(soft_wrap=True, highlight=False).print(f"[yellow]warning:[/] {escape(note)}")
    if json:
        files.write_json(json, _records(found))
    return found


def coverage(
    data: Path = public.DATA_FOLDER,
    factors: str = "3,10,30",
    draws: int = 200,
    seed: int = 0,
    out: Path | None = None,
    json: Path | None = None,
) -> pd.DataFrame:
    """Back-test every public table: how far forecasts were off, and how many runs nominal 80 and 90 % bands held.

    Args:
      data: Folder of the public tables.
      factors: The fit sees runs of at most Cmax over each of these.
      draws: Bootstrap resamples.
      seed: Seed of the bootstrap.
      out: Also write the tables as Markdown to this file.
      json: Also write the rows to this file.
    """
    parts = []
    for name in track(public.PUBLIC_TABLES, description="tables", transient=True, console=Console(stderr=True)):
        points = results.select_points(public.PUBLIC_TABLES[name].read(data), "params").table
        parts.append(backtesting.backtest(points, _factors(factors), draws=draws, seed=seed).assign(table=name))
    found = pd.concat(parts, ignore_index=True)
    total = summarize(found)
    print_scores(found[found["law"] == CHOSEN], "table", "factor")
    print_scores(total, "factor")
    if out:
        files.write_by_rename(out, lambda path: path.write_text(to_markdown(found, total)))
    if json:
        files.write_json(json, {"tables": _records(found), "summary": _records(total)})
    return found


def summarize(found: pd.DataFrame) -> pd.DataFrame:
    """Over tables, by factor and law: geometric mean of errors; coverage over all runs, and its mean over tables."""
    rows = []
    for (factor, law), part in found.groupby(["factor", "law"], sort=False):
        runs = part["n_test"]
        pooled = {f"coverage_{l}": float(np.average(part[f"coverage_{l}"], weights=runs)) for l in (80, 90)}
        rows.append(
            {"factor": factor, "law": law, "tables": len(part), "n_test": int(runs.sum())}
            | {"mean_relative_error": float(np.exp(np.mean(np.log(part["mean_relative_error"]))))}
            | pooled
            | {"tables_90": float(part["coverage_90"].mean()), "half_width_90": float(part["half_width_90"].median())}
        )
    return pd.DataFrame(rows)


_INTRO = """# Forecasts of runs that the fit did not see

Written by `scaling coverage --out FILE`. For a factor f, the fit sees runs of at most Cmax / f of each public table and
forecasts the rest. `chosen` picks law and weighting by hold-outs inside the runs below the cut, and its bands are
scaled to the errors of those hold-outs (`law_choice.py` and `prediction_intervals.py` in `analysis/forecasting/`). The
other laws are taken for granted, by Huber's objective with delta 1e-3, and their bands are those of a bootstrap over
runs, as usually printed.

Error: mean of |predicted / measured - 1| over the held-out runs; over tables, its geometric mean. Coverage: share of
the held-out runs inside nominal 80 and 90 % bands, over all runs of all tables; tables_90: the mean over tables. Half
width: median over runs of half the 90 % band, in log loss.
"""


def to_markdown(found: pd.DataFrame, total: pd.DataFrame) -> str:
    """The tables, as the documents show them."""
    wide = found.pivot_table(index="table", columns=["factor", "law"], values="mean_relative_error", sort=False)
    flat = wide.set_axis([f"{factor:g}x {law}" for factor, law in wide.columns], axis=1).reset_index()
    chosen = found[found["law"] == CHOSEN][["table", "factor", "n_train", "n_test", "choice", *_SHARES]]
    parts = [_INTRO, "## Over tables\n", *_rows(total), "\n## Error, every table\n", *_rows(flat)]
    return "\n".join([*parts, "\n## The chosen law, every table\n", *_rows(chosen), ""])


_SHARES = ("mean_relative_error", "coverage_80", "coverage_90", "half_width_90")


def _cell(name: Any, value: Any) -> str:
    if isinstance(value, float):
        whole = name in ("factor", "n_train", "n_test", "tables")
        return ("-" if np.isnan(value) else f"{value:g}") if whole else "-" if np.isnan(value) else f"{value:.2%}"
    return str(value)


def _rows(table: pd.DataFrame) -> list[str]:
    head = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    body = (" | ".join(_cell(n, v) for n, v in row.items()) for row in table.to_dict("records"))
    return [*head, *(f"| {line} |" for line in body)]


def print_scores(found: pd.DataFrame, *first: str) -> None:
    """On one line a row, however narrow the terminal: a name or a number cut short says nothing."""
    names = [*first, *[name for name in found.columns if name not in first]]
    table = Table(*[name.replace("_", "\n") for name in names], box=None, pad_edge=False)
    for row in found.to_dict("records"):
        table.add_row(*[_cell(name, row[name]) for name in names])
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def _records(found: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in found.to_dict("records")]


def _factors(text: str) -> tuple[float, ...]:
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError:
        factors = ()
    if not factors or not all(factor > 1 for factor in factors):
        raise TableError(f"--factors {text}: must be numbers above 1 with commas between, as in 3,10,30")
    return factors
