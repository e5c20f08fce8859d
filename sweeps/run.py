"""Makes a plan's runs: claim, skip what is done, execute, record failures, go on.

Any number of runners may work on one sweep folder, on one machine or several that share it; any of them, and any run,
may be killed at any time. The same command again goes on from there.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live

from scaling.config import to_dict
from scaling.record import CONFIG, RESULT, counts, read_metrics, read_result, write_json, write_result
from scaling.strict import InputError
from sweeps.claim import HEARTBEAT_SECONDS, Claim, claim
from sweeps.executors.local import Slot, kill, last_line, slots, start
from sweeps.plan import PLAN, RUNS, Cell, Plan, duration, find, load
from sweeps.status import line, progress, snapshot, table, totals

STOPPED = 75
ATTEMPTS = 3
POLL_SECONDS, ELSEWHERE_SECONDS, REFRESH_SECONDS, GRACE_SECONDS = 0.05, 1.0, 1.0, 120.0

Command = Callable[[Path], list[str]]


def train_command(folder: Path) -> list[str]:
    """The command that trains the run in `folder`, from its checkpoint if there is one."""
    return [sys.executable, "-m", "scaling.cli", "train", "--quiet", "--folder", str(folder)]


def run(
    name: str, out: Path = Path("out"), jobs: int | None = None, json: Path | None = None, retry_failed: bool = True
) -> int:
    """Makes the runs of the frozen plan <out>/<name>. Returns 0, 1 when a run failed, 75 when stopped by a signal.

    jobs: runs at once; one per GPU, or else one per core, when not given. retry_failed: runs that failed before
    are tried again. Raises InputError when there is no plan.
    """
    folder = out / name
    if not (folder / PLAN).exists():
        find(name)
    began = time.monotonic()
    code = execute(folder, jobs=jobs, retry_failed=retry_failed)
    now = snapshot(folder, load(folder))
    print(f"{name}: {totals(now)}, in {duration(time.monotonic() - began)}")
    if json is not None:
        write_json(json, {"sweep": name, "exit_code": code, "cells": [asdict(one) for one in now]})
    return code


def execute(
    folder: Path, *, jobs: int | None = None, retry_failed: bool = True, command: Command = train_command
) -> int:
    """`run` for a sweep folder and any command that keeps the trainer's contract: exit codes, result.json."""
    plan, console, room = load(folder), Console(), slots(jobs)
    runner = Runner(folder, plan, command, list(room), console, retry_failed)
    try:
        with runner.listening():
            if not console.is_terminal:
                return runner()
            with Live(console=console, auto_refresh=False, transient=True) as runner.live:
                return runner()
    except OSError as error:
        raise InputError(f"{folder}: {error}; mend it, and the same command goes on") from None


@dataclass(frozen=True)
class Attempt:
    """A run being made by this process: under this claim, in this slot."""

    cell: Cell
    claim: Claim
    process: subprocess.Popen[bytes]
    slot: Slot


@dataclass
class Runner:
    """The state of one runner. free: slots without a run; tries: attempts by run_id; stops: signals received."""

    folder: Path
    plan: Plan
    command: Command
    free: list[Slot]
    console: Console
    retry_failed: bool = False
    live: Live | None = None
    pending: list[Cell] = field(default_factory=list)
    running: list[Attempt] = field(default_factory=list)
    retrying: set[str] = field(default_factory=set)
    tries: Counter[str] = field(default_factory=Counter)
    not_before: dict[str, float] = field(default_factory=dict)
    stops: int = 0
    asked: set[str] = field(default_factory=set)
    patience: float = 0.0

    def __call__(self) -> int:
        """Makes every cell that has not ended, longest first. Returns the exit code."""
        if self.retry_failed:
            self.retrying = {one.run_id for one in snapshot(self.folder, self.plan) if one.state == "failed"}
        cells = sorted(self.plan.cells, key=lambda cell: -cell.seconds)
        self.pending = [cell for cell in cells if not self.ended(cell)]
        self.say(f"{len(cells)} runs, {len(cells) - len(self.pending)} ended before, {len(self.free)} at once")
        beaten = drawn = time.monotonic()
        try:
            while self.running or (self.pending and not self.stops):
                self.reap()
                if self.stops:
                    self.stop()
                else:
                    self.fill()
                if time.monotonic() - beaten > HEARTBEAT_SECONDS:
                    self.beat()
                    beaten = time.monotonic()
                if self.live and time.monotonic() - drawn > REFRESH_SECONDS:
                    now = [progress(self.path(attempt.cell), attempt.cell) for attempt in self.running]
                    self.live.update(table(self.plan, now), refresh=True)
                    drawn = time.monotonic()
                time.sleep(POLL_SECONDS)
        finally:
            self.abandon()
        if self.pending:
            self.say(f"stopped, {len(self.pending)} runs to go; the same command goes on")
            return STOPPED
        return int(any(one.state == "failed" for one in snapshot(self.folder, self.plan)))

    def path(self, cell: Cell) -> Path:
        return self.folder / RUNS / cell.run_id

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def ended(self, cell: Cell) -> bool:
        """Whether there is nothing left to do; a torn result has not ended, nor a failed one that is to be retried."""
        found = result_status(self.path(cell))
        return found is not None and not (found == "failed" and cell.run_id in self.retrying)

    def fill(self) -> None:
        """Starts pending cells while there is room."""
        for cell in tuple(self.pending):
            if not self.free:
                return
            if time.monotonic() >= self.not_before.get(cell.run_id, 0.0):
                self.take(cell)

    def take(self, cell: Cell) -> None:
        """Starts one cell, unless another runner has it or had it."""
        folder = self.path(cell)
        held = claim(folder)
        if held is None:
            if cell.run_id not in self.not_before:
                self.say(f"another process holds {cell.run_id} {cell.name}; waiting for it")
            self.not_before[cell.run_id] = time.monotonic() + ELSEWHERE_SECONDS
            return
        self.pending.remove(cell)
        if self.ended(cell):
            held.release()
            self.report(cell)
            return
        try:
            prepare(folder, cell)
            inherited = [] if held.descriptor is None else [held.descriptor]
            process = start(self.command(folder), folder, self.free[0], inherited)
        except OSError:
            held.release()
            raise
        self.retrying.discard(cell.run_id)
        self.tries[cell.run_id] += 1
        self.running.append(Attempt(cell, held, process, self.free.pop(0)))

    def reap(self) -> None:
        """Settles the runs whose process has ended."""
        for attempt in tuple(self.running):
            code = attempt.process.poll()
            if code is not None:
                self.settle(attempt, code)
                self.drop(attempt)

    def settle(self, attempt: Attempt, code: int) -> None:
        """Takes the result, tries again after a signal, or records a failure."""
        cell, folder = attempt.cell, self.path(attempt.cell)
        interrupted = code < 0 or code == STOPPED
        if result_status(folder) is not None:
            self.report(cell)
        elif self.stops and interrupted:
            self.pending.append(cell)
        elif interrupted and self.tries[cell.run_id] < ATTEMPTS:
            self.say(f"{cell.run_id} {cell.name} {ending(code)}; going on from its checkpoint")
            self.pending.insert(0, cell)
        else:
            reason = f"{ending(code)} {self.tries[cell.run_id]} times" if interrupted else last_line(folder)
            record_failure(folder, cell, reason if code else "ended without a result")
            self.report(cell)

    def report(self, cell: Cell) -> None:
        left = len(self.pending) + sum(attempt.cell is not cell for attempt in self.running)
        total = len(self.plan.cells)
        self.say(f"[{total - left}/{total}] {line(progress(self.path(cell), cell))}")

    def beat(self) -> None:
        """Renews the claims; a run whose claim was taken over is killed, for it has another owner."""
        for attempt in tuple(self.running):
            if not attempt.claim.beat():
                kill(attempt.process)
                attempt.process.wait()
                self.say(f"{attempt.cell.run_id} {attempt.cell.name} was taken over by another runner")
                self.pending.append(attempt.cell)
                self.drop(attempt)

    def stop(self) -> None:
        """Asks the runs to save and end, once; kills them at the second signal, or when patience ends."""
        self.patience = self.patience or time.monotonic() + GRACE_SECONDS
        for attempt in self.running:
            if self.stops > 1 or time.monotonic() > self.patience:
                kill(attempt.process)
            elif attempt.cell.run_id not in self.asked:
                self.asked.add(attempt.cell.run_id)
                attempt.process.terminate()

    def drop(self, attempt: Attempt) -> None:
        attempt.claim.release()
        self.running.remove(attempt)
        self.free.append(attempt.slot)

    def abandon(self) -> None:
        """Leaves no run behind, whatever happened."""
        while self.running:
            self.stop()
            for attempt in tuple(self.running):
                if attempt.process.poll() is not None:
                    self.drop(attempt)
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hears SIGTERM, ctrl-C and hang-up: the first time runs are asked to save and end, the second time killed."""

        def hear(number: int, frame: object) -> None:
            self.stops += 1

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in wanted}
        for number in wanted:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def prepare(folder: Path, cell: Cell) -> None:
    """Puts the plan's config in a claimed run folder; a torn or failed result is set aside."""
    if (folder / RESULT).exists():
        (folder / RESULT).replace(folder / f"{RESULT}.old")
    write_json(folder / CONFIG, to_dict(cell.config))


def result_status(folder: Path) -> str | None:
    """Status of a run folder's result; None when there is none, or a torn one."""
    try:
        return (read_result(folder) or {}).get("status")
    except (InputError, AttributeError):
        return None


def record_failure(folder: Path, cell: Cell, reason: str) -> None:
    """A failed run keeps its row: who it was, and what it had spent."""
    tokens = max((line.get("tokens", 0) for line in read_metrics(folder)), default=0)
    row = counts(cell.config, tokens=tokens, unique_tokens=min(tokens, cell.unique_tokens))
    write_result(folder, status="failed", row=row | {"status": "failed"}, measurements={}, reason=reason)


def ending(code: int) -> str:
    """How a process ended, from its return code."""
    if code == STOPPED:
        return "was stopped"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
