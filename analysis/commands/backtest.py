"""`scaling backtest` and `scaling coverage`: forecast the largest runs of a table from the smaller ones, and score
that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track
from rich.table import Table

from analysis import api, files
from analysis.commands.printing import make_console, print_table, print_warnings
from analysis.errors import TableError
from analysis.forecasting import backtest as backtesting
from analysis.forecasting.backtest import CHOSEN
from analysis.quantities import parse_quantity
from analysis.tables import public, results, table_checks


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
    """Hold out the runs of the most compute, forecast them from the others, and score the forecasts of each law and of
    the law that a back-test chooses.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file.
      factors: For each of these factors f, the fit sees the runs of at most Cmax / f FLOPs and forecasts the others.
      columns: Names of columns in a table made elsewhere, as in params=N,tokens=D,loss=L. Default: as they are.
      where: Rows to use, as in "corpus==c4". Default: all rows.
      params_column: The count of parameters to fit against. Default: params if the table has it, else params_matmul.
      draws: Number of bootstrap resamples.
      seed: Seed of the bootstrap.
      json: Also write the rows to this file, as JSON. Default: no file.
    """
    require_draws(draws)
    rows = api.load(table, columns=results.parse_columns(columns), where=where)
    points = results.select_points(rows, params_column).table
    scores = backtesting.backtest(points, _parse_factors(factors), draws=draws, seed=seed)
    if scores.empty:
        raise TableError(f"{table}: --factors {factors}: no factor leaves enough runs below the cut and any above it")
    print_scores(scores, "factor")
    print_warnings([*points.attrs["notes"], *table_checks.flag_warnings(points)])
    if json:
        files.write_json(json, _records(scores))
    return scores


def coverage(
    data: Path = public.DATA_FOLDER,
    factors: str = "3,10,30",
    draws: int = 200,
    seed: int = 0,
    out: Path | None = None,
    json: Path | None = None,
) -> pd.DataFrame:
    """Back-test every public table: how far the forecasts are off, and what share of the held-out runs the nominal 80
    and 90 % intervals cover.

    Args:
      data: Folder of the public tables; `scaling replicate --fetch` fills one.
      factors: For each of these factors f, the fit sees the runs of at most Cmax / f FLOPs and forecasts the others.
      draws: Number of bootstrap resamples.
      seed: Seed of the bootstrap.
      out: Also write the tables as Markdown to this file. Default: no file.
      json: Also write the rows to this file, as JSON. Default: no file.
    """
    require_draws(draws)
    parts = []
    for name in track(public.PUBLIC_TABLES, description="tables", transient=True, console=make_console(stderr=True)):
        points = results.select_points(public.PUBLIC_TABLES[name].read(data), "params").table
        parts.append(backtesting.backtest(points, _parse_factors(factors), draws=draws, seed=seed).assign(table=name))
    scores = pd.concat(parts, ignore_index=True)
    summary = summarize(scores)
    print_scores(scores[scores["law"] == CHOSEN], "table", "factor")
    print_scores(summary, "factor")
    if out:
        files.write_by_rename(out, lambda path: path.write_text(to_markdown(scores, summary)))
    if json:
        files.write_json(json, {"tables": _records(scores), "summary": _records(summary)})
    return scores


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """One row for each factor and law, over all tables: the geometric mean of the errors; the coverage over all runs,
    and its mean over tables (tables_90); the median half width."""
    rows = []
    for (factor, law), part in scores.groupby(["factor", "law"], sort=False):
        runs = part["n_test"]
        pooled = {f"coverage_{level}": float(np.average(part[f"coverage_{level}"], weights=runs)) for level in (80, 90)}
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


def to_markdown(scores: pd.DataFrame, summary: pd.DataFrame) -> str:
    """The page docs/coverage.md: the summary, the error of every table and law, and the chosen law's scores."""
    wide = scores.pivot_table(index="table", columns=["factor", "law"], values="mean_relative_error", sort=False)
    flat = wide.set_axis([f"{factor:g}x {law}" for factor, law in wide.columns], axis=1).reset_index()
    chosen = scores[scores["law"] == CHOSEN][["table", "factor", "n_train", "n_test", "choice", *_SHARES]]
    parts = [_INTRO, "## Over tables\n", *_rows(summary), "\n## Error, every table\n", *_rows(flat)]
    return "\n".join([*parts, "\n## The chosen law, every table\n", *_rows(chosen), ""])


_SHARES = ("mean_relative_error", "coverage_80", "coverage_90", "half_width_90")


def _cell(name: Any, value: Any) -> str:
    """Counts and factors as numbers, other floats as percentages, "-" for what is missing."""
    if isinstance(value, float):
        whole = name in ("factor", "n_train", "n_test", "tables")
        return ("-" if np.isnan(value) else f"{value:g}") if whole else "-" if np.isnan(value) else f"{value:.2%}"
    return str(value)


def _rows(table: pd.DataFrame) -> list[str]:
    """The lines of a Markdown table."""
    head = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    body = (" | ".join(_cell(n, v) for n, v in row.items()) for row in table.to_dict("records"))
    return [*head, *(f"| {line} |" for line in body)]


def print_scores(scores: pd.DataFrame, *first: str) -> None:
    """Prints the scores, one line a row. first: the columns that come first."""
    names = [*first, *[name for name in scores.columns if name not in first]]
    table = Table(*[name.replace("_", "\n") for name in names], box=None, pad_edge=False)
    for row in scores.to_dict("records"):
        table.add_row(*[_cell(name, row[name]) for name in names])
    print_table(table)


def _records(scores: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in scores.to_dict("records")]


def require_draws(draws: int) -> None:
    """Raises TableError for fewer resamples than an interval needs."""
    if draws < 2:
        raise TableError(f"--draws {draws}: must be at least 2")


def _parse_factors(text: str) -> tuple[float, ...]:
    """ "3,10" -> (3.0, 10.0). Raises TableError for text of another form, or a factor of 1 or less."""
    try:
        factors = tuple(float(parse_quantity(part)) for part in text.split(","))
    except ValueError:
        factors = ()
    if not factors or not all(factor > 1 for factor in factors):
        raise TableError(f"--factors {text}: must be numbers above 1 with commas between, as in 3,10,30")
    return factors
