"""Forecasts that count: a prediction written down and sealed by its hash before the run exists, scored when it does.

Not in the design's list of modules: a lock is neither a fit nor a figure, it is the promise that a fit made on a date.

A seal finds an edit. It cannot stop someone who edits and seals anew, nor tell that a run is older than the lock: for
that the hash has to stand somewhere that others saw it, a commit or a message, before the run was made. What the file
can tell, it does: whether the fit had the target's run among its points, or among those held out of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import files
from analysis.errors import TableError
from analysis.forecasting.saved_fit import package_version
from analysis.tables import results

SCHEMA = 1
TOLERANCE = 1e-3
_TARGET_KEYS = ("params", "tokens", "predicted", "low", "high", "level")
_FIT_KEYS = ("law", "source", "parameters", "objective", "params_column", "holdout", "seed", "uncertainty")
NEW, FITTED, HELD_OUT = "new", "fitted", "held out"
NOTES = {NEW: "", FITTED: "the fit had seen it", HELD_OUT: "held out of the fit, but run before the lock"}


def sealed_hash(content: Mapping[str, Any]) -> str:
    """sha256, in hex, over the canonical JSON of everything but `sha256` itself: keys sorted, no spaces."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Writes a sealed prediction and returns it.

    Args:
      document: a saved fit, as `analysis.forecasting.saved_fit` holds it: what was fitted to which table, and to
      which points.
      rows: forecasts of that fit, one a target: params, tokens (counts), predicted, low, high (nats per token), level.
    Raises:
      TableError: the file is there already, or there is nothing to predict.
    """
    if path.exists():
        raise TableError(f"{path}: holds a locked forecast already, and a lock is never overwritten; name another file")
    if not rows:
        raise TableError(f"{path}: no target to lock; give --params-value and --tokens, or fit with --holdout")
    points, held = (pd.DataFrame(document[name], columns=["params", "tokens"]) for name in ("points", "held_out"))
    targets = []
    for row in rows:
        known = FITTED if is_run_of(points, row).any() else HELD_OUT if is_run_of(held, row).any() else NEW
        targets.append({name: row[name] for name in _TARGET_KEYS} | {"known": known})
    content = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": package_version("scaling-laws"),
    }
    content |= {name: document[name] for name in _FIT_KEYS}
    content |= {"formula": document["formula"], "table_sha256": document["table"]["sha256"]}
    content |= {"points": len(points), "targets": targets}
    files.write_json(path, content | {"sha256": sealed_hash(content)})
    return read_sealed(path)


def read_sealed(path: Path) -> dict[str, Any]:
    """A locked forecast. Raises TableError when it is absent, is none, or does not fit its own hash."""
    try:
        content = json.loads(path.read_text())
        schema, sealed = content["schema"], content["sha256"]
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; `scaling forecast FIT --seal FILE` writes it") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise TableError(f"{path}: not a locked forecast ({error})") from None
    if sealed != (now := sealed_hash(content)):
        raise TableError(f"{path}: was edited after it was locked: it says sha256 {sealed}, its content gives {now}")
    if schema != SCHEMA:
        raise TableError(f"{path}: a locked forecast of schema {schema}, this version reads {SCHEMA}")
    return content


def is_run_of(table: pd.DataFrame, target: Mapping[str, Any]) -> np.ndarray:
    """Which rows are the target's run: params and tokens both within 0.1 % of it. Booleans: [rows]."""
    near = np.ones(len(table), bool)
    for name in ("params", "tokens"):
        near &= np.abs(pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) / target[name] - 1) <= TOLERANCE
    return near


def score_sealed(locked: Mapping[str, Any], table: pd.DataFrame) -> list[dict[str, Any]]:
    """What was promised beside what came out: one row for each finished run of a target, one for a target without.

    Each row has params, tokens (counts), predicted, low, high, measured (nats per token), level, relative_error
    (predicted / measured - 1), inside (measured within low and high), run_id, and a note. measured, relative_error and
    inside are None for a target that waits for its run.

    Args:
      table: a results table; `params` is the column that the locked fit counted by.
    Raises:
      TableError: the table lacks a column, or a finished row is not finite and positive.
    """
    found = results.done_points(table, locked["params_column"])
    broken = table[table["status"] != "done"] if "status" in table else table.iloc[:0]
    rows = []
    for target in locked["targets"]:
        known = NOTES[target["known"]]
        runs = found[is_run_of(found, target)]
        if runs.empty:
            fell = broken[is_run_of(broken.assign(params=broken[locked["params_column"]]), target)]
            rows.append(_score_row(target, None, "", f"its run {fell['status'].iloc[0]}" if len(fell) else ""))
        for run in runs.to_dict("records"):
            rows.append(_score_row(target, float(run["loss"]), run["run_id"], known))
    return rows


def _score_row(target: Mapping[str, Any], measured: float | None, run: str, note: str) -> dict[str, Any]:
    promised = {name: target[name] for name in _TARGET_KEYS}
    if measured is None:
        return promised | {"measured": None, "relative_error": None, "inside": None, "run_id": run, "note": note}
    error, inside = target["predicted"] / measured - 1, target["low"] <= measured <= target["high"]
    return promised | {"measured": measured, "relative_error": error, "inside": inside, "run_id": run, "note": note}
