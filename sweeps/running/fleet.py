"""A sweep on a cluster: keeps as many workers coming as there is work, and watches. The work itself is the runner's.

A worker is a runner on the machine that it was given, over the cells that need as many devices. So runs, claims,
budgets and checkpoints are on a cluster what they are on a laptop, and it matters little who dies: a worker is
replaced, this process is started again by the same command, which finds the workers that are left.

Not in the design's list of modules: what all clusters share.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live

from scaling.errors import InputError
from scaling.exit_codes import STOPPED
from scaling.record.run_folder import LEASE, RUNS
from scaling.signals import handle_signals
from scaling.training import branching
from sweeps.local.launch import Launcher, Slot
from sweeps.local.processes import start_process, whole_machine_slot
from sweeps.planning.plan import Cell, Plan, load_plan
from sweeps.running.attempt_log import RetryBudgets
from sweeps.running.board import progress_board, progress_line
from sweeps.running.claims import clock_skew, is_claimable, read_lease
from sweeps.running.cluster import Cluster, WorkerHandle, WorkerSpec
from sweeps.running.outcomes import reopen_failed, result_status
from sweeps.running.progress import ENDED_STATES, CellProgress, FinishedCell, read_sweep_progress
from sweeps.running.runner import Command, Runner
from sweeps.running.running_attempts import GRACE_SECONDS

WATCH_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 60.0
MAX_FRUITLESS = 3
"""Workers a place that may end one after the other, with work to do, without any run's having come further."""
MAX_REFUSALS = 20
"""Times in a row that the cluster or the shared folder may fail."""


def train_command(*folders: Path) -> list[str]:
    """The command that trains the run in a folder, from its checkpoint if there is one; of several, as one program."""
    verb = ["train", "--quiet", "--folder"] if len(folders) == 1 else ["population", "--quiet"]
    return [sys.executable, "-m", "scaling.cli", *verb, *map(str, folders)]


def make_worker_runner(
    work: WorkerSpec,
    launch: Launcher = start_process,
    slots: Sequence[Slot] | None = None,
    command: Command = train_command,
) -> Runner:
    """A worker's runner: over the cells of its kind, in all that this process was given unless `slots` says. It tries
    no run again that has failed, and ends when others hold all that is left. Call it; it returns an exit code."""
    plan = load_plan(work.folder)
    cells = [cell for cell in plan.cells if cell.devices_needed(work.devices_per_run) == work.devices]
    return Runner(
        work.folder,
        plan,
        cells,
        command,
        slots or (whole_machine_slot(work.devices),),
        Console(soft_wrap=True),
        launch,
        work.budgets,
        work.members,
        work.devices_per_run,
        work.total_slots,
        wait_for_others=False,
    )


def run_worker(work: WorkerSpec, launch: Launcher = start_process, slots: Sequence[Slot] | None = None) -> int:
    """What a worker does. Returns 0, 1 when a run failed, 75 when it was stopped."""
    runner = make_worker_runner(work, launch, slots)
    with runner.handling_signals():
        return runner()


@dataclass
class WorkerGroup:
    """The workers of one kind.

    work: what they do. cells: those it is about. reached: how far these were at the last look: cells that ended, tokens
    trained on, attempts begun. wanted: whether there was something to do then. fruitless: workers that have ended
    since, in a row, though there was. granted, refused: whether the cluster ever gave workers, and requests in a row
    that it refused. not_before: monotonic seconds before which nobody more is asked for.
    """

    spec: WorkerSpec
    cells: Sequence[Cell]
    workers: list[WorkerHandle] = field(default_factory=list)
    last_totals: tuple[int, int, int] = (-1, -1, -1)
    had_work: bool = False
    fruitless: int = 0
    granted: bool = False
    refusals: int = 0
    not_before: float = 0.0

    def drop_ended(self, now: Sequence[CellProgress], most: int) -> None:
        """Lets go of workers that have ended, and judges whether they were of use. Raises InputError when more than
        `most` were of none."""
        ended = [worker for worker in self.workers if worker.state() == "ended"]
        self.workers = [worker for worker in self.workers if worker not in ended]
        finished = sum(one.state in ENDED_STATES for one in now)
        reached = finished, sum(one.tokens for one in now), sum(one.attempts for one in now)
        if reached != self.last_totals:
            self.fruitless, self.last_totals = 0, reached
        elif ended and self.had_work:
            self.fruitless += len(ended)
            self.not_before = time.monotonic() + min(WATCH_SECONDS * 2**self.fruitless, LONGEST_WAIT_SECONDS)
        if self.fruitless > most:
            raise InputError(
                f"{self.fruitless} workers ended one after the other and no run came further: {ended[-1].describe()}"
            )


@dataclass
class Fleet:
    """The workers of one sweep. jobs: at most so many; asked, members, budgets: as in Work."""

    folder: Path
    plan: Plan
    cluster: Cluster
    budgets: RetryBudgets
    jobs: int | None = None
    members: int | None = None
    devices_per_run: int | None = None
    groups: list[WorkerGroup] = field(init=False)
    stops: int = 0

    def __post_init__(self) -> None:
        kinds: dict[int, list[Cell]] = {}
        for cell in self.plan.cells:
            kinds.setdefault(cell.devices_needed(self.devices_per_run), []).append(cell)
        self.groups = [
            WorkerGroup(self.worker_spec(devices, len(cells)), cells) for devices, cells in sorted(kinds.items())
        ]

    def worker_spec(self, devices: int, cells: int) -> WorkerSpec:
        """What the workers of one kind do."""
        total_slots = min(self.jobs or cells, cells)
        return WorkerSpec(
            self.folder.absolute(), devices, self.devices_per_run, self.members, self.budgets, total_slots
        )

    def scale_up(self, now: Sequence[CellProgress]) -> None:
        """Asks for the workers that are missing. Raises InputError when they end one after the other for nothing, or
        when the cluster refuses for minutes on end."""
        states = {one.run_id: one for one in now}
        for group in self.groups:
            group.drop_ended([states[cell.run_id] for cell in group.cells], MAX_FRUITLESS * (self.jobs or 1))
            waiting = [c for c in group.cells if states[c.run_id].state in ("waiting", "torn") and self.is_ready(c)]
            holders = {self.lease_owner(cell) for cell in group.cells if states[cell.run_id].state == "running"}
            group.had_work = bool(waiting)
            missing = len(waiting) + len(holders) - len(group.workers)
            if self.jobs is not None:
                missing = min(missing, self.jobs - sum(len(one.workers) for one in self.groups))
            if waiting and missing > 0 and time.monotonic() >= group.not_before:
                self.request_workers(group, missing)

    def request_workers(self, group: WorkerGroup, count: int) -> None:
        """Asks for workers; again later where the cluster refuses, which large ones do for minutes at a time."""
        try:
            group.workers += self.cluster.start(group.spec, count)
            group.refusals, group.granted = 0, True
        except InputError:
            group.refusals += 1
            if group.refusals > MAX_REFUSALS or not group.granted:
                raise
            group.not_before = time.monotonic() + LONGEST_WAIT_SECONDS

    def is_ready(self, cell: Cell) -> bool:
        """Whether a cell could start: its trunk has come to where it leaves, or has ended; nobody holds it."""
        trunk, run = cell.config.branch_of, self.folder / RUNS / cell.run_id
        waits = (
            trunk
            and not branching.has_branch_state(run, cell.config)
            and result_status(self.folder / RUNS / trunk) is None
        )
        return not waits and is_claimable(run)

    def lease_owner(self, cell: Cell) -> tuple[object, object]:
        """The runner that holds a cell."""
        lease = read_lease(self.folder / RUNS / cell.run_id / LEASE)
        return lease.get("host"), lease.get("pid")

    def request_stop(self) -> None:
        self.stops += 1

    def cancel(self) -> None:
        """Asks all workers to let their runs save, and waits."""
        workers = [worker for group in self.groups for worker in group.workers]
        self.cluster.cancel(workers)
        patience = time.monotonic() + GRACE_SECONDS
        while any(worker.state() != "ended" for worker in workers) and time.monotonic() < patience:
            time.sleep(WATCH_SECONDS)


def run_fleet(fleet: Fleet, reopened: Sequence[Cell]) -> int:
    """Brings up workers until every cell has ended, and shows how far they are. reopened: cells of which those that
    failed before are tried again. Returns 0, 1 when a run failed, 75 when stopped by a signal, the workers with it; a
    hang-up leaves them at work."""
    console = Console()
    fleet.cluster.check([group.spec.devices for group in fleet.groups])
    try:
        reopen_failed(fleet.folder, reopened)
    except OSError as error:
        raise InputError(f"{fleet.folder}: {error}; mend it, and the same command goes on") from None
    for group in fleet.groups:
        group.workers = list(fleet.cluster.workers(group.spec))
    left = sum(len(group.workers) for group in fleet.groups)
    print_line(
        console, f"{len(fleet.plan.cells)} runs" + f", {left} workers of an earlier command at work" * bool(left)
    )
    with handle_signals((signal.SIGTERM, signal.SIGINT), lambda number: fleet.request_stop()):
        if not console.is_terminal:
            return _watch(fleet, console, None)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            return _watch(fleet, console, live)


def _watch(fleet: Fleet, console: Console, live: Live | None) -> int:
    """Until all cells have ended, or a signal. A shared folder that does not answer for a while is waited for."""
    known: set[str] = set()
    read: dict[str, FinishedCell] = {}
    troubles = 0
    while True:
        try:
            now = read_sweep_progress(fleet.folder, fleet.plan, read, clock_skew(fleet.folder))
            ended = [one for one in now if one.state in ENDED_STATES]
            for one in ended:
                if one.run_id not in known:
                    known.add(one.run_id)
                    print_line(console, f"[{len(known)}/{len(now)}] {progress_line(one)}")
            if live:
                live.update(progress_board(fleet.plan, now), refresh=True)
            if len(ended) == len(now):
                return int(any(one.state == "failed" for one in now))
            if fleet.stops:
                print_line(console, "asking the workers to let their runs save")
                fleet.cancel()
                print_line(console, f"stopped, {len(now) - len(ended)} runs to go; the same command goes on")
                return STOPPED
            fleet.scale_up(now)
            troubles = 0
        except OSError as error:
            troubles += 1
            if troubles > MAX_REFUSALS:
                raise InputError(f"{fleet.folder}: {error}; mend it, and the same command goes on") from None
        time.sleep(WATCH_SECONDS)


def print_line(console: Console, text: str) -> None:
    """One line."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)
