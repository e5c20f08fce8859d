"""Reads how far each cell of a sweep is from its run folder, without writing there and without asking any process.

Used by `scaling sweep status`, the runner's live table and the fleet.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scaling.errors import InputError
from scaling.files import parse_json
from scaling.record.run_folder import LEASE, METRICS, RESULT, RUNS, MetricsLine, Result, read_result
from scaling.type_checks import find_misfit
from sweeps.planning.plan import Cell, Plan, makespan
from sweeps.running import attempt_log
from sweeps.running.claims import HEARTBEAT_SECONDS, heartbeat_age, read_lease

CellState = Literal["done", "diverged", "failed", "running", "waiting", "torn"]
ENDED_STATES = ("done", "diverged", "failed")
HEARTBEAT_TIMEOUT_SECONDS = 4 * HEARTBEAT_SECONDS
TAIL_BYTES = 16_384
"""Bytes at the end of metrics.jsonl in which the last logged step is searched."""


@dataclass(frozen=True)
class CellProgress:
    """The progress of one cell. `--json` of `scaling sweep run` and `status` writes these fields.

    Args:
      run_id: the run's id, which is the name of its folder.
      name: the cell's name.
      state: done, diverged and failed have a result; torn: result.json is not whole; running: its owner gave a sign of
        life lately; waiting: any other.
      tokens: tokens trained on so far.
      budget: tokens that it trains on in all.
      loss: nats per token, of the result, else of the last logged step.
      tokens_per_second: speed, as logged.
      eta_seconds: estimated seconds until it ends; only while it runs.
      reason: why it failed or diverged, or why it is flagged.
      flags: names of the flags of a cell that ended (analysis/tables/flags.py), separated by commas.
      attempts: attempts begun since the user last asked for the failed run again.
      troubles: attempts without a result by how they ended, {kind: count} (sweeps/running/attempt_log.py).
      where: machine or cluster worker that a running cell is on.
      ended_at: when its result was written, in Unix seconds.
    """

    run_id: str
    name: str
    state: CellState
    tokens: int = 0
    budget: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    reason: str = ""
    flags: str = ""
    attempts: int = 0
    troubles: dict[str, int] = field(default_factory=dict)
    where: str = ""
    ended_at: float | None = None


@dataclass(frozen=True)
class FinishedCell:
    """A cell that has a result. stamp: mtime in ns and size of result.json. row: its row of the results table."""

    stamp: tuple[int, int]
    progress: CellProgress
    row: Mapping[str, Any]


def read_sweep_progress(
    folder: Path, plan: Plan, known: dict[str, FinishedCell] | None = None, clock_skew: float = 0.0
) -> tuple[CellProgress, ...]:
    """The progress of every cell of a plan, in the order of the plan.

    Args:
      folder: the sweep's folder.
      plan: its plan.
      known: run_id -> ended cell, a cache between calls, updated here: a result is read again only when its file has
        changed.
      clock_skew: seconds by which the clock that stamps the folder's files is ahead of this machine's clock.
    """
    known = {} if known is None else known
    cells = tuple(read_cell_progress(folder / RUNS / cell.run_id, cell, known, clock_skew) for cell in plan.cells)
    for cell in cells:
        if cell.state not in ENDED_STATES:
            known.pop(cell.run_id, None)
    return cells


def read_cell_progress(
    run: Path, cell: Cell, known: dict[str, FinishedCell] | None = None, clock_skew: float = 0.0
) -> CellProgress:
    """The progress of one cell, from its run folder. known, clock_skew: see `read_sweep_progress`."""
    known = {} if known is None else known
    try:
        stat = (run / RESULT).stat()
        stamp = stat.st_mtime_ns, stat.st_size
        if (ended := known.get(run.name)) is not None and ended.stamp == stamp:
            return ended.progress
        result = read_result(run)
        if result is None:
            return _unfinished(run, cell, clock_skew)
        known[run.name] = FinishedCell(stamp, _finished(run, cell, result, stat.st_mtime), result["row"])
        return known[run.name].progress
    except FileNotFoundError:
        return _unfinished(run, cell, clock_skew)
    except InputError as error:
        return CellProgress(run.name, cell.name, "torn", budget=_budget(cell), reason=str(error))


def _finished(run: Path, cell: Cell, result: Result, at: float) -> CellProgress:
    row = result["row"]
    attempts, troubles = _attempts(run)
    return CellProgress(
        run.name,
        cell.name,
        result["status"],
        tokens=row.get("tokens") or 0,
        budget=_budget(cell),
        loss=row.get("loss"),
        tokens_per_second=row.get("tokens_per_second"),
        reason=result["reason"],
        attempts=attempts,
        troubles=troubles,
        ended_at=at,
    )


def _unfinished(run: Path, cell: Cell, clock_skew: float) -> CellProgress:
    """A cell without a result: it runs if its owner has a recent heartbeat, within HEARTBEAT_TIMEOUT_SECONDS.

    The time comes from this machine's clock and `clock_skew`, so that nothing is written into the folder.
    """
    last, budget = _last_step(run), _budget(cell)
    tokens, speed = last.get("tokens", 0), _finite(last.get("tokens_per_second"))
    running = heartbeat_age(run, time.time() + clock_skew) < HEARTBEAT_TIMEOUT_SECONDS
    lease = read_lease(run / LEASE) if running else {}
    attempts, troubles = _attempts(run)
    return CellProgress(
        run.name,
        cell.name,
        "running" if running else "waiting",
        tokens=tokens,
        budget=budget,
        loss=_finite(last.get("loss")),
        tokens_per_second=speed if running else None,
        eta_seconds=(budget - tokens) / speed if running and speed else None,
        attempts=attempts,
        troubles=troubles,
        where=str(lease.get("worker") or lease.get("host") or ""),
    )


def _budget(cell: Cell) -> int:
    """Tokens that a cell trains on, shared trunk included."""
    return cell.config.steps * cell.config.data.batch_tokens


def _last_step(run: Path) -> dict[str, Any]:
    """The last whole line at the end of metrics.jsonl that logs a step; empty when there is none."""
    try:
        with (run / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        return {}
    for line_text in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            line = parse_json(line_text)
            if not find_misfit(line, MetricsLine) and "tokens" in line:
                return line
    return {}


def _attempts(run: Path) -> tuple[int, dict[str, int]]:
    """CellProgress.attempts and CellProgress.troubles, from the run's attempts.jsonl."""
    lines = attempt_log.read_since_reopening(run)
    kinds = Counter(line["kind"] for line in lines if line["event"] == "ended")
    troubles = {kind: n for kind, n in kinds.items() if kind not in ("done", "diverged")}
    return sum(line["event"] == attempt_log.BEGAN for line in lines), troubles


def _finite(value: float | None) -> float | None:
    """None in place of an infinity or NaN, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def estimate_seconds_left(plan: Plan, now: Sequence[CellProgress]) -> float | None:
    """Estimated wall seconds until every cell has ended, if as many run at once as now; None when no cell runs.

    now: all cells, in the order of the plan.
    """
    if len(now) != len(plan.cells):
        return None
    estimated_seconds = [cell.estimated_seconds for cell in plan.cells]
    # What the plan estimated for the tokens that are left of each cell.
    planned = {
        cell.run_id: seconds * (1 - cell.tokens / max(cell.budget, 1))
        for cell, seconds in zip(now, estimated_seconds, strict=True)
    }
    # What the running cells will take by their measured speed.
    measured = {cell.run_id: cell.eta_seconds for cell in now if cell.eta_seconds is not None}
    if not measured:
        return None
    # The plan's estimates of the waiting cells are scaled by how wrong they are about the running ones.
    planned_of_running = sum(planned[run_id] for run_id in measured)
    slowdown = sum(measured.values()) / planned_of_running if planned_of_running else 1.0
    left = [cell.run_id for cell in now if cell.state not in ENDED_STATES]
    at_once = sum(cell.state == "running" for cell in now)
    return makespan((measured.get(run_id, slowdown * planned[run_id]) for run_id in left), at_once)
