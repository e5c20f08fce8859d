"""What is wrong with single cells of a sweep, told by their rows and curves before any law is fitted.

A flag is a word and a reason. A flagged row stays in the table; a fit that uses it says so (`checks.notes`), and
`--where "flags=="` leaves it out. The bounds are ours, each with its ground beside it.

    diverged       the run ended with a loss that is no number, or too high
    failed         the run never ended
    undertrained   its learning rate had not come down at the end, its warm-up takes a large part of it, or it has too
                   few steps: its loss is not what its size and tokens can reach
    lr_at_bound    the best learning rate of its scan is the lowest or the highest tried: a better one may lie beyond
    off_collapse   its curve does not lie where those of the other cells have it (analysis.tables.curve_collapse)
    rising         its training loss ends above its own minimum

Not in the design's list of modules: `checks` judges the points of a fit, this the runs behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.tables import curve_collapse
from analysis.tables.curve_collapse import Curve

FlagName = Literal["diverged", "failed", "undertrained", "lr_at_bound", "off_collapse", "rising"]

MAX_FINAL_RATE = 0.2
"""Of its peak, at or under which a learning rate counts as decayed. Cosine to a tenth is usual; at the peak the loss of
a run lies several percent above what it decays to (Hu et al. 2024)."""
MAX_WARMUP = 0.25
"""Of the run. A fit takes every token for one trained at the full rate."""
MIN_STEPS = 50
"""Adam's average of squares with beta2 = .95 remembers 20 steps; fewer than 50 are its start, not its use."""
MIN_RATES = 3
MIN_RISE, MIN_RISE_ERRORS = 0.01, 5.0
"""A rise counts from 1 % of the loss and five of its standard errors on: the lowest of 20 windows is low by chance."""
_WINDOWS = 20


@dataclass(frozen=True)
class Flag:
    """One flag of one run. reason: one sentence without its full stop."""

    name: FlagName
    reason: str


def find_flags(table: pd.DataFrame, curves: Mapping[str, Curve] | None = None) -> list[tuple[Flag, ...]]:
    """The flags of each row, in the order of the table.

    Args:
      table: columns of the results table; a flag whose columns are not there is not raised.
      curves: run_id -> curve. Without them only what the rows say is judged.
    """
    status, runs, schedules = (_column(table, *one) for one in (("status", "done"), ("run_id", ""), ("schedule", "")))
    steps = _numbers(table, "tokens") / _numbers(table, "batch_tokens")
    off = curve_collapse.compare_curves(table, curves).explain_outliers() if curves and _comparable(table) else {}
    at_bound = _at_bound(table)
    found = []
    for place, (state, run) in enumerate(zip(status, runs, strict=True)):
        if state != "done":
            found.append(tuple(_ended(state)))
            continue
        flags, curve = [], (curves or {}).get(run)
        if steps[place] < MIN_STEPS:
            flags.append(Flag("undertrained", f"it has {steps[place]:.0f} steps, fewer than {MIN_STEPS}"))
        if curve is not None:
            flags += [*_rate(curve, schedules[place]), *_rising(curve)]
        if place in at_bound:
            flags.append(Flag("lr_at_bound", at_bound[place]))
        if run in off:
            flags.append(Flag("off_collapse", off[run]))
        found.append(tuple(flags))
    return found


def flag_names(table: pd.DataFrame, curves: Mapping[str, Curve] | None = None) -> pd.Series:
    """The words of each row's flags, joined by ", "; "" where there are none."""
    return _text(table, [join_names(found) for found in find_flags(table, curves)]).rename("flags")


def add_flags(table: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """The table of a sweep with its column `flags`, their reasons in `reason` where it holds nothing yet.

    runs: the folder of the run folders.
    """
    found = find_flags(table, read_curves(runs, table["run_id"]))
    reasons = _text(table, ["; ".join(flag.reason for flag in row) for row in found])
    if "reason" in table:
        reasons = table["reason"].where(table["reason"].astype(bool), reasons)
    return table.assign(flags=_text(table, [join_names(row) for row in found]), reason=reasons)


def flag_runs(rows: Sequence[Mapping[str, Any]], runs: Path) -> dict[str, tuple[Flag, ...]]:
    """run_id -> flags, for runs that ended but are in no table yet.

    Args:
      rows: of the results table, run_id and status among their columns. runs: the folder of the run folders.
    """
    table = pd.DataFrame(list(rows), columns=None if rows else ["run_id"])
    return dict(zip(table["run_id"], find_flags(table, read_curves(runs, table["run_id"])), strict=True))


def read_curves(runs: Path, names: Sequence[str] | pd.Series) -> dict[str, Curve]:
    """run_id -> curve, of those runs of a sweep that logged one: torn lines and losses that are no numbers passed over.

    runs: <sweep>/runs. Imports the store here, because that reads with `results`, which flags what it reads.
    """
    from analysis.tables import metrics

    if not runs.is_dir():
        return {}
    table = metrics.load_metrics(runs.parent, names)
    logged = table[np.isfinite(table["loss"]) & (table["tokens"] > 0)]
    found = logged[["tokens", "loss", "learning_rate"]].to_numpy(np.float64)
    starts = np.flatnonzero(np.diff(logged["run_id"].cat.codes, prepend=-1))
    ends = np.append(starts, len(found))[1:]
    ids = logged["run_id"].iloc[starts]
    return {name: Curve(*found[a:b].T) for name, a, b in zip(ids, starts, ends, strict=True)}


def join_names(found: Sequence[Flag]) -> str:
    """The distinct words, joined by ", "."""
    return ", ".join(dict.fromkeys(flag.name for flag in found))


def _column(table: pd.DataFrame, name: str, missing: object) -> np.ndarray:
    return np.asarray(table[name] if name in table else [missing] * len(table))


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    return _column(table, name, np.nan).astype(np.float64)


def _text(table: pd.DataFrame, values: list[str]) -> pd.Series:
    return pd.Series(np.array(values, object), table.index)


def _comparable(table: pd.DataFrame) -> bool:
    return {"run_id", "tokens", "loss"} <= set(table) and bool({"params", "params_matmul"} & set(table))


def _ended(status: str) -> list[Flag]:
    if status == "diverged":
        return [Flag("diverged", "its loss diverged")]
    return [Flag("failed", "the run failed")] if status == "failed" else []


def _rate(curve: Curve, schedule: str) -> list[Flag]:
    """What the learning rate of a run says against it. A schedule that is constant on purpose need not decay."""
    rate = curve.learning_rate
    if not np.isfinite(rate).all() or rate.max() <= 0:
        return []
    found, last = [], rate[-1] / rate.max()
    if last > MAX_FINAL_RATE and schedule != "constant":
        found.append(Flag("undertrained", f"its learning rate ends at {last:.0%} of its peak, not decayed"))
    risen = curve.tokens[np.argmax(rate >= 0.999 * rate.max())] / curve.tokens[-1]
    if risen > MAX_WARMUP:
        found.append(Flag("undertrained", f"its warm-up takes {risen:.0%} of the run"))
    return found


def _rising(curve: Curve) -> list[Flag]:
    """Whether the last of twenty windows lies above the lowest by more than their noise."""
    size, longer = divmod(len(curve.loss), _WINDOWS)
    if size < 3:
        return []
    sizes = np.repeat([size + 1, size], [longer, _WINDOWS - longer])
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(curve.loss, starts) / sizes
    squares = np.add.reduceat((curve.loss - np.repeat(means, sizes)) ** 2, starts)
    error = np.median(np.sqrt(squares / (sizes - 1))) * np.sqrt(2 / size)
    lowest = int(np.argmin(means))
    rise = means[-1] - means[lowest]
    if rise <= max(MIN_RISE * means[lowest], MIN_RISE_ERRORS * error):
        return []
    where = curve.tokens[-1] * (lowest + 1) / _WINDOWS
    return [Flag("rising", f"its training loss ends {rise:.3f} nats above its minimum, near {where:.3g} tokens")]


def _at_bound(table: pd.DataFrame) -> dict[int, str]:
    """place of a row -> reason, for the best of each scan of three learning rates or more if it is at an edge.

    A rate that diverged was tried, and lost: with it at the edge, the best rate beside it is inside the scan.
    """
    if not {"learning_rate", "loss"} <= set(table):
        return {}
    status, loss, rates = _column(table, "status", "done"), _numbers(table, "loss"), _numbers(table, "learning_rate")
    loss = np.where((status == "done") & np.isfinite(loss), loss, np.inf)
    scan, ended = curve_collapse.scan_ids(table).to_numpy(), np.isin(status, ("done", "diverged"))
    found = {}
    for rows in pd.Series(scan).groupby(scan).indices.values():
        at = np.asarray(rows)[ended[rows]]
        tried = np.unique(rates[at])
        if len(tried) < MIN_RATES or not np.isfinite(loss[at]).any():
            continue
        best = at[np.argmin(loss[at])]
        for edge, word in ((tried[0], "lowest"), (tried[-1], "highest")):
            if rates[best] == edge:
                found[int(best)] = f"its learning rate, {edge:g}, is the best of {len(tried)} and the {word} tried"
    return found
