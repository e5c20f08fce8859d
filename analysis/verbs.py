"""The verbs of analysis: collect, fit, report. Each returns the facts that it prints.

Not in the design's list of modules: it keeps the command line, which lives with training, thin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis import laws, results, saved
from analysis.results import TableError


def collect(name: str, out: Path = Path("out"), json: Path | None = None) -> None:
    """Write the results table of a sweep, one row a finished run, as results.parquet and results.csv.

    Args:
      name: The sweep, as in `scaling sweep plan NAME`.
      out: Folder of the sweeps.
      json: Also write the rows to this file.
    """
    folder = out / name
    table = results.read(folder)
    if table.empty:
        raise TableError(f"{folder}: no run has finished; `scaling sweep run {name}` trains them")
    parquet, _ = results.write(table, folder)
    counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
    left = table.attrs["unfinished"]
    unfinished = f", {left} unfinished left out" if left else ""
    Console(soft_wrap=True, highlight=False).print(f"wrote {parquet} and results.csv: {counts}{unfinished}")
    if json:
        results.write_json(
            json, [{k: None if pd.isna(v) else v for k, v in r.items()} for r in table.to_dict("records")]
        )


def fit(
    table: Path,
    columns: str = "",
    params: str | None = None,
    holdout: str = "none",
    delta: float = 1e-3,
    draws: int = 512,
    level: float = 0.9,
    seed: int = 0,
    out: Path | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Fit L(N, D) = E + A/N^alpha + B/D^beta to a results table and save it as fit.json.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file.
      columns: Names in a table made elsewhere, as in params=N,tokens=D,loss=L.
      params: Which count of parameters to fit against: params_matmul (default for own tables), params_total, ...
      holdout: Runs the fit must not see: largest, none, or a number of FLOPs, at or above which runs are held out.
      delta: Width of the Huber objective's quadratic zone, in log loss.
      draws: Bootstrap resamples.
      level: Nominal probability of the intervals.
      seed: Seed of the bootstrap.
      out: Where to save the fit; fit.json beside the table unless given.
      json: Also write the facts printed to this file.
    """
    for name, right, good in (
        ("delta", "above zero", delta > 0),
        ("draws", "at least 2", draws >= 2),
        ("level", "between 0 and 1", 0 < level < 1),
    ):
        if not good:
            raise TableError(f"--{name} {locals()[name]}: must be {right}")
    points = results.fit_points(results.read(table, results.parse_columns(columns)), params)
    built, _ = saved.build(
        laws.chinchilla, points, holdout=holdout, delta=delta, draws=draws, level=level, seed=seed, table=table
    )
    path = saved.save(built, out or (table if table.is_dir() else table.parent) / "fit.json")
    facts = {name: value for name, value in built.document.items() if name not in ("draws", "points")}
    facts |= {"fit": str(path), "points": len(built.points)}
    _print_fit(built, path)
    if json:
        results.write_json(json, facts)
    return facts


def _print_fit(built: saved.SavedFit, path: Path) -> None:
    document = built.document
    console = Console(soft_wrap=True, highlight=False)
    rows = Table("", "value", "standard error", f"{document['level']:.0%} interval", box=None, pad_edge=False)
    for name, value in {**built.values, "exponent_a": document["exponent_a"]}.items():
        low, high = document["intervals"][name]
        rows.add_row(name, f"{value:.4g}", f"{document['standard_errors'][name]:.2g}", f"{low:.4g} to {high:.4g}")
    dropped = f", {document['dropped']} failed or diverged left out" if document["dropped"] else ""
    objective = document["objective"]
    console.print(f"[bold]{built.describe()}[/]   N = {document['params_column']}, L in nats per token")
    console.print(rows)
    console.print(f"compute-optimal N ~ C^{document['exponent_a']:.3f} for C = 6 N D; errors: {document['uncertainty']}")
    console.print(
        f"{len(built.points)} points fitted, {len(built.held_out)} held out{dropped}; "
        f"Huber(delta {objective['delta']:g}) on log loss: {objective['value']:.6g}, "
        f"reached by {document['reached']} of {document['starts']} starts"
    )
    for note in document["warnings"]:
        console.print(f"[yellow]warning:[/] {note}")
    console.print(f"saved {path}")


def report(directory: Path, json: Path | None = None) -> Path:
    """Draw the figures of a fitted sweep and write one self-contained page, report.html.

    Args:
      directory: A folder that holds fit.json.
      json: Also write the paths of the page and its figures to this file.
    """
    from analysis import report as page

    path, figures = page.write(directory)
    Console(soft_wrap=True, highlight=False).print(
        f"wrote {path} and {len(figures)} figures in {directory / 'figures'}"
    )
    if json:
        results.write_json(json, {"report": str(path), "figures": [str(figure) for figure in figures]})
    return path
