"""Flags: what is wrong with single runs of a sweep, judged from their rows and loss curves before any law is fitted.

A flag is a name and a reason. A flagged run stays in the table; a fit that uses it warns
(`table_checks.flag_warnings`), and `--where "flags=="` leaves it out. The bounds are ours; each constant says why.

    diverged       the run ended with a loss that is not a number, or too high
    failed         the run never ended
    undertrained   its learning rate had not decayed at the end, its warm-up takes a large part of it, or it has too few
                   steps: its loss is not what its size and tokens can reach
    lr_at_bound    the best learning rate of its scan is the lowest or the highest tried: a better one may lie beyond
    off_collapse   its normalised loss curve lies away from those of the other runs (analysis.tables.curve_collapse)
    rising         its training loss ends above its own minimum
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.tables import curve_collapse, metrics, results
from analysis.tables.curve_collapse import Curve
from analysis.tables.run_files import RUNS
from analysis.tables.run_status import name_statuses

FlagName = Literal["diverged", "failed", "undertrained", "lr_at_bound", "off_collapse", "rising"]

MAX_FINAL_RATE = 0.2
"""Share of its peak at or below which a learning rate counts as decayed. Cosine schedules usually end at a tenth; at
the peak the loss lies several percent above what it decays to (Hu et al. 2024)."""
MAX_WARMUP = 0.25
"""Share of the run. A fit counts every token as trained on at the full learning rate."""
MIN_STEPS = 50
"""Adam's average of squared gradients with beta2 = .95 spans 20 steps; a run of fewer than 50 has hardly left its
start."""
MIN_RATES = 3
"""Distinct learning rates for a scan to have an inside."""
MIN_RISE, MIN_RISE_ERRORS = 0.01, 5.0
"""A rise counts if it is more than 1 % of the loss and than five of its standard errors: the lowest of 20 windows is
low partly by chance."""
_WINDOWS = 20
"""Windows of a run in which the training loss is averaged, to see whether it rises."""


@dataclass(frozen=True)
class Flag:
    """One flag of one run. reason: one sentence without its full stop."""

    name: FlagName
    reason: str


def find_flags(table: pd.DataFrame, curves: Mapping[str, Curve] | None = None) -> list[tuple[Flag, ...]]:
    """The flags of each row, in the order of the table.

    Args:
      table: columns of the results table; a flag whose columns are missing is not raised.
      curves: run_id -> curve. Without them only the rows are judged.
    """
    statuses = name_statuses(table).tolist()
    run_ids = _column(table, "run_id", "")
    schedules = _column(table, "schedule", "")
    steps = _numbers(table, "tokens") / _numbers(table, "batch_tokens")
    can_compare = curves and _has_columns_of_collapse(table)
    off_collapse = curve_collapse.compare_curves(table, curves or {}).explain_outliers() if can_compare else {}
    at_bound = _rates_at_bound(table)
    flags_of_rows = []
    for place, (status, run_id) in enumerate(zip(statuses, run_ids, strict=True)):
        if status != "done":
            flags_of_rows.append(_flags_of_status(status))
            continue
        flags, curve = [], (curves or {}).get(run_id)
        if steps[place] < MIN_STEPS:
            flags.append(Flag("undertrained", f"it has {steps[place]:.0f} steps, fewer than {MIN_STEPS}"))
        if curve is not None:
            flags += [*_flags_of_schedule(curve, schedules[place]), *_flags_of_rise(curve)]
        if place in at_bound:
            flags.append(Flag("lr_at_bound", at_bound[place]))
        if run_id in off_collapse:
            flags.append(Flag("off_collapse", off_collapse[run_id]))
        flags_of_rows.append(tuple(flags))
    return flags_of_rows


def flag_names(table: pd.DataFrame, curves: Mapping[str, Curve] | None = None) -> pd.Series:
    """The names of each row's flags, joined by ", "; "" for a row without flags."""
    return _text(table, [join_names(flags) for flags in find_flags(table, curves)]).rename("flags")


def read_flagged_table(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """As `results.read_table`, and the runs of a sweep folder are flagged."""
    path = Path(path)
    if not (path / RUNS).is_dir():
        return results.read_table(path, columns)
    return results.rename_columns(add_flags(results.read_table(path), path / RUNS), path, columns)


def add_flags(table: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """The results table of a sweep with the columns `flags` and `reason`; the reasons of flags stand in `reason` where
    it is empty. runs: <sweep>/runs."""
    if table.empty:
        return table
    flags_of_rows = find_flags(table, read_curves(runs, table["run_id"]))
    reasons = _text(table, ["; ".join(flag.reason for flag in flags) for flags in flags_of_rows])
    if "reason" in table:
        reasons = table["reason"].where(table["reason"].astype(bool), reasons)
    names = _text(table, [join_names(flags) for flags in flags_of_rows])
    flagged_table = results.arrange(table.assign(flags=names, reason=reasons))
    flagged_table.attrs = table.attrs
    return flagged_table


def flag_runs(rows: Sequence[Mapping[str, Any]], runs: Path) -> dict[str, tuple[Flag, ...]]:
    """run_id -> flags, for runs that ended but are in no table yet.

    Args:
      rows: rows of the results table, run_id and status among their columns.
      runs: <sweep>/runs.
    """
    table = pd.DataFrame(list(rows), columns=None if rows else ["run_id"])
    return dict(zip(table["run_id"], find_flags(table, read_curves(runs, table["run_id"])), strict=True))


def read_curves(runs: Path, names: Sequence[str] | pd.Series) -> dict[str, Curve]:
    """run_id -> curve, of the runs of a sweep that logged one; lines that are torn or whose loss is no finite number
    are left out.

    Args:
      runs: <sweep>/runs.
      names: run_ids.
    """
    if not runs.is_dir():
        return {}
    table = metrics.load_metrics(runs.parent, names)
    logged = table[np.isfinite(table["loss"]) & (table["tokens"] > 0)]
    values = logged[["tokens", "loss", "learning_rate"]].to_numpy(np.float64)
    # rows are sorted by run_id: a run starts where the code of its category changes
    starts = np.flatnonzero(np.diff(logged["run_id"].cat.codes, prepend=-1))
    ends = np.append(starts, len(values))[1:]
    run_ids = logged["run_id"].iloc[starts]
    return {name: Curve(*values[a:b].T) for name, a, b in zip(run_ids, starts, ends, strict=True)}


def join_names(flags: Sequence[Flag]) -> str:
    """The distinct names of flags, joined by ", "."""
    return ", ".join(dict.fromkeys(flag.name for flag in flags))


def _column(table: pd.DataFrame, name: str, missing: object) -> np.ndarray:
    return np.asarray(table[name] if name in table else [missing] * len(table))


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    return _column(table, name, np.nan).astype(np.float64)


def _text(table: pd.DataFrame, values: list[str]) -> pd.Series:
    return pd.Series(np.array(values, object), table.index)


def _has_columns_of_collapse(table: pd.DataFrame) -> bool:
    return {"run_id", "tokens", "loss"} <= set(table) and bool({"params", "params_matmul"} & set(table))


def _flags_of_status(status: str) -> tuple[Flag, ...]:
    if status == "diverged":
        return (Flag("diverged", "its loss diverged"),)
    return (Flag("failed", "the run failed"),) if status == "failed" else ()


def _flags_of_schedule(curve: Curve, schedule: str) -> list[Flag]:
    """Flags a learning rate that has not decayed, unless its schedule is constant, and a long warm-up."""
    rate = curve.learning_rate
    if not np.isfinite(rate).all() or rate.max() <= 0:
        return []
    flags, last = [], rate[-1] / rate.max()
    if last > MAX_FINAL_RATE and schedule != "constant":
        flags.append(Flag("undertrained", f"its learning rate ends at {last:.0%} of its peak, not decayed"))
    warmup = curve.tokens[np.argmax(rate >= 0.999 * rate.max())] / curve.tokens[-1]
    if warmup > MAX_WARMUP:
        flags.append(Flag("undertrained", f"its warm-up takes {warmup:.0%} of the run"))
    return flags


def _flags_of_rise(curve: Curve) -> list[Flag]:
    """Flags a run whose mean loss in the last of twenty windows is above the lowest by more than their noise."""
    size, longer = divmod(len(curve.loss), _WINDOWS)
    if size < 3:
        return []
    sizes = np.repeat([size + 1, size], [longer, _WINDOWS - longer])
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(curve.loss, starts) / sizes
    squares = np.add.reduceat((curve.loss - np.repeat(means, sizes)) ** 2, starts)
    # standard error of the difference of two window means, from the typical spread within a window
    error = np.median(np.sqrt(squares / (sizes - 1))) * np.sqrt(2 / size)
    lowest = int(np.argmin(means))
    rise = means[-1] - means[lowest]
    if rise <= max(MIN_RISE * means[lowest], MIN_RISE_ERRORS * error):
        return []
    minimum = curve.tokens[-1] * (lowest + 1) / _WINDOWS
    return [Flag("rising", f"its training loss ends {rise:.3f} nats above its minimum, near {minimum:.3g} tokens")]


def _rates_at_bound(table: pd.DataFrame) -> dict[int, str]:
    """Place of a row -> reason, for the best run of each scan of MIN_RATES learning rates or more if its rate is the
    lowest or the highest tried.

    A diverged run counts as tried, with an infinite loss: beyond it there is nothing better.
    """
    if not {"learning_rate", "loss"} <= set(table):
        return {}
    status, loss, rates = name_statuses(table).to_numpy(), _numbers(table, "loss"), _numbers(table, "learning_rate")
    loss = np.where((status == "done") & np.isfinite(loss), loss, np.inf)
    scan, ended = curve_collapse.scan_ids(table).to_numpy(), np.isin(status, ("done", "diverged"))
    reasons = {}
    for rows in pd.Series(scan).groupby(scan).indices.values():
        places = np.asarray(rows)[ended[rows]]
        tried = np.unique(rates[places])
        if len(tried) < MIN_RATES or not np.isfinite(loss[places]).any():
            continue
        best = places[np.argmin(loss[places])]
        for edge, name in ((tried[0], "lowest"), (tried[-1], "highest")):
            if rates[best] == edge:
                reasons[int(best)] = f"its learning rate, {edge:g}, is the best of {len(tried)} and the {name} tried"
    return reasons
