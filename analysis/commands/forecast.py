"""`scaling forecast`: what a saved fit says of a run, sealed before the run exists, scored once it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from analysis import files
from analysis.errors import TableError
from analysis.forecasting import saved_fit, sealed_forecast
from analysis.tables import results


def forecast(
    fit: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FIT")] = None,
    params_value: float | None = None,
    tokens: float | None = None,
    seal: Path | None = None,
    score: Path | None = None,
    table: Path | None = None,
    columns: str = "",
    out: Path | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Forecast the runs that a fit did not see, or a run that nobody has trained; lock the forecast; score it later.

    Args:
      fit: fit.json, as `scaling fit` writes it. Not with --score.
      params_value: Parameters of a run to forecast, in the fit's own counting; goes with --tokens.
      tokens: Training tokens of a run to forecast; goes with --params-value.
      seal: Also write the forecast, sealed by its hash and dated, to this new file.
      score: A file that --seal wrote: compare it with the runs of --table.
      table: For --score: a sweep folder, or a CSV, Parquet or JSONL file.
      columns: For --score: names in a table made elsewhere, as in params=N,tokens=D,loss=L.
      out: Where to save the forecast; forecast.json beside the fit unless given. With --score, nowhere unless given.
      json: Also write the same facts to this file.
    """
    if score is None:
        if table is not None or columns:
            raise TableError("--table and --columns go with --score: the table in which the locked runs may stand")
        if fit is None:
            raise TableError("give a fit.json to forecast from, or --score LOCK --table TABLE")
        return _promise(fit, params_value, tokens, seal, (out or fit.parent / "forecast.json", json))
    others = {"FIT": fit, "--params-value": params_value, "--tokens": tokens, "--seal": seal}
    if given := [name for name, value in others.items() if value is not None]:
        raise TableError(f"--score {score}: a locked forecast is compared as it stands; leave out {', '.join(given)}")
    if table is None:
        raise TableError(f"--score {score}: needs --table TABLE, the results in which its runs may stand")
    facts = _compare(score, results.read_table(table, results.parse_columns(columns)))
    return _write(facts, (out, json))


def _promise(
    fit: Path, params: float | None, tokens: float | None, lock: Path | None, out: tuple[Path | None, ...]
) -> dict[str, Any]:
    loaded = saved_fit.read_fit(fit)
    if (params is None) != (tokens is None):
        raise TableError("--params-value and --tokens go together: one run has both")
    if params is not None and not (params > 0 and tokens is not None and tokens > 0):
        raise TableError(f"--params-value {params} --tokens {tokens}: both must be above zero")
    asked = None if params is None else pd.DataFrame({"params": [params], "tokens": [tokens]})
    target = loaded.held_out if asked is None else asked
    if target.empty:
        raise TableError(f"{fit}: no run was held out; fit with --holdout, or give --params-value and --tokens")
    rows = loaded.forecast(target)
    facts = rows[-1] | {"law": loaded.describe(), "params_column": loaded.document["params_column"], "rows": rows}
    sealed = None if lock is None else sealed_forecast.write_sealed(loaded.document, rows, lock)
    _print_forecast(facts, asked is None)
    if sealed is not None:
        facts |= {"lock": str(lock), "sha256": sealed["sha256"]}
        _print_lock(sealed, lock)
    return _write(facts, out)


def _compare(path: Path, table: pd.DataFrame) -> dict[str, Any]:
    sealed = sealed_forecast.read_sealed(path)
    rows = sealed_forecast.score_sealed(sealed, table)
    scored = [row for row in rows if row["measured"] is not None]
    errors = [abs(row["relative_error"]) for row in scored]
    facts = {
        "lock": str(path),
        **{name: sealed[name] for name in ("sha256", "date", "law", "formula", "params_column", "table_sha256")},
        "scored": len(scored),
        "inside": sum(row["inside"] for row in scored),
        "waiting": len(rows) - len(scored),
        "mean_relative_error": sum(errors) / len(errors) if errors else None,
        "rows": rows,
    }
    _print_score(facts)
    return facts


def _write(facts: dict[str, Any], paths: tuple[Path | None, ...]) -> dict[str, Any]:
    for path in paths:
        if path:
            files.write_json(path, facts)
    return facts


def _print_forecast(facts: dict[str, Any], unseen: bool) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{facts['law']}[/]   N = {facts['params_column']}, L in nats per token")
    if len(facts["rows"]) > 1:
        console.print(_table(facts["rows"]))
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


def _table(rows: list[dict[str, Any]], *more: str) -> Table:
    """One line a run: what was predicted and measured, then the columns named in `more`."""
    heads = ("run", "params", "tokens", "predicted", "interval", "measured", "error")
    table = Table(*heads, *more, box=None, pad_edge=False)
    for row in rows:
        came = ("", "") if row["measured"] is None else (f"{row['measured']:.4f}", f"{row['relative_error']:+.2%}")
        table.add_row(
            *(row["run_id"], f"{row['params']:,.0f}", f"{row['tokens']:,.0f}", f"{row['predicted']:.4f}"),
            *(f"{row['low']:.4f} to {row['high']:.4f}", *came, *(str(row[name]) for name in more)),
        )
    return table


def _print_lock(sealed: dict[str, Any], path: Path | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"locked {path} on {sealed['date']}, sha256 {sealed['sha256']}: show this hash before the run is made"
    )
    for target in sealed["targets"]:
        if target["known"] != sealed_forecast.NEW:
            where = f"N = {target['params']:,.0f}, D = {target['tokens']:,.0f}"
            console.print(f"[yellow]warning:[/] {where}: {sealed_forecast.NOTES[target['known']]}")


def _print_score(facts: dict[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{facts['formula']}[/]   N = {facts['params_column']}, L in nats per token")
    console.print(f"locked on {facts['date']}, sha256 {facts['sha256']}, unchanged since")
    says = {True: "inside", False: "OUTSIDE", None: "waiting"}
    console.print(_table([row | {"verdict": says[row["inside"]]} for row in facts["rows"]], "verdict", "note"))
    level = facts["rows"][0]["level"]
    error = f", mean relative error {facts['mean_relative_error']:.2%}" if facts["scored"] else ""
    console.print(
        f"{facts['scored']} runs scored: {facts['inside']} inside the {level:.0%} interval{error}; "
        f"{facts['waiting']} targets wait for their run"
    )
