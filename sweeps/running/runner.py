"""The runner: claims the cells of a plan, starts them in free slots, and records how each attempt ended.

`scaling sweep run` uses one on this machine (sweeps/commands/run.py); on a cluster every worker is one (fleet.py).
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
from scaling.record.run_folder import PLAN, RUNS
from scaling.signals import handle_signals
from scaling.training import branching, simulated_run
from scaling.training.population_limits import program_key
from sweeps.local.launch import Launcher, Slot
from sweeps.local.processes import join_slots, last_output_line, start_process
from sweeps.planning.plan import Cell, Plan, format_duration
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
from sweeps.running.progress_watch import ProgressWatch
from sweeps.running.queue import WaitingCells
from sweeps.running.running_attempts import Attempt, RunningAttempts

POLL_SECONDS = 0.05
HELD_ELSEWHERE_SECONDS = 1.0
"""How long a cell that another runner holds waits before this runner tries to claim it again."""
REFRESH_SECONDS = 1.0
"""Seconds between two drawings of the live table."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
RETRY_SECONDS: dict[AttemptOutcome, float] = {"failed": 1.0, "stopped": 10.0}
"""How long a run waits after an attempt that ended so; 0 for the other outcomes."""
NEXT_STEP: dict[AttemptOutcome, str] = {
    "memory": "halving its microbatch",
    "failed": "trying it again",
    "stopped": "waiting for that to end",
}
"""What a printed line says the runner does next after an attempt that ended so."""

Command = Callable[..., list[str]]
"""Returns the argv of the one process that trains the runs in the given folders."""


@dataclass
class Runner:
    """One runner. Call it to train its cells; it returns an exit code.

    Args:
      folder: the sweep's folder.
      plan: the whole plan.
      cells: the cells of the plan that this runner trains.
      command: builds the command line of a process (see `Command`).
      slots: where processes run.
      console: where lines are printed.
      launcher: starts a process.
      budgets: how many bad attempts a run may have.
      members: most runs in one population; None for as many as memory allows.
      devices_per_run: devices of a run whose mesh leaves its data axis open; None for the smallest mesh.
      jobs: most processes at once; None for one in every slot.
      total_slots: slots that share the waiting work, here and on other machines.
      wait_for_others: whether to wait for runs that other runners hold, and take them over if those runners die.
      live: the live table to redraw; None where there is no terminal.
      pending: cells that have not started.
      own_ids: the run_ids of `cells`.
      attempts: the processes that run now.
      watch: finds those of them that make no progress.
      unreported: run_ids of `cells` whose end has not been printed yet.
      solo: run_ids that get a process of their own, because their population failed or they ran out of memory.
      member_limit: program key -> most members of a population of that key, after one ran out of memory.
      ids_elsewhere: run_ids that other runners held when this one last tried to claim them.
      stops: signals received: the first asks the runs to save and end, the second kills them.
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
    watch: ProgressWatch = field(init=False)
    unreported: set[str] = field(default_factory=set)
    solo: set[str] = field(default_factory=set)
    member_limit: dict[Hashable, int] = field(default_factory=dict)
    ids_elsewhere: set[str] = field(default_factory=set)
    stops: int = 0

    def __post_init__(self) -> None:
        self.pending = WaitingCells(self.is_ready, self.group_key)
        self.attempts = RunningAttempts(list(self.slots), self.jobs)
        self.watch = ProgressWatch(self.budgets.progress_timeout)
        self.own_ids = frozenset(cell.run_id for cell in self.cells)

    def __call__(self) -> int:
        """Trains every cell that has no result. Returns 0, 1 when a run failed, STOPPED (75) after a signal."""
        # Higher priority first. Then trunks before branches, which wait for them. Then the longest first, which keeps
        # the last slots to finish close together (longest-processing-time scheduling).
        cells = sorted(
            self.cells, key=lambda cell: (-cell.config.priority, bool(cell.config.branch_of), -cell.estimated_seconds)
        )
        remaining = [cell for cell in cells if not self.has_ended(cell)]
        self.unreported = {cell.run_id for cell in remaining}
        self.solo = {
            cell.run_id
            for cell in remaining
            if attempt_log.fewest_excessive_sequences(self.run_folder(cell)) is not None
        }
        self.pending.add(remaining)
        self.print_line(f"{len(cells)} runs, {len(cells) - len(self.pending)} ended before, {len(self.slots)} at once")
        with self.attempts.renewer:
            self.run_until_done()
        if self.pending and self.stops:
            self.print_line(f"stopped, {len(self.pending)} runs to go; run the same command again to go on")
            return STOPPED
        return int(any(result_status(self.run_folder(cell)) == "failed" for cell in self.cells))

    def run_until_done(self) -> None:
        """Starts and collects runs until all cells have ended, others hold all that are left, or a signal comes."""
        drawn_at = time.monotonic()
        try:
            while self.attempts or (self.pending and not self.stops):
                self.check_sweep_folder()
                self.collect_finished()
                if self.stops:
                    self.attempts.stop(now=self.stops > 1)
                else:
                    self.start_ready()
                    if not self.attempts and not self.wait_for_others and all(map(self.held_elsewhere, self.pending)):
                        break
                self.drop_taken_over()
                self.end_stuck()
                if self.live and time.monotonic() - drawn_at > REFRESH_SECONDS:
                    now = [
                        read_cell_progress(self.run_folder(cell), cell)
                        for attempt in self.attempts
                        for cell in attempt.cells
                    ]
                    self.live.update(progress_board(self.plan, now), refresh=True)
                    drawn_at = time.monotonic()
                time.sleep(POLL_SECONDS)
        finally:
            self.stop_all()

    def check_sweep_folder(self) -> None:
        """Raises InputError when somebody has deleted or moved the sweep's folder, and kills the processes at once:
        those that saved before they end would make a part of it again."""
        if not (self.folder / PLAN).exists():
            self.stops = 2
            raise InputError(
                f"{self.folder}: the folder of the sweep is gone, or its {PLAN}: nothing more is written there; put it "
                "back and run the same command again, or plan the sweep anew"
            )

    def run_folder(self, cell: Cell) -> Path:
        """<sweep>/runs/<run_id>."""
        return self.folder / RUNS / cell.run_id

    def print_line(self, text: str) -> None:
        """Prints text as one line, however long, without markup."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def has_ended(self, cell: Cell) -> bool:
        """Whether a cell has a whole result. A cell with a torn result is trained again."""
        return result_status(self.run_folder(cell)) is not None

    def held_elsewhere(self, cell: Cell) -> bool:
        """Whether a cell waits for another runner: one that holds it or its trunk, or that has its trunk to train."""
        trunk = cell.config.branch_of
        waits_for_foreign_trunk = trunk and trunk not in self.own_ids and not self.is_ready(cell)
        return bool({cell.run_id, trunk} & self.ids_elsewhere) or bool(waits_for_foreign_trunk)

    def start_ready(self) -> None:
        """Starts pending cells while slots are free. Raises InputError on a cell that needs more devices than exist."""
        while (
            self.attempts.has_room() and not self.stops and (first := self.pending.next(time.monotonic())) is not None
        ):
            needed = first.devices_needed(self.devices_per_run)
            joined = join_slots(self.attempts.free, needed)
            if joined is None and not self.attempts:
                raise InputError(
                    f"cell {first.name}: needs {needed} devices, and all slots together have fewer; lower --devices, "
                    "or run on a larger machine"
                )
            if joined is None:
                # Wait until enough slots are free for this cell. Starting smaller cells in the meantime would keep a
                # large one waiting for as long as small ones are left.
                return
            slots, slot = joined
            if self.runs_alone(first):
                self.launch((first,), slots, slot)
            else:
                most = self.member_limit.get(program_key(first.config), self.members)
                candidates = self.pending.companions(first)
                members = choose_members(candidates, self.pending.seconds, slot, self.total_slots, most)
                self.launch(members, slots, slot)

    def is_ready(self, cell: Cell) -> bool:
        """Whether a cell can start: it has no trunk, its trunk has saved the state it branches from, or has ended."""
        trunk = cell.config.branch_of
        is_waiting = trunk and not branching.has_branch_state(self.run_folder(cell), cell.config)
        return not is_waiting or result_status(self.folder / RUNS / trunk) is not None

    def runs_alone(self, cell: Cell) -> bool:
        """Whether a cell must have a process of its own: after a failed population, on several devices, simulated."""
        return (
            cell.run_id in self.solo
            or cell.devices_needed(self.devices_per_run) > 1
            or simulated_run.is_simulated(cell.config)
        )

    def group_key(self, cell: Cell) -> Hashable:
        """The key that cells must share to train in one process (see scaling/training/population_limits.py)."""
        return cell.run_id if self.runs_alone(cell) else program_key(cell.config)

    def launch(self, cells: tuple[Cell, ...], slots: tuple[Slot, ...], slot: Slot) -> None:
        """Claims cells and starts those it got in one process, which writes its output to the first one's log.txt."""
        claims: dict[str, Claim] = {}
        self.check_sweep_folder()
        try:
            claimed = tuple(cell for cell in cells if self.claim_cell(cell, claims))
            if not claimed:
                return
            folders = [self.run_folder(cell) for cell in claimed]
            for folder in folders:
                attempt_log.record_begin(folder, devices=slot.devices, members=len(claimed))
            # The child keeps the flocks of its folders open, so that nobody claims them while it lives.
            inherited = [claim.descriptor for claim in claims.values() if claim.descriptor is not None]
            process = self.launcher(self.command(*folders), folders[0], slot, inherited)
        except BaseException:
            for claim in claims.values():
                self.attempts.renewer.release(claim)
            raise
        self.attempts.add(Attempt(claims, claimed, process, slots))

    def claim_cell(self, cell: Cell, claims: dict[str, Claim]) -> bool:
        """Claims a cell, puts the claim in `claims` and prepares the run folder. Returns whether it must be trained.

        False when another runner holds the cell, when it has a result by now, when its budgets are exhausted, and when
        it is simulated, which takes milliseconds and is done here.
        """
        folder = self.run_folder(cell)
        claim = claim_run(folder)
        if claim is None:
            if cell.run_id not in self.ids_elsewhere:
                self.print_line(
                    f"another process holds {cell.run_id} {cell.name}" + "; waiting for it" * self.wait_for_others
                )
            self.ids_elsewhere.add(cell.run_id)
            self.pending.sleep(cell, time.monotonic() + HELD_ELSEWHERE_SECONDS)
            return False
        self.ids_elsewhere.discard(cell.run_id)
        self.pending.remove(cell)
        claims[cell.run_id] = claim
        self.attempts.renewer.add(claim)
        # Look at the folder again now that it is claimed: another runner may have finished the cell, or have used up
        # its budgets, between this runner's last look and its claim.
        if not self.has_ended(cell):
            if attempt_log.has_unfinished_attempt(folder):
                attempt_log.record_end(folder, "lost", "its runner went away")
            if exhausted := self.budgets.exhausted_reason(attempt_log.count_outcomes(folder)):
                record_failure(folder, cell, f"{exhausted}: {attempt_log.last_reason(folder)}")
            else:
                config = prepare_run(folder, cell, self.devices_per_run)
                if not simulated_run.is_simulated(config):
                    return True
                self.simulate(cell, config)
        self.attempts.renewer.release(claims.pop(cell.run_id))
        self.report(cell)
        return False

    def simulate(self, cell: Cell, config: RunConfig) -> None:
        """Writes the run folder of a simulated cell in this process. An error is recorded as the run's failure."""
        try:
            simulated_run.simulate_run(config, self.run_folder(cell))
        except (InputError, ValueError) as error:
            record_failure(self.run_folder(cell), cell, f"{type(error).__name__}: {error}")

    def collect_finished(self) -> None:
        """Records the outcome of every run whose process has ended, and frees its slots."""
        # Runs that another runner took over are not this runner's to record: see `drop_taken_over`.
        taken_over = [attempt for attempt, _ in self.attempts.lost_claims()]
        for attempt in self.attempts:
            code = attempt.process.poll()
            if code is not None and attempt not in taken_over:
                for cell in attempt.cells:
                    self.record_outcome(cell, code, attempt)
                self.attempts.remove(attempt)

    def record_outcome(self, cell: Cell, code: int, attempt: Attempt) -> None:
        """Records how an attempt at a cell ended by the exit code of its process, and starts or plans what follows.

        A cell with a result is done. Any other is tried again, or recorded as failed when its budgets are exhausted.
        Raises OSError when the disk is full.
        """
        folder, is_population = self.run_folder(cell), len(attempt.cells) > 1
        log_folder = self.run_folder(attempt.cells[0])
        if (status := result_status(folder)) is not None:
            attempt_log.record_end(folder, "diverged" if status == "diverged" else "done")
            self.report(cell)
            return
        if code == DISK_FULL:
            raise OSError(errno.ENOSPC, last_output_line(log_folder) or os.strerror(errno.ENOSPC))
        kind, reason = classify_exit(code, log_folder)
        if attempt in self.attempts.stuck:
            kind, reason = "failed", self.attempts.stuck[attempt][0]
        if self.stops and kind == "preempted":
            attempt_log.record_end(folder, "stopped", reason)
            self.pending.add([cell])
        elif is_population and kind in ("failed", "memory"):
            attempt_log.record_end(folder, "stopped", f"its population ended: {reason}")
            self.split_population(cell, kind, reason, attempt)
        else:
            details: dict[str, int] = {}
            if kind == "memory":
                # prepare_run gives the next attempt a microbatch with fewer sequences per device than this. Other
                # members need not follow, so the run goes on alone.
                details = {"sequences": last_sequences_per_device(folder, cell, self.devices_per_run)}
                self.solo.add(cell.run_id)
            attempt_log.record_end(folder, kind, reason, **details)
            self.retry(cell, kind, reason, is_final(code))

    def retry(self, cell: Cell, kind: AttemptOutcome, reason: str, last: bool) -> None:
        """Puts a run that ended badly back in the queue, or records it as failed when its budgets are exhausted.

        last: whether the next attempt would fail the same way, so that there is none.
        """
        exhausted = exhausted_budget(self.run_folder(cell), cell, kind, self.budgets, self.devices_per_run)
        if exhausted or last:
            record_failure(self.run_folder(cell), cell, f"{reason} ({exhausted})" if exhausted else reason)
            self.report(cell)
            return
        self.print_line(f"{cell.run_id} {cell.name} {reason}; {NEXT_STEP.get(kind, 'going on from its checkpoint')}")
        self.pending.add([cell], at_front=True, until=time.monotonic() + RETRY_SECONDS.get(kind, 0.0))

    def split_population(self, cell: Cell, kind: AttemptOutcome, reason: str, attempt: Attempt) -> None:
        """Puts a member whose population ended without its result back in the queue.

        After lack of memory the next populations of this shape have half as many members; otherwise, and when half is
        one, the member gets a process of its own.
        """
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
        """Prints the line of a cell that has ended, after how many of the plan's cells have: `[n/m]`, n never falls."""
        self.unreported.discard(cell.run_id)
        total = len(self.plan.cells)
        ended = total - len(self.unreported)
        self.print_line(f"[{ended}/{total}] {progress_line(read_cell_progress(self.run_folder(cell), cell))}")

    def end_stuck(self) -> None:
        """Ends the processes that make no progress, and says of those that have made none for a while."""
        for attempt, seconds, allowed in self.watch.look(self.attempts):
            silence, limit = format_duration(seconds), format_duration(allowed)
            cell, more = attempt.cells[0], len(attempt.cells) - 1
            name = f"{cell.run_id} {cell.name}" + f" and {more} more" * bool(more)
            if seconds < allowed:
                self.print_line(f"{name}: no progress for {silence}; it is ended after {limit} (--progress-timeout)")
            elif attempt not in self.attempts.stuck:
                self.print_line(f"{name}: no progress for {silence}; ending it")
                self.attempts.end_stuck(attempt, f"made no progress for {silence}")
        self.attempts.kill_stuck()

    def drop_taken_over(self) -> None:
        """Kills every process that trains a run which another runner took over, and queues its runs again."""
        for attempt, lost in self.attempts.lost_claims():
            attempt.process.kill()
            if attempt.process.poll() is None:
                continue  # Its processes on other hosts still end; the next round looks again.
            for cell in lost:
                self.print_line(f"{cell.run_id} {cell.name} was taken over by another runner")
            self.pending.add(attempt.cells)
            self.attempts.remove(attempt)

    def stop_all(self) -> None:
        """Asks every process to save and end, waits for it, and releases its claims. Runs on every way out."""
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
        """While entered, counts the signals of schedulers and users in `stops`."""
        return handle_signals(STOP_SIGNALS, lambda number: self.request_stop())

    def request_stop(self) -> None:
        """The first call asks the runs to save and end, the second kills them."""
        self.stops += 1
