"""One runner: it starts what may start, in the room there is, and settles what has ended.

Not in the design's list of modules: run.py would pass 300 lines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live

from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.exit_codes import DISK_FULL, STOPPED
from scaling.signals import handle_signals
from scaling.training import branching, simulated_run
from scaling.training.population_limits import program_key
from sweeps.local.launch import Launcher, Slot
from sweeps.local.processes import join_slots, last_output_line, start_process
from sweeps.planning.plan import RUNS, Cell, Plan
from sweeps.running import attempt_log
from sweeps.running.attempt_log import DEFAULT_BUDGETS, AttemptOutcome, RetryBudgets
from sweeps.running.board import progress_board, progress_line
from sweeps.running.claims import Claim, claim_run
from sweeps.running.outcomes import (
    classify_exit,
    exhausted_budget,
    is_final,
    last_sequences_per_device,
    prepare_run,
    record_failure,
    result_status,
)
from sweeps.running.population_packing import choose_members
from sweeps.running.progress import read_cell_progress
from sweeps.running.queue import WaitingCells
from sweeps.running.running_attempts import Attempt, RunningAttempts

POLL_SECONDS, HELD_ELSEWHERE_SECONDS, REFRESH_SECONDS = 0.05, 1.0, 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
RETRY_SECONDS: dict[AttemptOutcome, float] = {"failed": 1.0, "stopped": 10.0}
NEXT_STEP: dict[AttemptOutcome, str] = {
    "memory": "halving its microbatch",
    "failed": "trying it again",
    "stopped": "waiting for that to end",
}

Command = Callable[..., list[str]]
"""What trains the runs in some folders, one process for all: argv from their paths."""


@dataclass
class Runner:
    """The state of one runner.

    cells: those that it is to make, of the plan's. slots: where they run. asked: devices of a run whose mesh leaves
    its data axis open. jobs: processes at once, at most. crew: slots that share the work, here and elsewhere. lingers:
    whether it waits for runs that others hold, to take them over should those die. stops: signals received. alone: runs
    whose population ended without their result, which are tried again by themselves. narrow: members at most of a shape
    that ran out of memory. elsewhere: runs that others hold. mine: run_ids of `cells`.
    """

    folder: Path
    plan: Plan
    cells: Sequence[Cell]
    command: Command
    slots: Sequence[Slot]
    console: Console
    launcher: Launcher = start_process
    budgets: RetryBudgets = DEFAULT_BUDGETS
    members: int | None = 1
    devices_per_run: int | None = None
    jobs: int | None = None
    total_slots: int = 1
    wait_for_others: bool = True
    live: Live | None = None
    pending: WaitingCells = field(init=False)
    own_ids: frozenset[str] = field(init=False)
    attempts: RunningAttempts = field(init=False)
    solo: set[str] = field(default_factory=set)
    member_limit: dict[Hashable, int] = field(default_factory=dict)
    ids_elsewhere: set[str] = field(default_factory=set)
    stops: int = 0

    def __post_init__(self) -> None:
        self.pending = WaitingCells(self.is_ready, self.group_key)
        self.attempts = RunningAttempts(list(self.slots), self.jobs)
        self.own_ids = frozenset(cell.run_id for cell in self.cells)

    def __call__(self) -> int:
        """Makes every cell that has not ended: by priority, then longest first. Returns the exit code."""
        cells = sorted(
            self.cells, key=lambda cell: (-cell.config.priority, bool(cell.config.branch_of), -cell.estimated_seconds)
        )
        left = [cell for cell in cells if not self.has_ended(cell)]
        self.solo = {
            cell.run_id for cell in left if attempt_log.fewest_excessive_sequences(self.run_folder(cell)) is not None
        }
        self.pending.add(left)
        self.print_line(f"{len(cells)} runs, {len(cells) - len(self.pending)} ended before, {len(self.slots)} at once")
        with self.attempts.renewer:
            self.run_until_done()
        if self.pending and self.stops:
            self.print_line(f"stopped, {len(self.pending)} runs to go; the same command goes on")
            return STOPPED
        return int(any(result_status(self.run_folder(cell)) == "failed" for cell in self.cells))

    def run_until_done(self) -> None:
        """Until every cell has ended, or others hold those that have not, or a signal comes."""
        drawn = time.monotonic()
        try:
            while self.attempts or (self.pending and not self.stops):
                self.collect_finished()
                if self.stops:
                    self.attempts.stop(now=self.stops > 1)
                else:
                    self.start_ready()
                    if not self.attempts and not self.wait_for_others and all(map(self.held_elsewhere, self.pending)):
                        break
                self.drop_stolen()
                if self.live and time.monotonic() - drawn > REFRESH_SECONDS:
                    now = [
                        read_cell_progress(self.run_folder(cell), cell)
                        for attempt in self.attempts
                        for cell in attempt.cells
                    ]
                    self.live.update(progress_board(self.plan, now), refresh=True)
                    drawn = time.monotonic()
                time.sleep(POLL_SECONDS)
        finally:
            self.stop_all()

    def run_folder(self, cell: Cell) -> Path:
        return self.folder / RUNS / cell.run_id

    def print_line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def has_ended(self, cell: Cell) -> bool:
        """Whether there is nothing left to do; a torn result has not ended."""
        return result_status(self.run_folder(cell)) is not None

    def held_elsewhere(self, cell: Cell) -> bool:
        """Whether another runner holds a cell, or the trunk that it waits for, or is to make that trunk."""
        trunk = cell.config.branch_of
        waits = trunk and trunk not in self.own_ids and not self.is_ready(cell)
        return bool({cell.run_id, trunk} & self.ids_elsewhere) or bool(waits)

    def start_ready(self) -> None:
        """Starts pending cells while there is room."""
        while (
            self.attempts.has_room() and not self.stops and (first := self.pending.next(time.monotonic())) is not None
        ):
            found = join_slots(self.attempts.free, first.devices_needed(self.devices_per_run))
            if found is None and not self.attempts:
                needed = first.devices_needed(self.devices_per_run)
                raise InputError(f"{first.name}: needs {needed} devices, and there is no such room")
            if found is None:
                return
            slots, slot = found
            if self.runs_alone(first):
                self.launch((first,), slots, slot)
            else:
                most = self.member_limit.get(program_key(first.config), self.members)
                company = self.pending.companions(first)
                self.launch(choose_members(company, self.pending.seconds, slot, self.total_slots, most), slots, slot)

    def is_ready(self, cell: Cell) -> bool:
        """Whether the trunk of a cell has come to where it leaves, or will not."""
        trunk = cell.config.branch_of
        waits = trunk and not branching.has_branch_state(self.run_folder(cell), cell.config)
        return not waits or result_status(self.folder / RUNS / trunk) is not None

    def runs_alone(self, cell: Cell) -> bool:
        """Whether a cell starts in a process of its own, whatever the others are."""
        return (
            cell.run_id in self.solo
            or cell.devices_needed(self.devices_per_run) > 1
            or simulated_run.is_simulated(cell.config)
        )

    def group_key(self, cell: Cell) -> Hashable:
        """What cells must have in common to start in one process."""
        return cell.run_id if self.runs_alone(cell) else program_key(cell.config)

    def launch(self, cells: tuple[Cell, ...], slots: tuple[Slot, ...], slot: Slot) -> None:
        """Starts cells in one process, but for those that another runner has or had."""
        claims: dict[str, Claim] = {}
        try:
            mine = tuple(cell for cell in cells if self.claim_cell(cell, claims))
            if not mine:
                return
            folders = [self.run_folder(cell) for cell in mine]
            for folder in folders:
                attempt_log.record_begin(folder, devices=slot.devices, members=len(mine))
            inherited = [held.descriptor for held in claims.values() if held.descriptor is not None]
            process = self.launcher(self.command(*folders), folders[0], slot, inherited)
        except BaseException:
            for held in claims.values():
                self.attempts.renewer.release(held)
            raise
        self.attempts.add(Attempt(claims, mine, process, slots))

    def claim_cell(self, cell: Cell, claims: dict[str, Claim]) -> bool:
        """Claims a cell and prepares its folder; False when it is another runner's, or has ended, or ends here."""
        folder = self.run_folder(cell)
        held = claim_run(folder)
        if held is None:
            if cell.run_id not in self.ids_elsewhere:
                self.print_line(
                    f"another process holds {cell.run_id} {cell.name}" + "; waiting for it" * self.wait_for_others
                )
            self.ids_elsewhere.add(cell.run_id)
            self.pending.sleep(cell, time.monotonic() + HELD_ELSEWHERE_SECONDS)
            return False
        self.ids_elsewhere.discard(cell.run_id)
        self.pending.remove(cell)
        claims[cell.run_id] = held
        self.attempts.renewer.add(held)
        if not self.has_ended(cell):
            if attempt_log.has_unfinished_attempt(folder):
                attempt_log.record_end(folder, "lost", "its runner went away")
            if spent := self.budgets.exhausted_reason(attempt_log.count_outcomes(folder)):
                record_failure(folder, cell, f"{spent}: {attempt_log.last_reason(folder)}")
            else:
                config = prepare_run(folder, cell, self.devices_per_run)
                if not simulated_run.is_simulated(config):
                    return True
                self.simulate(cell, config)
        self.attempts.renewer.release(claims.pop(cell.run_id))
        self.report(cell)
        return False

    def simulate(self, cell: Cell, config: RunConfig) -> None:
        """Makes a simulated cell here and now; its failure is its own."""
        try:
            simulated_run.simulate_run(config, self.run_folder(cell))
        except (InputError, ValueError) as error:
            record_failure(self.run_folder(cell), cell, f"{type(error).__name__}: {error}")

    def collect_finished(self) -> None:
        """Settles the runs whose process has ended."""
        stolen = [attempt for attempt, _ in self.attempts.lost_claims()]
        for attempt in self.attempts:
            code = attempt.process.poll()
            if code is not None and attempt not in stolen:
                for cell in attempt.cells:
                    self.record_outcome(cell, code, attempt)
                self.attempts.remove(attempt)

    def record_outcome(self, cell: Cell, code: int, attempt: Attempt) -> None:
        """Takes the result, or notes how the attempt ended and tries again, or records a failure."""
        folder, several = self.run_folder(cell), len(attempt.cells) > 1
        if (status := result_status(folder)) is not None:
            attempt_log.record_end(folder, "diverged" if status == "diverged" else "done")
            self.report(cell)
            return
        if code == DISK_FULL:
            raise OSError(errno.ENOSPC, last_output_line(folder) or os.strerror(errno.ENOSPC))
        kind, reason = classify_exit(code, folder)
        if self.stops and kind == "preempted":
            attempt_log.record_end(folder, "stopped", reason)
            self.pending.add([cell])
        elif several and kind in ("failed", "memory"):
            attempt_log.record_end(folder, "stopped", f"its population ended: {reason}")
            self.split_population(cell, kind, reason, attempt)
        else:
            about = (
                {"sequences": last_sequences_per_device(folder, cell, self.devices_per_run)} if kind == "memory" else {}
            )
            attempt_log.record_end(folder, kind, reason, **about)
            self.solo |= {cell.run_id} if about else set()
            self.retry(cell, kind, reason, is_final(code))

    def retry(self, cell: Cell, kind: AttemptOutcome, reason: str, last: bool) -> None:
        """Another attempt at a run that ended badly, if its budgets have one left; else it is recorded as failed."""
        spent = exhausted_budget(self.run_folder(cell), cell, kind, self.budgets, self.devices_per_run)
        if spent or last:
            record_failure(self.run_folder(cell), cell, f"{reason} ({spent})" if spent else reason)
            self.report(cell)
            return
        self.print_line(f"{cell.run_id} {cell.name} {reason}; {NEXT_STEP.get(kind, 'going on from its checkpoint')}")
        self.pending.add([cell], at_front=True, until=time.monotonic() + RETRY_SECONDS.get(kind, 0.0))

    def split_population(self, cell: Cell, kind: AttemptOutcome, reason: str, attempt: Attempt) -> None:
        """A population ended without a member's result: too large a one is tried by halves, any other one by one."""
        half = len(attempt.cells) // 2
        if kind == "memory" and half > 1:
            self.member_limit[program_key(cell.config)] = half
            self.print_line(
                f"{cell.run_id} {cell.name}: its population of {len(attempt.cells)} {reason}; trying {half}"
            )
        else:
            self.solo.add(cell.run_id)
            self.print_line(f"{cell.run_id} {cell.name}: its population ended ({reason}); trying it alone")
        self.pending.add([cell])

    def report(self, cell: Cell) -> None:
        left = len(self.pending) + sum(self.has_no_result(one) for attempt in self.attempts for one in attempt.cells)
        total = len(self.plan.cells)
        self.print_line(f"[{total - left}/{total}] {progress_line(read_cell_progress(self.run_folder(cell), cell))}")

    def has_no_result(self, cell: Cell) -> bool:
        """Whether a running cell has no result yet."""
        return result_status(self.run_folder(cell)) is None

    def drop_stolen(self) -> None:
        """Kills the runs of which one claim was taken over, for it has another owner."""
        for attempt, lost in self.attempts.lost_claims():
            attempt.process.kill()
            if attempt.process.poll() is None:
                continue
            for cell in lost:
                self.print_line(f"{cell.run_id} {cell.name} was taken over by another runner")
            self.pending.add(attempt.cells)
            self.attempts.remove(attempt)

    def stop_all(self) -> None:
        """Leaves no run behind, whatever happened: each saves, ends, and is anybody's."""
        while self.attempts:
            self.attempts.stop(now=self.stops > 1)
            for attempt in self.attempts:
                if attempt.process.poll() is not None:
                    with contextlib.suppress(OSError):
                        for cell in attempt.cells:
                            attempt_log.record_end(self.run_folder(cell), "stopped", "its runner stopped")
                    self.attempts.remove(attempt)
            time.sleep(POLL_SECONDS)

    def handling_signals(self) -> contextlib.AbstractContextManager[None]:
        """Hears what schedulers and users send: at first runs are asked to save and end, the second time killed."""
        return handle_signals(STOP_SIGNALS, lambda number: self.request_stop())

    def request_stop(self) -> None:
        self.stops += 1
