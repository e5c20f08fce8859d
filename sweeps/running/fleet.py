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
from scaling.training import branching
from sweeps.local.launch import Launcher, Slot
from sweeps.local.processes import start_process, whole_machine_slot
from sweeps.local.signals import handle_signals
from sweeps.planning.plan import RUNS, Cell, Plan, load
from sweeps.running.attempt_log import Budgets
from sweeps.running.board import line, table
from sweeps.running.claims import LEASE, ahead, claimable, holder
from sweeps.running.cluster import Cluster, Work, Worker
from sweeps.running.outcomes import reopen, result_status
from sweeps.running.progress import ENDED, Ended, Progress, snapshot
from sweeps.running.runner import Command, Runner
from sweeps.running.running_attempts import GRACE_SECONDS

WATCH_SECONDS, LONGEST_SECONDS = 2.0, 60.0
FRUITLESS = 3
"""Workers a place that may end one after the other, with work to do, without any run's having come further."""
REFUSALS = 20
"""Times in a row that the cluster or the shared folder may fail."""


def train_command(*folders: Path) -> list[str]:
    """The command that trains the run in a folder, from its checkpoint if there is one; of several, as one program."""
    verb = ["train", "--quiet", "--folder"] if len(folders) == 1 else ["population", "--quiet"]
    return [sys.executable, "-m", "scaling.cli", *verb, *map(str, folders)]


def hire(
    work: Work, launch: Launcher = start_process, slots: Sequence[Slot] | None = None, command: Command = train_command
) -> Runner:
    """A worker's runner: over the cells of its kind, in all that this process was given unless `slots` says. It tries
    no run again that has failed, and ends when others hold all that is left. Call it; it returns an exit code."""
    plan = load(work.folder)
    cells = [cell for cell in plan.cells if cell.demand(work.asked) == work.devices]
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
        work.asked,
        work.crew,
        lingers=False,
    )


def work(work: Work, launch: Launcher = start_process, slots: Sequence[Slot] | None = None) -> int:
    """What a worker does. Returns 0, 1 when a run failed, 75 when it was stopped."""
    runner = hire(work, launch, slots)
    with runner.listening():
        return runner()


@dataclass
class Crew:
    """The workers of one kind.

    work: what they do. cells: those it is about. reached: how far these were at the last look: cells that ended, tokens
    trained on, attempts begun. wanted: whether there was something to do then. fruitless: workers that have ended
    since, in a row, though there was. granted, refused: whether the cluster ever gave workers, and requests in a row
    that it refused. not_before: monotonic seconds before which nobody more is asked for.
    """

    work: Work
    cells: Sequence[Cell]
    workers: list[Worker] = field(default_factory=list)
    reached: tuple[int, int, int] = (-1, -1, -1)
    wanted: bool = False
    fruitless: int = 0
    granted: bool = False
    refused: int = 0
    not_before: float = 0.0

    def dismiss(self, now: Sequence[Progress], most: int) -> None:
        """Lets go of workers that have ended, and judges whether they were of use. Raises InputError when more than
        `most` were of none."""
        ended = [worker for worker in self.workers if worker.state() == "ended"]
        self.workers = [worker for worker in self.workers if worker not in ended]
        finished = sum(one.state in ENDED for one in now)
        reached = finished, sum(one.tokens for one in now), sum(one.attempts for one in now)
        if reached != self.reached:
            self.fruitless, self.reached = 0, reached
        elif ended and self.wanted:
            self.fruitless += len(ended)
            self.not_before = time.monotonic() + min(WATCH_SECONDS * 2**self.fruitless, LONGEST_SECONDS)
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
    budgets: Budgets
    jobs: int | None = None
    members: int | None = None
    asked: int | None = None
    crews: list[Crew] = field(init=False)
    stops: int = 0

    def __post_init__(self) -> None:
        kinds: dict[int, list[Cell]] = {}
        for cell in self.plan.cells:
            kinds.setdefault(cell.demand(self.asked), []).append(cell)
        self.crews = [Crew(self.work(devices, len(cells)), cells) for devices, cells in sorted(kinds.items())]

    def work(self, devices: int, cells: int) -> Work:
        """What the workers of one kind do."""
        crew = min(self.jobs or cells, cells)
        return Work(self.folder.absolute(), devices, self.asked, self.members, self.budgets, crew)

    def tend(self, now: Sequence[Progress]) -> None:
        """Asks for the workers that are missing. Raises InputError when they end one after the other for nothing, or
        when the cluster refuses for minutes on end."""
        states = {one.run_id: one for one in now}
        for crew in self.crews:
            crew.dismiss([states[cell.run_id] for cell in crew.cells], FRUITLESS * (self.jobs or 1))
            waiting = [c for c in crew.cells if states[c.run_id].state in ("waiting", "torn") and self.ready(c)]
            holders = {self.holder(cell) for cell in crew.cells if states[cell.run_id].state == "running"}
            crew.wanted = bool(waiting)
            missing = len(waiting) + len(holders) - len(crew.workers)
            if self.jobs is not None:
                missing = min(missing, self.jobs - sum(len(one.workers) for one in self.crews))
            if waiting and missing > 0 and time.monotonic() >= crew.not_before:
                self.ask(crew, missing)

    def ask(self, crew: Crew, count: int) -> None:
        """Asks for workers; again later where the cluster refuses, which large ones do for minutes at a time."""
        try:
            crew.workers += self.cluster.start(crew.work, count)
            crew.refused, crew.granted = 0, True
        except InputError:
            crew.refused += 1
            if crew.refused > REFUSALS or not crew.granted:
                raise
            crew.not_before = time.monotonic() + LONGEST_SECONDS

    def ready(self, cell: Cell) -> bool:
        """Whether a cell could start: its trunk has come to where it leaves, or has ended; nobody holds it."""
        trunk, run = cell.config.branch_of, self.folder / RUNS / cell.run_id
        waits = (
            trunk
            and not branching.has_branch_state(run, cell.config)
            and result_status(self.folder / RUNS / trunk) is None
        )
        return not waits and claimable(run)

    def holder(self, cell: Cell) -> tuple[object, object]:
        """The runner that holds a cell."""
        lease = holder(self.folder / RUNS / cell.run_id / LEASE)
        return lease.get("host"), lease.get("pid")

    def hear(self) -> None:
        self.stops += 1

    def cancel(self) -> None:
        """Asks all workers to let their runs save, and waits."""
        workers = [worker for crew in self.crews for worker in crew.workers]
        self.cluster.cancel(workers)
        patience = time.monotonic() + GRACE_SECONDS
        while any(worker.state() != "ended" for worker in workers) and time.monotonic() < patience:
            time.sleep(WATCH_SECONDS)


def make(fleet: Fleet, reopened: Sequence[Cell]) -> int:
    """Brings up workers until every cell has ended, and shows how far they are. reopened: cells of which those that
    failed before are tried again. Returns 0, 1 when a run failed, 75 when stopped by a signal, the workers with it; a
    hang-up leaves them at work."""
    console = Console()
    fleet.cluster.check([crew.work.devices for crew in fleet.crews])
    try:
        reopen(fleet.folder, reopened)
    except OSError as error:
        raise InputError(f"{fleet.folder}: {error}; mend it, and the same command goes on") from None
    for crew in fleet.crews:
        crew.workers = list(fleet.cluster.workers(crew.work))
    left = sum(len(crew.workers) for crew in fleet.crews)
    say(console, f"{len(fleet.plan.cells)} runs" + f", {left} workers of an earlier command at work" * bool(left))
    with handle_signals((signal.SIGTERM, signal.SIGINT), fleet.hear):
        if not console.is_terminal:
            return _watch(fleet, console, None)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            return _watch(fleet, console, live)


def _watch(fleet: Fleet, console: Console, live: Live | None) -> int:
    """Until all cells have ended, or a signal. A shared folder that does not answer for a while is waited for."""
    known: set[str] = set()
    read: dict[str, Ended] = {}
    troubles = 0
    while True:
        try:
            now = snapshot(fleet.folder, fleet.plan, read, ahead(fleet.folder))
            ended = [one for one in now if one.state in ENDED]
            for one in ended:
                if one.run_id not in known:
                    known.add(one.run_id)
                    say(console, f"[{len(known)}/{len(now)}] {line(one)}")
            if live:
                live.update(table(fleet.plan, now), refresh=True)
            if len(ended) == len(now):
                return int(any(one.state == "failed" for one in now))
            if fleet.stops:
                say(console, "asking the workers to let their runs save")
                fleet.cancel()
                say(console, f"stopped, {len(now) - len(ended)} runs to go; the same command goes on")
                return STOPPED
            fleet.tend(now)
            troubles = 0
        except OSError as error:
            troubles += 1
            if troubles > REFUSALS:
                raise InputError(f"{fleet.folder}: {error}; mend it, and the same command goes on") from None
        time.sleep(WATCH_SECONDS)


def say(console: Console, text: str) -> None:
    """One line."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)
