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

from scaling import branch
from scaling.exits import STOPPED
from scaling.strict import InputError
from sweeps.claim import LEASE, claimable, holder
from sweeps.executors import Cluster, Launch, Slot, Work, Worker
from sweeps.executors.local import start, whole
from sweeps.ledger import Budgets
from sweeps.outcome import reopen, result_status
from sweeps.plan import RUNS, Cell, Plan, load
from sweeps.progress import Ended, Progress, snapshot
from sweeps.runner import GRACE_SECONDS, Command, Runner
from sweeps.signals import heard
from sweeps.status import line, table

WATCH_SECONDS = 2.0
FRUITLESS = 3
"""Workers a place that may end one after the other without any run's having come further."""


def train_command(*folders: Path) -> list[str]:
    """The command that trains the run in a folder, from its checkpoint if there is one; of several, as one program."""
    verb = ["train", "--quiet", "--folder"] if len(folders) == 1 else ["population", "--quiet"]
    return [sys.executable, "-m", "scaling.cli", *verb, *map(str, folders)]


def hire(
    work: Work, launch: Launch = start, slots: Sequence[Slot] | None = None, command: Command = train_command
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
        list(slots or [whole(work.devices)]),
        Console(soft_wrap=True),
        launch,
        work.budgets,
        work.members,
        work.asked,
        work.crew,
        lingers=False,
    )


def work(work: Work, launch: Launch = start, slots: Sequence[Slot] | None = None) -> int:
    """What a worker does. Returns 0, 1 when a run failed, 75 when it was stopped."""
    runner = hire(work, launch, slots)
    with runner.listening():
        return runner()


@dataclass
class Fleet:
    """The workers of one sweep. fruitless: workers that ended in a row without any run's having come further."""

    folder: Path
    plan: Plan
    cluster: Cluster
    budgets: Budgets
    jobs: int | None = None
    members: int | None = None
    asked: int | None = None
    crews: dict[int, list[Worker]] = field(default_factory=dict)
    reached: tuple[int, int] = (-1, -1)
    fruitless: int = 0
    stops: int = 0

    def work(self, devices: int, cells: int) -> Work:
        """What the workers of one kind do."""
        crew = min(self.jobs or cells, cells)
        return Work(self.folder.absolute(), devices, self.asked, self.members, self.budgets, max(crew, 1))

    def tend(self, now: Sequence[Progress]) -> None:
        """Asks for the workers that are missing. Raises InputError when they end one after the other for nothing."""
        states = {one.run_id: one.state for one in now}
        self.count_fruitless(now)
        for devices, crew in self.crews.items():
            cells = [cell for cell in self.plan.cells if cell.demand(self.asked) == devices]
            waiting = [c for c in cells if states[c.run_id] in ("waiting", "torn") and self.ready(c)]
            holders = {self.holder(cell) for cell in cells if states[cell.run_id] == "running"}
            missing = min(self.jobs or len(cells), len(waiting) + len(holders)) - len(crew)
            if waiting and missing > 0:
                crew += self.cluster.start(self.work(devices, len(cells)), missing)

    def count_fruitless(self, now: Sequence[Progress]) -> None:
        """Lets go of workers that have ended, and judges whether they were of use."""
        reached = (sum(one.state in ("done", "diverged", "failed") for one in now), sum(one.tokens for one in now))
        ended = [worker for crew in self.crews.values() for worker in crew if worker.state() == "ended"]
        if reached != self.reached:
            self.fruitless, self.reached = 0, reached
        self.fruitless += len(ended)
        if self.fruitless > FRUITLESS * max(self.jobs or 1, 1):
            raise InputError(
                f"{self.fruitless} workers ended one after the other and no run came further: {ended[-1].describe()}"
            )
        for devices, crew in self.crews.items():
            self.crews[devices] = [worker for worker in crew if worker not in ended]

    def ready(self, cell: Cell) -> bool:
        """Whether a cell could start: its trunk has come to where it leaves, or has ended; nobody holds it."""
        trunk, run = cell.config.branch_of, self.folder / RUNS / cell.run_id
        waits = trunk and not branch.ready(run, cell.config) and result_status(self.folder / RUNS / trunk) is None
        return not waits and claimable(run)

    def holder(self, cell: Cell) -> tuple[object, object]:
        """The runner that holds a cell."""
        lease = holder(self.folder / RUNS / cell.run_id / LEASE)
        return lease.get("host"), lease.get("pid")

    def hear(self) -> None:
        self.stops += 1

    def cancel(self) -> None:
        """Asks all workers to let their runs save, and waits."""
        crew = [worker for crew in self.crews.values() for worker in crew]
        self.cluster.cancel(crew)
        patience = time.monotonic() + GRACE_SECONDS
        while any(worker.state() != "ended" for worker in crew) and time.monotonic() < patience:
            time.sleep(WATCH_SECONDS)


def make(fleet: Fleet, reopened: Sequence[Cell]) -> int:
    """Brings up workers until every cell has ended, and shows how far they are. reopened: cells of which those that
    failed before are tried again. Returns 0, 1 when a run failed, 75 when stopped by a signal, the workers with it; a
    hang-up leaves them at work."""
    console = Console()
    needs = sorted({cell.demand(fleet.asked) for cell in fleet.plan.cells})
    fleet.cluster.check(needs)
    reopen(fleet.folder, reopened)
    for devices in needs:
        cells = sum(cell.demand(fleet.asked) == devices for cell in fleet.plan.cells)
        fleet.crews[devices] = list(fleet.cluster.workers(fleet.work(devices, cells)))
    left = sum(map(len, fleet.crews.values()))
    say(console, f"{len(fleet.plan.cells)} runs" + f", {left} workers of an earlier command at work" * bool(left))

    with heard((signal.SIGTERM, signal.SIGINT), fleet.hear):
        if not console.is_terminal:
            return _watch(fleet, console, None)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            return _watch(fleet, console, live)


def _watch(fleet: Fleet, console: Console, live: Live | None) -> int:
    """Until all cells have ended, or a signal."""
    known: set[str] = set()
    read: dict[str, Ended] = {}
    while True:
        now = snapshot(fleet.folder, fleet.plan, read)
        ended = [one for one in now if one.state in ("done", "diverged", "failed")]
        for one in ended:
            if one.run_id not in known:
                say(console, f"[{len(known) + 1}/{len(now)}] {line(one)}")
                known.add(one.run_id)
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
        time.sleep(WATCH_SECONDS)


def say(console: Console, text: str) -> None:
    """One line."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)
