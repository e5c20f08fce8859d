"""The verbs of analysis: fit, forecast, report. Each returns the facts that it prints.

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
    for name, value in {**built.values, "a_opt": document["a_opt"]}.items():
        low, high = document["intervals"][name]
        rows.add_row(name, f"{value:.4g}", f"{document['standard_errors'][name]:.2g}", f"{low:.4g} to {high:.4g}")
    dropped = f", {document['dropped']} failed or diverged left out" if document["dropped"] else ""
    objective = document["objective"]
    console.print(f"[bold]{built.describe()}[/]   N = {document['params_column']}, L in nats per token")
    console.print(rows)
    console.print(f"compute-optimal N ~ C^{document['a_opt']:.3f} for C = 6 N D; errors: {document['uncertainty']}")
    console.print(
        f"{len(built.points)} points fitted, {len(built.held_out)} held out{dropped}; "
        f"Huber(delta {objective['delta']:g}) on log loss: {objective['value']:.6g}, "
        f"reached by {document['reached']} of {document['starts']} starts"
    )
    for note in document["warnings"]:
        console.print(f"[yellow]warning:[/] {note}")
    console.print(f"saved {path}")


def forecast(
    fit: Path,
    params_value: float | None = None,
    tokens: float | None = None,
    out: Path | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Forecast the runs that a fit did not see, or a run that nobody has trained, from a saved fit.

    Args:
      fit: fit.json, as `scaling fit` writes it.
      params_value: Parameters of a run to forecast, in the fit's own counting; goes with --tokens.
      tokens: Training tokens of a run to forecast; goes with --params-value.
      out: Where to save the forecast; forecast.json beside the fit unless given.
      json: Also write the same facts to this file.
    """
    loaded = saved.load(fit)
    if (params_value is None) != (tokens is None):
        raise TableError("--params-value and --tokens go together: one run has both")
    if params_value is not None and not (params_value > 0 and tokens is not None and tokens > 0):
        raise TableError(f"--params-value {params_value} --tokens {tokens}: both must be above zero")
    asked = None if params_value is None else pd.DataFrame({"params": [params_value], "tokens": [tokens]})
    target = loaded.held_out if asked is None else asked
    if target.empty:
        raise TableError(f"{fit}: no run was held out; fit with --holdout, or give --params-value and --tokens")
    rows = loaded.forecast(target)
    facts = rows[-1] | {"law": loaded.describe(), "params_column": loaded.document["params_column"], "rows": rows}
    _print_forecast(facts, asked is None)
    for path in (out or fit.parent / "forecast.json", json):
        if path:
            results.write_json(path, facts)
    return facts


def _print_forecast(facts: dict[str, Any], unseen: bool) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{facts['law']}[/]   N = {facts['params_column']}, L in nats per token")
    rows = facts["rows"]
    if len(rows) > 1:
        table = Table("run", "params", "tokens", "predicted", "interval", "measured", "error", box=None, pad_edge=False)
        for row in rows:
            interval = f"{row['low']:.4f} to {row['high']:.4f}"
            table.add_row(
                *(row["run_id"], f"{row['params']:,.0f}", f"{row['tokens']:,.0f}", f"{row['predicted']:.4f}", interval),
                *(f"{row['measured']:.4f}", f"{row['relative_error']:+.2%}"),
            )
        console.print(table)
    what = "the largest run, which the fit did not see" if unseen else "that run"
    measured = (
        f", measured {facts['measured']:.4f}, relative error {abs(facts['relative_error']) * 100:.2g} %"
        if facts["measured"] is not None
        else ""
    )
    console.print(
        f"forecast for {what} (N = {facts['params']:,.0f}, D = {facts['tokens']:,.0f}): predicted "
        f"{facts['predicted']:.4f} ({facts['level']:.0%} interval {facts['low']:.4f} to {facts['high']:.4f}){measured}"
    )


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
