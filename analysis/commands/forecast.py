"""`scaling forecast`: forecasts a run from a saved fit, seals the forecast before the run exists, and scores it
after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro
from rich.table import Table

from analysis import api, files
from analysis.commands.printing import make_console, print_table, print_warnings
from analysis.errors import TableError
from analysis.forecasting import extrapolation, saved_fit, sealed_forecast
from analysis.tables import results
from analysis.terminal import labelled


def forecast(
    fit: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FIT")] = None,
    params_value: float | None = None,
    tokens: float | None = None,
    seal: Path | None = None,
    score: Path | None = None,
    table: Path | None = None,
    columns: str = "",
    where: str = "",
    out: Path | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Forecast the loss of the runs that a fit held out, or of a run that nobody has trained yet; seal the forecast,
    and score it once the run exists.

    Args:
      fit: fit.json, as `scaling fit` writes it; required, except with --score.
      params_value: Number of parameters of the run to forecast, counted as the fit counts them; goes with --tokens.
        Default: the held-out runs of the fit.
      tokens: Training tokens of the run to forecast; goes with --params-value.
      seal: Also write the forecast, dated and with its hash, to this new file. Default: no file.
      score: A file that --seal wrote, to compare with the runs of --table. Default: forecast, score nothing.
      table: For --score, required there: a sweep folder, or a CSV, Parquet or JSONL file.
      columns: For --score: names of columns in a table made elsewhere, as in params=N,tokens=D,loss=L. Default: as they
        are.
      where: For --score: rows of the table that count, as in "corpus==c4" or "flags==". Default: all rows.
      out: File to save the forecast in. Default: forecast.json beside the fit; with --score, no file.
      json: Also write the same content to this file. Default: no file.
    """
    if score is None:
        if table is not None or columns or where:
            raise TableError(
                "--table, --columns and --where go with --score: they name the rows that may hold the sealed runs"
            )
        if fit is None:
            raise TableError("FIT is missing: give a fit.json to forecast from, or --score SEALED --table TABLE")
        return _forecast_from(fit, params_value, tokens, seal, (out or fit.parent / "forecast.json", json))
    others = {"FIT": fit, "--params-value": params_value, "--tokens": tokens, "--seal": seal}
    if extra := [name for name, value in others.items() if value is not None]:
        raise TableError(f"--score {score}: a sealed forecast is scored as it stands; leave out {', '.join(extra)}")
    if table is None:
        raise TableError(f"--score {score}: needs --table TABLE, the results table that may hold its runs")
    facts = _score(score, api.load(table, columns=results.parse_columns(columns), where=where))
    return _write(facts, (out, json))


def _forecast_from(
    fit: Path, params: float | None, tokens: float | None, seal: Path | None, out: tuple[Path | None, ...]
) -> dict[str, Any]:
    """Forecasts one run, or the held-out ones, from a saved fit; prints and writes the forecast."""
    loaded = saved_fit.read_fit(fit)
    if (params is None) != (tokens is None):
        raise TableError("--params-value and --tokens go together: one run has both")
    if params is not None and not (params > 0 and tokens is not None and tokens > 0):
        raise TableError(f"--params-value {params} --tokens {tokens}: both must be above zero")
    target = loaded.held_out if params is None else pd.DataFrame({"params": [params], "tokens": [tokens]})
    if target.empty:
        raise TableError(f"{fit}: no run was held out; fit with --holdout, or give --params-value and --tokens")
    rows = loaded.forecast(target)
    facts = rows[-1] | {"law": loaded.describe(), "params_column": loaded.document["params_column"], "rows": rows}
    facts |= extrapolation.describe_targets(loaded.points, rows)
    sealed = None if seal is None else sealed_forecast.write_sealed(loaded.document, rows, seal)
    _print_forecast(facts, is_held_out=params is None)
    if sealed is not None:
        facts |= {"lock": str(seal), "sha256": sealed["sha256"]}
        _print_seal(sealed, seal)
    return _write(facts, out)


def _score(path: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Compares a sealed forecast with the runs of a table, and prints the comparison."""
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


def _print_forecast(facts: dict[str, Any], *, is_held_out: bool) -> None:
    console = make_console()
    console.print(labelled(facts["law"], "bold", f"  N = {facts['params_column']}, L in nats per token"))
    if len(facts["rows"]) > 1:
        print_table(_table(facts["rows"]), console)
    run = "the largest run, which the fit did not see" if is_held_out else "that run"
    measured = (
        f", measured {facts['measured']:.4f}, relative error {abs(facts['relative_error']) * 100:.2g} %"
        if facts["measured"] is not None
        else ""
    )
    console.print(
        f"forecast for {run} (N = {facts['params']:,.0f}, D = {facts['tokens']:,.0f}): predicted "
        f"{facts['predicted']:.4f} ({facts['level']:.0%} interval {facts['low']:.4f} to {facts['high']:.4f}){measured}"
    )
    print_warnings(facts["warnings"], console)


def _table(rows: list[dict[str, Any]], *more: str) -> Table:
    """One line a run: its predicted and measured loss, then the entries of the row that `more` names."""
    heads = ("run", "params", "tokens", "predicted", "interval", "measured", "error")
    table = Table(*heads, *more, box=None, pad_edge=False)
    for row in rows:
        measured = ("", "") if row["measured"] is None else (f"{row['measured']:.4f}", f"{row['relative_error']:+.2%}")
        table.add_row(
            *(row["run_id"], f"{row['params']:,.0f}", f"{row['tokens']:,.0f}", f"{row['predicted']:.4f}"),
            *(f"{row['low']:.4f} to {row['high']:.4f}", *measured, *(str(row[name]) for name in more)),
        )
    return table


def _print_seal(sealed: dict[str, Any], path: Path | None) -> None:
    console = make_console()
    console.print(
        f"sealed {path} on {sealed['date']}, sha256 {sealed['sha256']}: show this hash before the run is made"
    )
    for target in sealed["targets"]:
        if target["known"] != sealed_forecast.NEW:
            run = f"N = {target['params']:,.0f}, D = {target['tokens']:,.0f}"
            print_warnings([f"{run}: {sealed_forecast.NOTES[target['known']]}"], console)


def _print_score(facts: dict[str, Any]) -> None:
    console = make_console()
    console.print(labelled(facts["formula"], "bold", f"  N = {facts['params_column']}, L in nats per token"))
    console.print(f"sealed on {facts['date']}, sha256 {facts['sha256']}, unchanged since")
    verdicts = {True: "inside", False: "OUTSIDE", None: "waiting"}
    rows = [row | {"verdict": verdicts[row["inside"]]} for row in facts["rows"]]
    print_table(_table(rows, "verdict", "note"), console)
    level = facts["rows"][0]["level"]
    error = f", mean relative error {facts['mean_relative_error']:.2%}" if facts["scored"] else ""
    console.print(
        f"{facts['scored']} runs scored: {facts['inside']} inside the {level:.0%} interval{error}; "
        f"{facts['waiting']} targets wait for their run"
    )
