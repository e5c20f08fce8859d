"""What a run has been through: `attempts.jsonl` in its folder, one line as an attempt begins and one as it ends.

The budgets of failures and of preemptions are counted from it, so that they hold whichever runner, on whichever
machine, makes the next attempt. Only who holds the run's claim writes it.

Not in the design's list of modules: run.py would pass 300 lines.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from scaling.files import append_json_line, read_json_lines

ATTEMPTS = "attempts.jsonl"
BEGAN, REOPENED = "began", "reopened"
AttemptOutcome = Literal["done", "diverged", "failed", "preempted", "memory", "lost", "stopped"]
"""done, diverged: it left a result. failed: the program ended by itself, badly. preempted: a signal ended it, or it was
asked to save and end. memory: it ran out of memory. lost: nobody saw it end, its runner is gone. stopped: the user, or
the scheduler, stopped the runner, or what a dead runner left there still trains; counts nowhere."""
ATTEMPT_OUTCOMES: tuple[AttemptOutcome, ...] = get_args(AttemptOutcome)


@dataclass(frozen=True)
class RetryBudgets:
    """Attempts at a run that may end badly before it is recorded as failed, by whose fault that is: the run's own, or
    its surroundings'."""

    failures: int = 2
    preemptions: int = 100

    def exhausted_reason(self, past: Counter[str]) -> str:
        """Why there is no further attempt, in words; empty while there may be one. past: `counts` of a folder."""
        if past["failed"] >= self.failures:
            return f"failed {format_times(past['failed'])}"
        if past["preempted"] + past["lost"] >= self.preemptions:
            return f"ended from outside {format_times(past['preempted'] + past['lost'])}"
        return ""


def format_times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


DEFAULT_BUDGETS = RetryBudgets()


def record_begin(folder: Path, **about: Any) -> None:
    """Notes an attempt. One before it whose end nobody noted was lost with its runner."""
    if has_unfinished_attempt(folder):
        record_end(folder, "lost", "its runner went away")
    _append(folder, {"event": BEGAN, "host": platform.node(), "pid": os.getpid()} | about)


def record_end(folder: Path, kind: AttemptOutcome, reason: str = "", **about: Any) -> None:
    """Notes how the attempt ended."""
    _append(folder, {"event": "ended", "kind": kind, "reason": reason} | about)


def record_reopening(folder: Path) -> None:
    """Notes that the user asked for the run again: what it was through before counts no more."""
    _append(folder, {"event": REOPENED})


def has_unfinished_attempt(folder: Path) -> bool:
    """Whether the last attempt began and nobody noted its end."""
    lines = read_attempts(folder)
    return bool(lines) and lines[-1]["event"] == BEGAN


def count_outcomes(folder: Path) -> Counter[str]:
    """How the attempts since the last reopening ended, by kind."""
    return Counter(line["kind"] for line in read_since_reopening(folder) if line["event"] == "ended")


def fewest_excessive_sequences(folder: Path) -> int | None:
    """The fewest sequences on a device that have been too many for it since the last reopening; None for none."""
    found = [line.get("sequences", 0) for line in read_since_reopening(folder) if line.get("kind") == "memory"]
    return min(found, default=None)


def read_since_reopening(folder: Path) -> list[dict[str, Any]]:
    """The lines since the user last asked for a failed run again, or all."""
    lines = read_attempts(folder)
    return lines[max((i for i, line in enumerate(lines) if line["event"] == REOPENED), default=-1) + 1 :]


def last_reason(folder: Path) -> str:
    """Why the last attempt that ended did."""
    return next((line["reason"] for line in reversed(read_attempts(folder)) if line["event"] == "ended"), "")


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ledger, torn ones left out."""
    return [line for _, line in read_json_lines(folder / ATTEMPTS) if _is_event(line)]


def _is_event(line: Any) -> bool:
    """Whether a line is an event of this version; an end must say how the attempt ended."""
    known = isinstance(line, dict) and line.get("event") in (BEGAN, REOPENED, "ended")
    return known and (line["event"] != "ended" or line.get("kind") in ATTEMPT_OUTCOMES)


def _append(folder: Path, line: dict[str, Any]) -> None:
    """Appends an event with its time, in Unix seconds."""
    append_json_line(folder / ATTEMPTS, {"at": round(time.time(), 3)} | line)
