"""`scaling fit`: fits a law to a results table and saves it as fit.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis import api, files
from analysis.commands.printing import make_console, print_table, print_warnings
from analysis.errors import TableError
from analysis.forecasting import saved_fit, sensitivity
from analysis.quantities import parse_quantity
from analysis.tables import results
from analysis.terminal import labelled


def fit(
    table: Path,
    law: str = "chinchilla",
    objective: api.ObjectiveName = "huber",
    delta: float = 1e-3,
    columns: str = "",
    where: str = "",
    params_column: str | None = None,
    holdout: str = "none",
    weight_power: float = 0.0,
    fix: str = "",
    bound: str = "",
    draws: int = 512,
    level: float = 0.9,
    seed: int = 0,
    profile: bool = False,
    panel: bool = True,
    out: Path | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Fit a law to a results table and save it as fit.json, with a panel that shows how far the results depend on the
    way of fitting.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file.
      law: Name of the law, such as chinchilla, interaction or data_constrained; `chosen` lets a back-test choose it.
      objective: Loss of a residual: huber, lad (absolute) or mse_log (squared), all of log losses; mse, squared, of
        losses.
      delta: Residual at which the Huber loss turns from quadratic to linear, in log loss. Only for --objective huber.
      columns: Names of columns in a table made elsewhere, as in params=N,tokens=D,loss=L. Default: as they are.
      where: Rows to use, as in "corpus==c4" or "flops>=1e18 and flops<1e21". Default: all rows.
      params_column: The count of parameters to fit against, such as params_matmul or params_total. Default: params if
        the table has it, else params_matmul.
      holdout: Runs that the fit must not see: none, largest, or a number of FLOPs at or above which runs are held out.
        The other runs of the same params and tokens, such as seeds, are held out with them.
      weight_power: Points are weighted by training FLOPs to this power; above 0 the largest runs count more.
      fix: Parameters fixed at a value, as in E=1.69,alpha=.34. Default: none.
      bound: Ranges of parameters, as in E=0.5:2,beta=.2:.6. Default: those of the law.
      draws: Number of bootstrap resamples.
      level: Nominal probability of the intervals, between 0 and 1.
      seed: Seed of the bootstrap.
      profile: Also print and save the profile-likelihood interval of each parameter, beside the bootstrap's.
      panel: Also refit with other counts of parameters, windows of compute, objectives and weights, and show how
        exponents and forecast change.
      out: File to save the fit in. Default: fit.json beside the table.
      json: Also write what is printed to this file, as JSON. Default: no file.
    """
    for flag, value, rule, is_valid in (
        ("--delta", delta, "above zero", delta > 0),
        ("--draws", draws, "at least 2", draws >= 2),
        ("--level", level, "between 0 and 1", 0 < level < 1),
        ("--weight-power", weight_power, "zero or more", weight_power >= 0),
    ):
        if not is_valid:
            raise TableError(f"{flag} {value}: must be {rule}")
    settings = saved_fit.FitSettings(
        objective=api.objective(objective, delta),
        weight_power=weight_power,
        fixed={name: _number("fix", name, value) for name, value in _pairs("fix", fix)},
        bounds={name: _range(name, value) for name, value in _pairs("bound", bound)},
        holdout=holdout,
        draws=draws,
        level=level,
        seed=seed,
        profile=profile,
    )
    rows, origin = api.load_with_origin(table, columns=results.parse_columns(columns), where=where)
    built = api.fit(rows, law, settings, params_column=params_column, panel=panel, origin=origin)
    path = saved_fit.write_fit(built, out or (table if table.is_dir() else table.parent) / "fit.json")
    facts = built.facts() | {"fit": str(path), "points": len(built.points)}
    _print_fit(built, path)
    if json:
        files.write_json(json, facts)
    return facts


def _pairs(flag: str, text: str) -> list[tuple[str, str]]:
    """ "E=1.7,alpha=.3" -> [("E", "1.7"), ("alpha", ".3")]. Raises TableError for text of another form."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not value.strip() for name, _, value in pairs):
        example = "E=1.69,alpha=.34" if flag == "fix" else "E=0.5:2,beta=.2:.6"
        raise TableError(f"--{flag} {text}: write parameter=value pairs, as in {example}")
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _number(flag: str, name: str, text: str) -> float:
    try:
        return float(parse_quantity(text))
    except ValueError as error:
        raise TableError(f"--{flag} {name}={text}: {error}") from None


def _range(name: str, text: str) -> tuple[float, float]:
    """ "0.5:2" -> (0.5, 2.0), the bounds of a parameter; -inf and inf are open. Raises TableError for text of another
    form."""
    low, colon, high = (part.strip() for part in text.partition(":"))
    if not colon:
        raise TableError(f"--bound {name}={text}: must be low:high, as in {name}=0.5:2")
    return (
        -math.inf if low == "-inf" else _number("bound", name, low),
        math.inf if high == "inf" else _number("bound", name, high),
    )


def _print_fit(built: saved_fit.SavedFit, path: Path) -> None:
    document = built.document
    console = make_console()
    profiles = document.get("profile_intervals", {})
    heads = ("", "value", "standard error", f"{document['level']:.0%} interval", *(["by profile"] if profiles else []))
    rows = Table(*heads, box=None, pad_edge=False)
    exponent = {} if document["exponent_a"] is None else {"exponent_a": document["exponent_a"]}
    for name, value in {**built.values, **exponent}.items():
        low, high = document["intervals"][name]
        by_profile = [_format_open(profiles[name])] if name in profiles else []
        error = document["standard_errors"][name]
        rows.add_row(name, f"{value:.4g}", f"{error:.2g}", f"{low:.4g} to {high:.4g}", *by_profile)
    dropped = f", {document['dropped']} failed or diverged left out" if document["dropped"] else ""
    counting = f"N = {document['params_column']}, " if "params" in built.law.columns else ""
    units = f"{built.law.response} in {document['units'][built.law.response]}"
    console.print(labelled(built.describe(), "bold", f"  {counting}{units}"))
    print_table(rows, console)
    if exponent:
        a = document["exponent_a"]
        console.print(f"compute-optimal N ~ C^{a:.3f} for C = 6 N D; errors: {document['uncertainty']}")
    objective = document["objective"]
    width = f" (delta {objective['delta']:g})" if objective["delta"] else ""
    console.print(
        f"{len(built.points)} points fitted, {len(built.held_out)} held out{_cell_note(built)}{dropped}; "
        f"{objective['name']}{width}: "
        f"{objective['value']:.6g}, reached by {document['reached']} of {document['starts']} starts"
    )
    if document.get("sampling"):
        console.print(document["sampling"])
    for how, count in document["learning_rates"].items():
        console.print(f"learning rates of {count} of {len(built.points)}: {how}")
    _print_choice(document, console)
    if document.get("sensitivity"):
        print_table(sensitivity.panel_table(document["sensitivity"]), console)
    print_warnings(document["warnings"], console)
    console.print(f"saved {path}")


def _cell_note(built: saved_fit.SavedFit) -> str:
    """Says that --holdout largest held out more than one row: seeds and checkpoints of one cell."""
    rows = built.held_out
    if built.document["holdout"] != "largest" or len(rows) < 2:
        return ""
    cell = ", ".join(f"{name} = {rows[name].iloc[-1]:,.10g}" for name in built.law.columns)
    return f" ({rows['run_id'].nunique()} runs of the cell {cell}, with all their rows)"


def _format_open(interval: list[float | None]) -> str:
    """An interval as text; None is an open end."""
    return " to ".join("open" if end is None else f"{end:.4g}" for end in interval)


def _print_choice(document: Mapping[str, Any], console: Console) -> None:
    choice = document["choice"]
    if choice is None or choice["drift"] is None:
        return
    ranked = sorted((c for c in choice["candidates"] if c["score"] is not None), key=lambda c: c["score"])
    best = ", ".join(f"{c['name']} {c['score']:.2%}" for c in ranked[:3])
    console.print(
        f"back-test inside these points (top 3x of compute held out): {best}; errors grow by "
        f"{choice['drift']:.2%} per e-fold of compute beyond the largest run"
    )
