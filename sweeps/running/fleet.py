"""The fleet: runs a sweep on a cluster. It starts as many workers as there is work, and shows how far the runs are.

A worker is a runner (runner.py) on a machine of the cluster; it trains the cells that need as many devices as it has.
So claims, budgets and checkpoints work on a cluster as they do on one machine. Any process may die: the fleet replaces
a worker, and the same command again starts a new fleet, which finds the workers that are left.
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
from scaling.record.run_folder import LEASE, PLAN, RUNS
from scaling.signals import handle_signals
from scaling.terminal import make_console
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

WATCH_SECONDS = 2.0
"""Seconds between two looks at the sweep and the workers."""
LONGEST_WAIT_SECONDS = 60.0
"""The longest wait before more workers are submitted, after useless ones or a refusal."""
MAX_FRUITLESS = 3
"""This many workers for each of `jobs` may end in a row, with work to do, without any progress of a run."""
MAX_REFUSALS = 20
"""How many times in a row the cluster may refuse workers, or the shared folder may fail."""


def train_command(*folders: Path) -> list[str]:
    """The command that trains the run in a folder, or the runs in several as a population, from their checkpoints."""
    verb = ["train", "--quiet", "--folder"] if len(folders) == 1 else ["population", "--quiet"]
    return [sys.executable, "-m", "scaling.cli", *verb, *map(str, folders)]


def make_worker_runner(
    work: WorkerSpec,
    launch: Launcher = start_process,
    slots: Sequence[Slot] | None = None,
    command: Command = train_command,
) -> Runner:
    """The runner of a worker. It trains the cells that need `work.devices` devices and do not have a result.

    It does not reopen failed runs, and it ends when other runners hold all that is left. slots: where it runs; all
    devices of this process as one slot when not given.
    """
    plan = load_plan(work.folder)
    cells = [cell for cell in plan.cells if cell.devices_needed(work.devices_per_run) == work.devices]
    return Runner(
        work.folder,
        plan,
        cells,
        command,
        slots or (whole_machine_slot(work.devices),),
        make_console(soft_wrap=True),
        launcher=launch,
        budgets=work.budgets,
        members=work.members,
        devices_per_run=work.devices_per_run,
        total_slots=work.total_slots,
        wait_for_others=False,
    )


def run_worker(work: WorkerSpec, launch: Launcher = start_process, slots: Sequence[Slot] | None = None) -> int:
    """Runs a worker until nothing is left for it. Returns 0, 1 when a run failed, STOPPED (75) after a signal."""
    runner = make_worker_runner(work, launch, slots)
    with runner.handling_signals():
        return runner()


@dataclass
class WorkerGroup:
    """The workers for runs of one number of devices.

    Args:
      spec: what each of them does.
      cells: the cells that they train.
      workers: those that have been submitted and have not ended, as far as is known.
      last_totals: cells that have ended, tokens trained on and attempts begun at the last look; more is progress.
      had_work: whether a cell could start at the last look.
      fruitless: workers that have ended in a row since the last progress, although there was work.
      granted: whether the cluster has ever accepted workers.
      refusals: how many times in a row it has refused them.
      not_before: when more workers may be submitted, in seconds of time.monotonic().
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
        """Removes workers that have ended, and counts those that ended without progress.

        now: the cells of the group. Raises InputError when more than `most` workers in a row made no progress.
        """
        ended = [worker for worker in self.workers if worker.state() == "ended"]
        self.workers = [worker for worker in self.workers if worker not in ended]
        finished = sum(cell.state in ENDED_STATES for cell in now)
        totals = finished, sum(cell.tokens for cell in now), sum(cell.attempts for cell in now)
        if totals != self.last_totals:
            self.fruitless, self.last_totals = 0, totals
        elif ended and self.had_work:
            self.fruitless += len(ended)
            # Twice as long after each useless worker: 4, 8, 16, ... seconds.
            self.not_before = time.monotonic() + min(WATCH_SECONDS * 2**self.fruitless, LONGEST_WAIT_SECONDS)
        if self.fruitless > most:
            raise InputError(
                f"{self.fruitless} workers ended one after the other, and no run made progress; read the output of the "
                f"last one: {ended[-1].describe()}"
            )


@dataclass
class Fleet:
    """All workers of one sweep, in one group for each number of devices that its cells need.

    jobs: most workers at once; None for as many as there are runs that could start. budgets, members, devices_per_run:
    see `WorkerSpec`. stops: signals received.
    """

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
        by_devices: dict[int, list[Cell]] = {}
        for cell in self.plan.cells:
            by_devices.setdefault(cell.devices_needed(self.devices_per_run), []).append(cell)
        self.groups = [
            WorkerGroup(self.worker_spec(devices, len(cells)), cells) for devices, cells in sorted(by_devices.items())
        ]

    def worker_spec(self, devices: int, cells: int) -> WorkerSpec:
        """The spec of the workers for runs of so many devices, of which there are `cells`."""
        total_slots = min(self.jobs or cells, cells)
        return WorkerSpec(
            self.folder.absolute(), devices, self.devices_per_run, self.members, self.budgets, total_slots
        )

    def scale_up(self, now: Sequence[CellProgress]) -> None:
        """Submits the workers that are missing. Raises InputError when they end one after the other without progress,
        or when the cluster refuses for minutes.

        now: all cells of the plan.
        """
        progress = {cell.run_id: cell for cell in now}
        for group in self.groups:
            group.drop_ended([progress[cell.run_id] for cell in group.cells], MAX_FRUITLESS * (self.jobs or 1))
            waiting = [c for c in group.cells if progress[c.run_id].state in ("waiting", "torn") and self.is_ready(c)]
            owners = {self.lease_owner(cell) for cell in group.cells if progress[cell.run_id].state == "running"}
            group.had_work = bool(waiting)
            # Wanted: a worker for each run that could start, beside the workers that train now. A worker that trains a
            # population owns several runs, so owners are counted, not running cells. Submitted workers that have not
            # begun are in group.workers too.
            missing = len(waiting) + len(owners) - len(group.workers)
            if self.jobs is not None:
                missing = min(missing, self.jobs - sum(len(other.workers) for other in self.groups))
            if waiting and missing > 0 and time.monotonic() >= group.not_before:
                self.request_workers(group, missing)

    def request_workers(self, group: WorkerGroup, count: int) -> None:
        """Submits workers. When a cluster refuses that has granted some before, tries again later: large clusters
        refuse for minutes at a time. Raises InputError when it has granted none, or has refused too often."""
        try:
            group.workers += self.cluster.start(group.spec, count)
            group.refusals, group.granted = 0, True
        except InputError:
            group.refusals += 1
            if group.refusals > MAX_REFUSALS or not group.granted:
                raise
            group.not_before = time.monotonic() + LONGEST_WAIT_SECONDS

    def is_ready(self, cell: Cell) -> bool:
        """Whether a cell could start now: its trunk has saved the state that it branches from, or has ended; and no
        runner holds it."""
        trunk, run = cell.config.branch_of, self.folder / RUNS / cell.run_id
        is_waiting = (
            trunk
            and not branching.has_branch_state(run, cell.config)
            and result_status(self.folder / RUNS / trunk) is None
        )
        return not is_waiting and is_claimable(run)

    def lease_owner(self, cell: Cell) -> tuple[object, object]:
        """(host, process id) of the runner that holds a cell."""
        lease = read_lease(self.folder / RUNS / cell.run_id / LEASE)
        return lease.get("host"), lease.get("pid")

    def request_stop(self) -> None:
        """Lets `run_fleet` cancel the workers and end."""
        self.stops += 1

    def cancel(self) -> None:
        """Asks all workers to save their runs and end, and waits for them, GRACE_SECONDS at most."""
        workers = [worker for group in self.groups for worker in group.workers]
        self.cluster.cancel(workers)
        deadline = time.monotonic() + GRACE_SECONDS
        while any(worker.state() != "ended" for worker in workers) and time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)


def run_fleet(fleet: Fleet, reopened: Sequence[Cell]) -> int:
    """Starts workers until every cell has ended, and shows how far the cells are.

    reopened: cells to train again if they failed before. Returns 0, 1 when a run failed, STOPPED (75) after SIGTERM or
    SIGINT, which stop the workers too. A hang-up (SIGHUP) ends this process and leaves the workers running.
    """
    console = make_console()
    fleet.cluster.check([group.spec.devices for group in fleet.groups])
    try:
        reopen_failed(fleet.folder, reopened)
    except OSError as error:
        raise InputError(f"{fleet.folder}: {error}; fix this and run the same command again") from None
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
    """Watches the sweep until all cells have ended or a signal comes. Waits while the shared folder does not answer."""
    reported: set[str] = set()
    known: dict[str, FinishedCell] = {}
    folder_errors = 0
    while True:
        try:
            if not (fleet.folder / PLAN).exists():  # The workers notice the same, and end.
                raise InputError(f"{fleet.folder}: the folder of the sweep is gone, or its {PLAN}; its workers end")
            now = read_sweep_progress(fleet.folder, fleet.plan, known, clock_skew(fleet.folder))
            ended = [cell for cell in now if cell.state in ENDED_STATES]
            for cell in ended:
                if cell.run_id not in reported:
                    reported.add(cell.run_id)
                    print_line(console, f"[{len(reported)}/{len(now)}] {progress_line(cell)}")
            if live:
                live.update(progress_board(fleet.plan, now), refresh=True)
            if len(ended) == len(now):
                return int(any(cell.state == "failed" for cell in now))
            if fleet.stops:
                print_line(console, "asking the workers to save their runs and end")
                fleet.cancel()
                print_line(console, f"stopped, {len(now) - len(ended)} runs to go; run the same command again to go on")
                return STOPPED
            fleet.scale_up(now)
            folder_errors = 0
        except OSError as error:
            folder_errors += 1
            if folder_errors > MAX_REFUSALS:
                raise InputError(f"{fleet.folder}: {error}; fix this and run the same command again") from None
        time.sleep(WATCH_SECONDS)


def print_line(console: Console, text: str) -> None:
    """Prints text as one line, however long, without markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)
