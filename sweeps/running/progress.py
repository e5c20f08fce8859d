"""How far each cell of a sweep is, read from its folder alone: it writes nothing there and needs no run to be alive.

Not in the design's list of modules: status.py, which shows this, would pass 300 lines.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scaling.errors import InputError
from scaling.record.run_folder import METRICS, RESULT, read_result
from sweeps.planning.plan import RUNS, Cell, Plan, makespan
from sweeps.running import attempt_log
from sweeps.running.claims import HEARTBEAT_SECONDS, LEASE, heartbeat_age, read_lease

CellState = Literal["done", "diverged", "failed", "running", "waiting", "torn"]
ENDED_STATES = ("done", "diverged", "failed")
HEARTBEAT_TIMEOUT_SECONDS = 4 * HEARTBEAT_SECONDS
TAIL_BYTES = 16_384
"""Bytes at the end of metrics.jsonl in which its last line of a step is looked for."""


@dataclass(frozen=True)
class CellProgress:
    """One cell now. loss: nats per token, of the result or else of the last step; eta_seconds: of a running cell.

    flags: of a cell that ended (analysis/tables/flags.py), with their reasons in `reason` where that holds nothing
    else.
    attempts: begun since the user last asked for a failed run again; troubles: how those of them ended that came to no
    result, by kind (sweeps/running/attempt_log.py). where: the machine, or the cluster's worker, that a running cell
    is on.
    ended_at: Unix seconds.
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
    """A cell that has a result. stamp: mtime (ns) and bytes of the file. row: of the results table."""

    stamp: tuple[int, int]
    progress: CellProgress
    row: Mapping[str, Any]


def read_sweep_progress(
    folder: Path, plan: Plan, known: dict[str, FinishedCell] | None = None, ahead: float = 0.0
) -> tuple[CellProgress, ...]:
    """Every cell of a plan, in its order.

    known: run_id -> what earlier calls read of cells that ended, which is not read again while their results stay as
      they are. Kept up to date.
    ahead: seconds by which the clock that stamps the folder's files is ahead of this machine's.
    """
    known = {} if known is None else known
    found = tuple(read_cell_progress(folder / RUNS / cell.run_id, cell, known, ahead) for cell in plan.cells)
    for one in found:
        if one.state not in ENDED_STATES:
            known.pop(one.run_id, None)
    return found


def read_cell_progress(
    run: Path, cell: Cell, known: dict[str, FinishedCell] | None = None, ahead: float = 0.0
) -> CellProgress:
    """One cell, from its run folder. known, ahead: see `snapshot`."""
    known = {} if known is None else known
    try:
        stat = (run / RESULT).stat()
        stamp = stat.st_mtime_ns, stat.st_size
        if (ended := known.get(run.name)) is not None and ended.stamp == stamp:
            return ended.progress
        result = read_result(run)
        if result is None:
            return _unfinished(run, cell, ahead)
        known[run.name] = FinishedCell(stamp, _finished(run, cell, result, stat.st_mtime), result["row"])
        return known[run.name].progress
    except FileNotFoundError:
        return _unfinished(run, cell, ahead)
    except InputError as error:
        return CellProgress(run.name, cell.name, "torn", budget=_budget(cell), reason=str(error))


def _finished(run: Path, cell: Cell, result: Mapping[str, Any], at: float) -> CellProgress:
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


def _unfinished(run: Path, cell: Cell, ahead: float) -> CellProgress:
    """Whether it runs is judged by this machine's clock and what is known of the folder's, so that nothing is
    written."""
    last, budget = _last_step(run), _budget(cell)
    tokens, speed = last.get("tokens", 0), _finite(last.get("tokens_per_second"))
    running = heartbeat_age(run, time.time() + ahead) < HEARTBEAT_TIMEOUT_SECONDS
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
    return cell.config.steps * cell.config.data.batch_tokens


def _last_step(run: Path) -> dict[str, Any]:
    """The last whole line of a step that a run logged, from the end of its metrics.jsonl alone."""
    try:
        with (run / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read()
    except FileNotFoundError:
        return {}
    for one in reversed(text.splitlines()):
        try:
            line = json.loads(one)
        except ValueError:
            continue
        if isinstance(line, dict) and "tokens" in line:
            return line
    return {}


def _attempts(run: Path) -> tuple[int, dict[str, int]]:
    """Progress.attempts and Progress.troubles, from the run's ledger."""
    lines = attempt_log.read_since_reopening(run)
    kinds = Counter(line["kind"] for line in lines if line["event"] == "ended")
    troubles = {kind: n for kind, n in kinds.items() if kind not in ("done", "diverged")}
    return sum(line["event"] == attempt_log.BEGAN for line in lines), troubles


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def estimate_seconds_left(plan: Plan, now: Sequence[CellProgress]) -> float | None:
    """Wall seconds until every cell has ended, with as many at once as run now; None where nothing tells.

    now: all cells, in the plan's order. What the plan says of cells that wait is held against what the running ones
      really need.
    """
    if len(now) != len(plan.cells):
        return None
    cells = list(zip(now, (cell.estimated_seconds for cell in plan.cells), strict=True))
    planned = {one.run_id: seconds * (1 - one.tokens / max(one.budget, 1)) for one, seconds in cells}
    timed = {one.run_id: one.eta_seconds for one in now if one.eta_seconds is not None}
    if not timed:
        return None
    estimated = sum(planned[run_id] for run_id in timed)
    pace = sum(timed.values()) / estimated if estimated else 1.0
    ahead = [one.run_id for one in now if one.state not in ENDED_STATES]
    room = sum(one.state == "running" for one in now)
    return makespan((timed.get(run_id, pace * planned[run_id]) for run_id in ahead), room)
