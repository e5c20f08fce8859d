"""`scaling curves`: fits one-variable laws to many curves and extrapolates them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from analysis import files
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
      table: A CSV, Parquet or JSONL file, one row a point.
      columns: Names of x, y and the flag of points to fit, as in "x=Seen Examples,y=Loss,train=Training".
      by: Columns that tell the curves apart, as in Domain,Task,Model. Means are by the first of several.
      laws: Which laws, of m1, m2, m3, m4, bnsl.
      train_share: Share of each curve to fit, from its lowest x, where the table has no flag.
      json: Also write the scores and means to this file.
    """
    unknown = [name for name in _names(laws) if name not in CURVE_LAWS]
    if unknown or not _names(laws):
        raise TableError(f"--laws {laws}: no law {', '.join(unknown)}; choose from {', '.join(CURVE_LAWS)}")
    keys = _names(by)
    points = results.read_table(table, results.parse_columns(columns))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("curves", total=None)
        scores = fit_curves(
            points,
            [CURVE_LAWS[name] for name in _names(laws)],
            by=keys,
            train_share=train_share,
            on_progress=lambda done, of: bar.update(task, completed=done, total=of),
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


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(means: pd.DataFrame, warnings: Sequence[str]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    rows = Table("", "law", "curves", "mean RMSLE", "median", "wins", box=None, pad_edge=False)
    for row in means.to_dict("records"):
        wins = "" if pd.isna(row["wins"]) else f"{row['wins']:.1%}"
        numbers = f"{row['mean']:.5f}", f"{row['median']:.5f}"
        rows.add_row(str(row["domain"]), str(row["law"]), str(row["curves"]), *numbers, wins)
    console.print(rows)
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {warning}")
