"""What the runner writes into a run folder and reads from it; the run writes the rest.

Not in the design's list of modules: run.py would pass 300 lines.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path

from scaling import branch, simulated
from scaling.config import RunConfig, load, to_dict
from scaling.exits import BAD_INPUT, BUSY, LOST, MEMORY, STOPPED
from scaling.out_of_memory import halved
from scaling.record import CHECKPOINTS, CONFIG, RESULT, counts, read_metrics, read_result, write_json, write_result
from scaling.strict import InputError
from sweeps import ledger
from sweeps.claim import claim
from sweeps.executors.local import last_line, traceback
from sweeps.plan import RUNS, Cell

OWN_FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)
"""Signals that a program brings upon itself."""


def prepare(folder: Path, cell: Cell, asked: int | None = None) -> RunConfig:
    """Puts the plan's config in a claimed run folder, and returns it; a torn or failed result is set aside.

    A branch whose trunk ended without keeping the state (it failed, or it was trained for another plan) trains alone;
    one that has begun goes on as it began. A run that ran out of memory gets a smaller microbatch each time.
    asked: devices of a run whose mesh leaves its data axis open.
    """
    if (folder / RESULT).exists():
        set_aside(folder)
    config = cell.config
    if (folder / CHECKPOINTS).is_dir() and any(path.name.isdigit() for path in (folder / CHECKPOINTS).iterdir()):
        config = dataclasses.replace(config, branch_of=load(folder / CONFIG).branch_of)
    elif config.branch_of and not branch.ready(folder, config) and not branch.diverged_before(folder, config):
        config = dataclasses.replace(config, branch_of="")
    config = shrunk(config, ledger.counts(folder)["memory"], cell.demand(asked)) or config
    write_json(folder / CONFIG, to_dict(config), durable=not simulated.asked(config))
    return config


def shrunk(config: RunConfig, times: int, devices: int = 1) -> RunConfig | None:
    """The config with its microbatch halved so many times; None when it cannot be. devices: those of the run."""
    smaller: RunConfig | None = config
    for _ in range(times):
        smaller = halved(smaller, devices) if smaller else None
    return smaller


def set_aside(folder: Path) -> None:
    """A result that is to be made again stays beside the new one."""
    (folder / RESULT).replace(folder / f"{RESULT}.old")


def reopen(folder: Path, cells: Sequence[Cell]) -> int:
    """Sets aside the failed results of a sweep folder, and starts their count of attempts anew; returns how many."""
    reopened = 0
    for cell in cells:
        run = folder / RUNS / cell.run_id
        if result_status(run) != "failed" or (held := claim(run)) is None:
            continue
        if result_status(run) == "failed":
            ledger.reopened(run)
            set_aside(run)
            reopened += 1
        held.release()
    return reopened


def result_status(folder: Path) -> str | None:
    """Status of a run folder's result; None when there is none, or a torn one."""
    try:
        return (read_result(folder) or {}).get("status")
    except (InputError, AttributeError):
        return None


def record_failure(folder: Path, cell: Cell, reason: str) -> None:
    """A failed run keeps its row, who it was and what it had spent, and its traceback."""
    config = load(folder / CONFIG) if (folder / CONFIG).exists() else cell.config
    tokens = max((line.get("tokens", 0) for line in read_metrics(folder)), default=0)
    row = counts(config, tokens=tokens, unique_tokens=min(tokens, cell.unique_tokens))
    row |= {"status": "failed"}
    write_result(folder, status="failed", row=row, measurements={}, reason=reason, traceback=traceback(folder))


def judge(code: int, folder: Path) -> tuple[ledger.Kind, str]:
    """What kind of end an attempt without a result came to, from its exit code, and why, in words."""
    if code < 0:
        return ("failed" if -code in OWN_FAULT else "preempted"), f"was killed by {signal.Signals(-code).name}"
    if code == STOPPED:
        return "preempted", "was stopped"
    if code == BUSY:
        return "stopped", last_line(folder)
    if code == LOST:
        return "lost", last_line(folder) or "lost another process of its own"
    if code == MEMORY:
        return "memory", f"ran out of memory: {last_line(folder)}"
    return "failed", (last_line(folder) or f"exit code {code}") if code else "ended without a result"


def exhausted(folder: Path, cell: Cell, kind: ledger.Kind, budgets: ledger.Budgets, asked: int | None) -> str:
    """Why a run that ended so gets no further attempt, in words; empty where it does. asked: as in `prepare`."""
    past = ledger.counts(folder)
    if kind == "memory":
        return "" if shrunk(cell.config, past["memory"], cell.demand(asked)) else "no microbatch is smaller"
    return budgets.spent(past)


def final(code: int) -> bool:
    """Whether the same attempt would end the same way."""
    return code == BAD_INPUT
