"""`scaling curves`: fits one-variable laws to many learning curves and extrapolates them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import Progress
from rich.table import Table

from analysis import files
from analysis.commands.printing import make_console, print_table, print_warnings
from analysis.errors import TableError
from analysis.fitting.curves import CURVE_LAWS, WEIGHTINGS, fit_curves, summarize_scores
from analysis.tables import results


def curves(
    table: Path,
    columns: str = "",
    by: str = "",
    laws: str = ",".join(CURVE_LAWS),
    train_share: float = 0.5,
    json: Path | None = None,
) -> dict[str, Any]:
    """Fit one-variable laws to the first part of many learning curves, and score them on the rest.

    Args:
      table: A CSV, Parquet or JSONL file, one row per point of a curve.
      columns: Names of the columns x, y and train (whether a point is fitted), as in "x=Seen Examples,y=Loss,
        train=Training". Default: as they are.
      by: Columns whose values name a curve, as in Domain,Task,Model; means are over each value of the first. Default:
        the table is one curve.
      laws: The laws to fit, of m1, m2, m3, m4 and bnsl.
      train_share: Share of the points of each curve to fit, from its lowest x, if the table has no column train.
      json: Also write the scores and their means to this file, as JSON. Default: no file.
    """
    unknown = [name for name in _split(laws) if name not in CURVE_LAWS]
    if unknown or not _split(laws):
        raise TableError(f"--laws {laws}: no law {', '.join(unknown)}; choose from {', '.join(CURVE_LAWS)}")
    keys = _split(by)
    points = results.read_table(table, results.parse_columns(columns))
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("curves", total=None)
        scores = fit_curves(
            points,
            [CURVE_LAWS[name] for name in _split(laws)],
            by=keys,
            train_share=train_share,
            on_progress=lambda done, of: progress.update(task, completed=done, total=of),
        )
    means = summarize_scores(scores, keys)
    _print(means, scores.attrs["warnings"])
    facts = {
        "weightings": list(WEIGHTINGS),
        "summary": [{k: None if pd.isna(v) else v for k, v in row.items()} for row in means.to_dict("records")],
        "curves": scores.to_dict("records"),
        "warnings": scores.attrs["warnings"],
    }
    if json:
        files.write_json(json, facts)
    return facts


def _split(text: str) -> list[str]:
    """The names between the commas of a flag's value; a name that holds a comma stands in double quotes."""
    return [name.strip() for line in csv.reader([text], skipinitialspace=True) for name in line if name.strip()]


def _print(means: pd.DataFrame, warnings: Sequence[str]) -> None:
    console = make_console()
    rows = Table("", "law", "curves", "mean RMSLE", "median", "wins", box=None, pad_edge=False)
    for row in means.to_dict("records"):
        wins = "" if pd.isna(row["wins"]) else f"{row['wins']:.1%}"
        numbers = f"{row['mean']:.5f}", f"{row['median']:.5f}"
        rows.add_row(str(row["domain"]), str(row["law"]), str(row["curves"]), *numbers, wins)
    print_table(rows, console)
    print_warnings(warnings, console)
