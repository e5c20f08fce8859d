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
from scaling.exit_codes import FULL, STOPPED
from scaling.training import branching, simulated_run
from scaling.training.population_limits import program_key
from sweeps.local.launch import Launcher, Slot
from sweeps.local.processes import join_slots, last_output_line, start_process
from sweeps.local.signals import handle_signals
from sweeps.planning.plan import RUNS, Cell, Plan
from sweeps.running import attempt_log
from sweeps.running.attempt_log import USUAL, Budgets, Kind
from sweeps.running.board import line, table
from sweeps.running.claims import Claim, claim
from sweeps.running.outcomes import at_once, exhausted, final, judge, prepare, record_failure, result_status
from sweeps.running.population_packing import pack
from sweeps.running.progress import progress
from sweeps.running.queue import Waiting
from sweeps.running.running_attempts import Attempt, Attempts

POLL_SECONDS, ELSEWHERE_SECONDS, REFRESH_SECONDS = 0.05, 1.0, 1.0
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
RETRY_SECONDS: dict[Kind, float] = {"failed": 1.0, "stopped": 10.0}
NEXT: dict[Kind, str] = {
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
    launch: Launcher = start_process
    budgets: Budgets = USUAL
    members: int | None = 1
    asked: int | None = None
    jobs: int | None = None
    crew: int = 1
    lingers: bool = True
    live: Live | None = None
    pending: Waiting = field(init=False)
    mine: frozenset[str] = field(init=False)
    attempts: Attempts = field(init=False)
    alone: set[str] = field(default_factory=set)
    narrow: dict[Hashable, int] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    stops: int = 0

    def __post_init__(self) -> None:
        self.pending = Waiting(self.ready, self.kind)
        self.attempts = Attempts(list(self.slots), self.jobs)
        self.mine = frozenset(cell.run_id for cell in self.cells)

    def __call__(self) -> int:
        """Makes every cell that has not ended: by priority, then longest first. Returns the exit code."""
        cells = sorted(self.cells, key=lambda cell: (-cell.config.priority, bool(cell.config.branch_of), -cell.seconds))
        left = [cell for cell in cells if not self.ended(cell)]
        self.alone = {cell.run_id for cell in left if attempt_log.too_many(self.path(cell)) is not None}
        self.pending.add(left)
        self.say(f"{len(cells)} runs, {len(cells) - len(self.pending)} ended before, {len(self.slots)} at once")
        with self.attempts.pulse:
            self.work()
        if self.pending and self.stops:
            self.say(f"stopped, {len(self.pending)} runs to go; the same command goes on")
            return STOPPED
        return int(any(result_status(self.path(cell)) == "failed" for cell in self.cells))

    def work(self) -> None:
        """Until every cell has ended, or others hold those that have not, or a signal comes."""
        drawn = time.monotonic()
        try:
            while self.attempts or (self.pending and not self.stops):
                self.reap()
                if self.stops:
                    self.attempts.stop(now=self.stops > 1)
                else:
                    self.fill()
                    if not self.attempts and not self.lingers and all(map(self.theirs, self.pending)):
                        break
                self.forsake()
                if self.live and time.monotonic() - drawn > REFRESH_SECONDS:
                    now = [progress(self.path(cell), cell) for attempt in self.attempts for cell in attempt.cells]
                    self.live.update(table(self.plan, now), refresh=True)
                    drawn = time.monotonic()
                time.sleep(POLL_SECONDS)
        finally:
            self.abandon()

    def path(self, cell: Cell) -> Path:
        return self.folder / RUNS / cell.run_id

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def ended(self, cell: Cell) -> bool:
        """Whether there is nothing left to do; a torn result has not ended."""
        return result_status(self.path(cell)) is not None

    def theirs(self, cell: Cell) -> bool:
        """Whether another runner holds a cell, or the trunk that it waits for, or is to make that trunk."""
        trunk = cell.config.branch_of
        waits = trunk and trunk not in self.mine and not self.ready(cell)
        return bool({cell.run_id, trunk} & self.elsewhere) or bool(waits)

    def fill(self) -> None:
        """Starts pending cells while there is room."""
        while self.attempts.room() and not self.stops and (first := self.pending.next(time.monotonic())) is not None:
            found = join_slots(self.attempts.free, first.demand(self.asked))
            if found is None and not self.attempts:
                raise InputError(f"{first.name}: needs {first.demand(self.asked)} devices, and there is no such room")
            if found is None:
                return
            slots, slot = found
            if self.solitary(first):
                self.take((first,), slots, slot)
            else:
                most = self.narrow.get(program_key(first.config), self.members)
                company = self.pending.company(first)
                self.take(pack(company, self.pending.seconds, slot, self.crew, most), slots, slot)

    def ready(self, cell: Cell) -> bool:
        """Whether the trunk of a cell has come to where it leaves, or will not."""
        trunk = cell.config.branch_of
        waits = trunk and not branching.has_branch_state(self.path(cell), cell.config)
        return not waits or result_status(self.folder / RUNS / trunk) is not None

    def solitary(self, cell: Cell) -> bool:
        """Whether a cell starts in a process of its own, whatever the others are."""
        return cell.run_id in self.alone or cell.demand(self.asked) > 1 or simulated_run.is_simulated(cell.config)

    def kind(self, cell: Cell) -> Hashable:
        """What cells must have in common to start in one process."""
        return cell.run_id if self.solitary(cell) else program_key(cell.config)

    def take(self, cells: tuple[Cell, ...], slots: tuple[Slot, ...], slot: Slot) -> None:
        """Starts cells in one process, but for those that another runner has or had."""
        claims: dict[str, Claim] = {}
        try:
            mine = tuple(cell for cell in cells if self.claimed(cell, claims))
            if not mine:
                return
            folders = [self.path(cell) for cell in mine]
            for folder in folders:
                attempt_log.began(folder, devices=slot.devices, members=len(mine))
            inherited = [held.descriptor for held in claims.values() if held.descriptor is not None]
            process = self.launch(self.command(*folders), folders[0], slot, inherited)
        except BaseException:
            for held in claims.values():
                self.attempts.pulse.release(held)
            raise
        self.attempts.add(Attempt(claims, mine, process, slots))

    def claimed(self, cell: Cell, claims: dict[str, Claim]) -> bool:
        """Claims a cell and prepares its folder; False when it is another runner's, or has ended, or ends here."""
        folder = self.path(cell)
        held = claim(folder)
        if held is None:
            if cell.run_id not in self.elsewhere:
                self.say(f"another process holds {cell.run_id} {cell.name}" + "; waiting for it" * self.lingers)
            self.elsewhere.add(cell.run_id)
            self.pending.sleep(cell, time.monotonic() + ELSEWHERE_SECONDS)
            return False
        self.elsewhere.discard(cell.run_id)
        self.pending.remove(cell)
        claims[cell.run_id] = held
        self.attempts.pulse.keep(held)
        if not self.ended(cell):
            if attempt_log.unfinished(folder):
                attempt_log.ended(folder, "lost", "its runner went away")
            if spent := self.budgets.spent(attempt_log.counts(folder)):
                record_failure(folder, cell, f"{spent}: {attempt_log.last_reason(folder)}")
            else:
                config = prepare(folder, cell, self.asked)
                if not simulated_run.is_simulated(config):
                    return True
                self.simulate(cell, config)
        self.attempts.pulse.release(claims.pop(cell.run_id))
        self.report(cell)
        return False

    def simulate(self, cell: Cell, config: RunConfig) -> None:
        """Makes a simulated cell here and now; its failure is its own."""
        try:
            simulated_run.simulate_run(config, self.path(cell))
        except (InputError, ValueError) as error:
            record_failure(self.path(cell), cell, f"{type(error).__name__}: {error}")

    def reap(self) -> None:
        """Settles the runs whose process has ended."""
        robbed = [attempt for attempt, _ in self.attempts.robbed()]
        for attempt in self.attempts:
            code = attempt.process.poll()
            if code is not None and attempt not in robbed:
                for cell in attempt.cells:
                    self.settle(cell, code, attempt)
                self.attempts.drop(attempt)

    def settle(self, cell: Cell, code: int, attempt: Attempt) -> None:
        """Takes the result, or notes how the attempt ended and tries again, or records a failure."""
        folder, several = self.path(cell), len(attempt.cells) > 1
        if (status := result_status(folder)) is not None:
            attempt_log.ended(folder, "diverged" if status == "diverged" else "done")
            self.report(cell)
            return
        if code == FULL:
            raise OSError(errno.ENOSPC, last_output_line(folder) or os.strerror(errno.ENOSPC))
        kind, reason = judge(code, folder)
        if self.stops and kind == "preempted":
            attempt_log.ended(folder, "stopped", reason)
            self.pending.add([cell])
        elif several and kind in ("failed", "memory"):
            attempt_log.ended(folder, "stopped", f"its population ended: {reason}")
            self.part(cell, kind, reason, attempt)
        else:
            about = {"sequences": at_once(folder, cell, self.asked)} if kind == "memory" else {}
            attempt_log.ended(folder, kind, reason, **about)
            self.alone |= {cell.run_id} if about else set()
            self.again(cell, kind, reason, final(code))

    def again(self, cell: Cell, kind: Kind, reason: str, last: bool) -> None:
        """Another attempt at a run that ended badly, if its budgets have one left; else it is recorded as failed."""
        spent = exhausted(self.path(cell), cell, kind, self.budgets, self.asked)
        if spent or last:
            record_failure(self.path(cell), cell, f"{reason} ({spent})" if spent else reason)
            self.report(cell)
            return
        self.say(f"{cell.run_id} {cell.name} {reason}; {NEXT.get(kind, 'going on from its checkpoint')}")
        self.pending.add([cell], ahead=True, until=time.monotonic() + RETRY_SECONDS.get(kind, 0.0))

    def part(self, cell: Cell, kind: Kind, reason: str, attempt: Attempt) -> None:
        """A population ended without a member's result: too large a one is tried by halves, any other one by one."""
        half = len(attempt.cells) // 2
        if kind == "memory" and half > 1:
            self.narrow[program_key(cell.config)] = half
            self.say(f"{cell.run_id} {cell.name}: its population of {len(attempt.cells)} {reason}; trying {half}")
        else:
            self.alone.add(cell.run_id)
            self.say(f"{cell.run_id} {cell.name}: its population ended ({reason}); trying it alone")
        self.pending.add([cell])

    def report(self, cell: Cell) -> None:
        left = len(self.pending) + sum(self.open(one) for attempt in self.attempts for one in attempt.cells)
        total = len(self.plan.cells)
        self.say(f"[{total - left}/{total}] {line(progress(self.path(cell), cell))}")

    def open(self, cell: Cell) -> bool:
        """Whether a running cell has no result yet."""
        return result_status(self.path(cell)) is None

    def forsake(self) -> None:
        """Kills the runs of which one claim was taken over, for it has another owner."""
        for attempt, lost in self.attempts.robbed():
            attempt.process.kill()
            if attempt.process.poll() is None:
                continue
            for cell in lost:
                self.say(f"{cell.run_id} {cell.name} was taken over by another runner")
            self.pending.add(attempt.cells)
            self.attempts.drop(attempt)

    def abandon(self) -> None:
        """Leaves no run behind, whatever happened: each saves, ends, and is anybody's."""
        while self.attempts:
            self.attempts.stop(now=self.stops > 1)
            for attempt in self.attempts:
                if attempt.process.poll() is not None:
                    with contextlib.suppress(OSError):
                        for cell in attempt.cells:
                            attempt_log.ended(self.path(cell), "stopped", "its runner stopped")
                    self.attempts.drop(attempt)
            time.sleep(POLL_SECONDS)

    def listening(self) -> contextlib.AbstractContextManager[None]:
        """Hears what schedulers and users send: at first runs are asked to save and end, the second time killed."""
        return handle_signals(STOPPING, self.hear)

    def hear(self) -> None:
        self.stops += 1
