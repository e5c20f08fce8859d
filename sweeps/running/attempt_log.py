"""attempts.jsonl of a run folder: one line when an attempt at the run begins, and one when it ends.

The budgets of failures and preemptions are counted from these lines, so they hold across runners and machines. Only
the holder of the run's claim writes the file. A line is {"at": Unix seconds, "event": "began" | "ended" | "reopened",
...}; an "ended" line has a "kind" (`AttemptOutcome`) and a "reason".
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from scaling.files import append_json_line, read_json_lines, warn_once
from scaling.record.run_folder import ATTEMPTS

BEGAN, REOPENED = "began", "reopened"
AttemptOutcome = Literal["done", "diverged", "failed", "preempted", "memory", "lost", "stopped"]
"""How an attempt ended.

    done, diverged  it wrote a result
    failed          the program ended with an error of its own, or made no progress and was killed
    preempted       a signal from outside ended it, or it was asked to save and end
    memory          it ran out of memory
    lost            its runner died, and nobody saw it end
    stopped         its runner was stopped, its population ended, or a process that a dead runner left still trains in
                    the folder; counts towards no budget
"""


class AttemptLine(TypedDict):
    """A line of attempts.jsonl.

    kind, reason: of an attempt that ended, which has both. sequences: per device, of one that ran out of memory.
    """

    event: Literal["began", "ended", "reopened"]
    kind: NotRequired[AttemptOutcome]
    reason: NotRequired[str]
    sequences: NotRequired[int]


@dataclass(frozen=True)
class RetryBudgets:
    """How many attempts at a run may end badly before it is recorded as failed.

    failures: attempts that failed by an error of the run itself. preemptions: attempts that ended from outside.
    progress_timeout: seconds without progress after which an attempt is killed and counts as failed
    (sweeps/running/progress_watch.py).
    """

    failures: int = 2
    preemptions: int = 100
    progress_timeout: float = 1800.0

    def exhausted_reason(self, outcomes: Counter[str]) -> str:
        """Why there is no further attempt, in words; empty while there may be one. outcomes: as of `count_outcomes`."""
        if outcomes["failed"] >= self.failures:
            return f"failed {format_times(outcomes['failed'])}"
        if outcomes["preempted"] + outcomes["lost"] >= self.preemptions:
            return f"ended from outside {format_times(outcomes['preempted'] + outcomes['lost'])}"
        return ""


def format_times(count: int) -> str:
    """`once`, `2 times`, and so on."""
    return "once" if count == 1 else f"{count} times"


DEFAULT_BUDGETS = RetryBudgets()


def record_begin(folder: Path, **about: Any) -> None:
    """Writes that an attempt begins, with the details `about` it. An earlier one without an end is marked as lost."""
    if has_unfinished_attempt(folder):
        record_end(folder, "lost", "its runner went away")
    _append(folder, {"event": BEGAN, "host": platform.node(), "pid": os.getpid()} | about)


def record_end(folder: Path, kind: AttemptOutcome, reason: str = "", **about: Any) -> None:
    """Writes how the attempt that began last has ended, with the details `about` it."""
    _append(folder, {"event": "ended", "kind": kind, "reason": reason} | about)


def record_reopening(folder: Path) -> None:
    """Writes that the user asked for a failed run again: earlier attempts no longer count towards its budgets."""
    _append(folder, {"event": REOPENED})


def has_unfinished_attempt(folder: Path) -> bool:
    """Whether the last attempt has a beginning and no end."""
    lines = read_attempts(folder)
    return bool(lines) and lines[-1]["event"] == BEGAN


def count_outcomes(folder: Path) -> Counter[str]:
    """The number of attempts since the last reopening by how they ended: {kind: count}."""
    return Counter(line["kind"] for line in read_since_reopening(folder) if line["event"] == "ended")


def fewest_excessive_sequences(folder: Path) -> int | None:
    """The fewest sequences per device that ran out of memory since the last reopening; None when nothing did."""
    excessive = [line.get("sequences", 0) for line in read_since_reopening(folder) if line.get("kind") == "memory"]
    return min(excessive, default=None)


def read_since_reopening(folder: Path) -> list[dict[str, Any]]:
    """The lines since the user last asked for a failed run again; all lines when that never happened."""
    lines = read_attempts(folder)
    return lines[max((i for i, line in enumerate(lines) if line["event"] == REOPENED), default=-1) + 1 :]


def last_reason(folder: Path) -> str:
    """The reason on the last "ended" line; empty when there is none."""
    return next((line["reason"] for line in reversed(read_attempts(folder)) if line["event"] == "ended"), "")


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's attempts.jsonl; none where there is no file. Torn lines are left out, and damaged ones with
    a warning; they count towards no budget."""
    path, lines = folder / ATTEMPTS, []
    for number, line in read_json_lines(path, AttemptLine):
        if line["event"] == "ended" and not line.keys() >= {"kind", "reason"}:
            warn_once(f"{path}: line {number} is left out: an end needs a kind and a reason")
        else:
            lines.append(line)
    return lines


def _append(folder: Path, line: dict[str, Any]) -> None:
    """Appends an event with its time, in Unix seconds."""
    append_json_line(folder / ATTEMPTS, {"at": round(time.time(), 3)} | line)
