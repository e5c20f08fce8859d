"""Sealed forecasts: predictions written to a file with their own hash before the run exists, and scored when it does.

The hash reveals an edit. It does not stop someone who edits the file and seals it anew, nor show that a run is older
than the file: for that the hash must be published, in a commit or a message, before the run is made. The file itself
records whether the target's run was among the fitted points, or among those held out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd

from analysis import files
from analysis.errors import TableError
from analysis.forecasting.saved_fit import package_version
from analysis.tables import results, run_status
from analysis.type_checks import find_misfit

SCHEMA = 1
TOLERANCE = 1e-3  # relative difference in params and in tokens within which a run is that of a target
_TARGET_KEYS = ("params", "tokens", "predicted", "low", "high", "level")
_FIT_KEYS = ("law", "source", "parameters", "objective", "params_column", "holdout", "seed", "uncertainty")
# What the fit knew of a target's run, as the file records it, and the note that is printed beside its score.
NEW, FITTED, HELD_OUT = "new", "fitted", "held out"
NOTES = {NEW: "", FITTED: "among the fitted runs", HELD_OUT: "held out of the fit, but run before the seal"}


class SealedTarget(TypedDict):
    """A target: counts of parameters and tokens, a forecast in nats per token, and what the fit knew of its run."""

    params: float
    tokens: float
    predicted: float
    low: float
    high: float
    level: float
    known: Literal["new", "fitted", "held out"]


class SealedContent(TypedDict):
    """Any sealed file: sha256 is the hash of its other entries."""

    sha256: str


class SealedForecast(SealedContent):
    """The entries of a sealed forecast that are read; it has others for people."""

    schema: Literal[1]
    date: str
    params_column: str
    targets: list[SealedTarget]


def sealed_hash(content: Mapping[str, Any]) -> str:
    """sha256, in hex, of the canonical JSON (keys sorted, no spaces) of all entries but `sha256` itself."""
    unsealed = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Writes a sealed forecast to a new file and returns its content.

    Args:
      document: the document of the saved fit (analysis.forecasting.saved_fit.SavedFit).
      rows: its forecasts, one per target: params, tokens (counts), predicted, low, high (nats per token), level.
    Raises:
      TableError: the file exists already, or there is no target.
    """
    if path.exists():
        raise TableError(f"{path}: exists, and a sealed forecast is never overwritten; give --seal another file")
    if not rows:
        raise TableError(
            f"{path}: no target to seal a forecast of; give --params-value and --tokens, or fit with --holdout"
        )
    points, held_out = (pd.DataFrame(document[name], columns=["params", "tokens"]) for name in ("points", "held_out"))
    targets = []
    for row in rows:
        run_role = FITTED if is_run_of(points, row).any() else HELD_OUT if is_run_of(held_out, row).any() else NEW
        targets.append({name: row[name] for name in _TARGET_KEYS} | {"known": run_role})
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
    """Reads a sealed forecast. Raises TableError when the file lacks, is none, or has been edited."""
    if not path.exists():
        raise TableError(f"{path}: no such file; `scaling forecast FIT --seal FILE` writes it")
    remedy = "give a file that `scaling forecast FIT --seal FILE` wrote"
    content = files.read_json(path, SealedContent, remedy=remedy)
    recorded = content["sha256"]
    if recorded != (actual := sealed_hash(content)):
        raise TableError(
            f"{path}: was edited after it was sealed, or damaged: sha256 is {recorded}, its content has {actual}; take "
            "the file as it was sealed"
        )
    if misfit := find_misfit(content, SealedForecast):
        raise TableError(f"{path}: {misfit}; {remedy}")
    for number, target in enumerate(content["targets"]):
        for name in ("params", "tokens"):
            if not target[name] > 0:
                raise TableError(f"{path}: targets[{number}].{name} = {target[name]}: must be above zero; {remedy}")
    return content


def is_run_of(table: pd.DataFrame, target: Mapping[str, Any]) -> np.ndarray:
    """Whether each row is the run of a target, params and tokens both within TOLERANCE: [rows]."""
    is_match = np.ones(len(table), bool)
    for name in ("params", "tokens"):
        is_match &= (
            np.abs(pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) / target[name] - 1) <= TOLERANCE
        )
    return is_match


def score_sealed(sealed: Mapping[str, Any], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Compares a sealed forecast with measured runs: one row for each finished run of a target, or one without a run.

    Each row has params, tokens (counts), predicted, low, high, measured (nats per token), level, relative_error
    (predicted / measured - 1), inside (whether measured lies between low and high), run_id and note. measured,
    relative_error and inside are None for a target without a finished run.

    Args:
      sealed: the content of a sealed forecast.
      table: a results table with the column of params that the fit used.
    Raises:
      TableError: the table lacks a column, or a finished row has a value that is not finite and positive.
    """
    finished = results.done_points(table, sealed["params_column"])
    # a run without a finite loss counts as diverged
    has_loss = np.isfinite(pd.to_numeric(table["loss"], errors="coerce"))
    statuses = run_status.read_statuses(table).where(lambda status: (status != "done") | has_loss, "diverged")
    unfinished_rows = table.assign(status=statuses)[statuses != "done"]
    rows = []
    for target in sealed["targets"]:
        note = NOTES[target["known"]]
        runs = finished[is_run_of(finished, target)]
        if runs.empty:
            unfinished = unfinished_rows[
                is_run_of(unfinished_rows.assign(params=unfinished_rows[sealed["params_column"]]), target)
            ]
            rows.append(
                _score_row(target, None, "", f"its run {unfinished['status'].iloc[0]}" if len(unfinished) else "")
            )
        for run in runs.to_dict("records"):
            rows.append(_score_row(target, float(run["loss"]), run["run_id"], note))
    return rows


def _score_row(target: Mapping[str, Any], measured: float | None, run: str, note: str) -> dict[str, Any]:
    """A row of score_sealed; measured is None for a target without a finished run."""
    forecast = {name: target[name] for name in _TARGET_KEYS}
    if measured is None:
        return forecast | {"measured": None, "relative_error": None, "inside": None, "run_id": run, "note": note}
    error, inside = target["predicted"] / measured - 1, target["low"] <= measured <= target["high"]
    return forecast | {"measured": measured, "relative_error": error, "inside": inside, "run_id": run, "note": note}
