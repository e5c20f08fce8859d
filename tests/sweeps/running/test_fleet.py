"""A sweep on a cluster whose workers are processes here: they come, die and are replaced; the table is the same."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scaling.errors import InputError
from scaling.exit_codes import STOPPED
from scaling.record.run_folder import LEASE, RUNS
from sweeps.commands.run import run_locally
from sweeps.grids import Sweep, overlay
from sweeps.local.launch import Slot
from sweeps.planning.plan import build_plan, find_sweep, freeze_plan, load_plan
from sweeps.running import claims, fleet, progress
from sweeps.running.attempt_log import RetryBudgets
from sweeps.running.cluster import WorkerHandle, WorkerSpec, WorkerState
from sweeps.running.fleet import Fleet, run_fleet
from tests.conftest import ROOT
from tests.support.stand_in_sweep import (
    WALL_TIME,
    StandInCorpus,
    count_starts,
    find_overlaps,
    read_result_rows,
    stand_in_command,
    stand_in_plan,
    stand_in_sweep,
)

WORKER = (
    "import pickle, sys; from tests.support.stand_in_sweep import stand_in_command\n"
    "from sweeps.local.launch import Slot; from sweeps.running import fleet\n"
    "work = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
    "slots, command = [Slot(devices=work.devices)], stand_in_command(float(sys.argv[2]))\n"
    "runner = fleet.make_worker_runner(work, slots=slots, command=command)\n"
    "with runner.handling_signals(): sys.exit(runner())"
)


@dataclass
class Hand:
    process: subprocess.Popen[bytes]

    def state(self) -> WorkerState:
        return "running" if self.process.poll() is None else "ended"

    def describe(self) -> str:
        return f"process {self.process.pid}"


@dataclass
class Yard:
    """A cluster of processes. program: of a worker; asked: for how many, when."""

    step_seconds: float = 0.0
    program: str = WORKER
    hands: list[Hand] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)

    def check(self, devices: Sequence[int]) -> None:
        if max(devices) > 1:
            raise InputError("devices")

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        return [hand for hand in self.hands if hand.state() != "ended"]

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        self.asked.append((work.devices, count))
        arguments = [sys.executable, "-c", self.program, pickle.dumps(work).hex(), str(self.step_seconds)]
        env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
        started = [Hand(subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL)) for _ in range(count)]
        self.hands += started
        return started

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        for hand in self.hands:
            hand.process.terminate()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "WATCH_SECONDS", 0.1)


def of(folder: Path, yard: Yard, jobs: int | None = None) -> Fleet:
    return Fleet(folder, load_plan(folder), yard, RetryBudgets(failures=1), jobs, members=1)


def unbroken(tmp_path: Path, *habits: str) -> dict[str, dict]:
    stand_in_plan(tmp_path / "unbroken", *habits)
    run_locally(tmp_path / "unbroken", command=stand_in_command(), budgets=RetryBudgets(failures=1))
    return read_result_rows(tmp_path / "unbroken")


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    patience = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < patience, "waited in vain"
        time.sleep(0.02)


def test_workers_make_every_run_and_none_twice(tmp_path, capsys):
    habits = ["", "crash", "", "diverge", "", ""]
    plan, yard = stand_in_plan(tmp_path / "s", *habits), Yard(0.05)
    assert run_fleet(of(tmp_path / "s", yard, jobs=2), plan.cells) == 1
    assert read_result_rows(tmp_path / "s") == unbroken(tmp_path, *habits)
    assert find_overlaps(tmp_path / "s") == []
    assert set(count_starts(tmp_path / "s").values()) == {1}
    assert yard.asked[0] == (1, 2)
    assert all(count <= 2 for _, count in yard.asked)
    assert "[6/6]" in capsys.readouterr().out
    assert run_fleet(of(tmp_path / "s", yard), ()) == 1, "and again it finds that all has ended"
    assert len(yard.hands) == sum(count for _, count in yard.asked)


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    folder, yard = tmp_path / "s", Yard(0.2)
    plan = stand_in_plan(folder, *[""] * 4)
    killer = threading.Thread(
        target=lambda: (until(lambda: len(count_starts(folder)) == 2), yard.hands[0].process.kill())
    )
    killer.start()
    assert run_fleet(of(folder, yard, jobs=2), plan.cells) == 0
    killer.join()
    assert yard.hands[0].process.returncode == -signal.SIGKILL
    assert len(yard.hands) > 2
    assert read_result_rows(folder) == unbroken(tmp_path, *[""] * 4)
    assert find_overlaps(folder) == []


def test_no_worker_is_asked_for_what_a_dead_machine_still_seems_to_hold(tmp_path, monkeypatch):
    """For a minute nobody may take over; workers that came would find nothing to do, and seem useless."""
    monkeypatch.setattr(claims, "LEASE_SECONDS", 2.0)
    folder, yard = tmp_path / "s", Yard()
    plan = stand_in_plan(folder, "")
    run = folder / RUNS / plan.cells[0].run_id
    run.mkdir(parents=True)
    (run / LEASE).write_text('{"nonce": "theirs", "machine": "another", "host": "another", "pid": 1}')
    monkeypatch.setattr(progress, "HEARTBEAT_TIMEOUT_SECONDS", 0.0)
    began = time.monotonic()
    assert run_fleet(of(folder, yard, jobs=1), plan.cells) == 0
    assert yard.asked == [(1, 1)]
    assert time.monotonic() - began > 2.0


def test_workers_of_an_earlier_command_are_found(tmp_path):
    folder, yard = tmp_path / "s", Yard(0.2)
    plan = stand_in_plan(folder, "", "")
    first = of(folder, yard, jobs=2)
    yard.start(first.worker_spec(1, 2), 2)
    assert run_fleet(of(folder, yard, jobs=2), plan.cells) == 0
    assert yard.asked == [(1, 2)]


def test_a_signal_stops_the_workers_and_the_same_command_goes_on(tmp_path):
    folder, yard = tmp_path / "s", Yard(0.3)
    plan = stand_in_plan(folder, "", "", "")
    stopper = threading.Thread(
        target=lambda: (until(lambda: count_starts(folder)), os.kill(os.getpid(), signal.SIGTERM))
    )
    stopper.start()
    assert run_fleet(of(folder, yard, jobs=1), plan.cells) == STOPPED
    stopper.join()
    assert [hand.process.poll() for hand in yard.hands] == [STOPPED]
    assert run_fleet(of(folder, Yard(), jobs=2), plan.cells) == 0
    assert read_result_rows(folder) == unbroken(tmp_path, "", "", "")


def test_workers_that_die_for_nothing_end_the_sweep_with_one_line(tmp_path):
    folder, yard = tmp_path / "s", Yard(program="raise SystemExit(3)")
    plan = stand_in_plan(folder, "", "")
    with pytest.raises(InputError, match=rf"\b{fleet.MAX_FRUITLESS + 1}\b.*process \d+"):
        run_fleet(of(folder, yard, jobs=1), plan.cells)
    assert len(yard.hands) == fleet.MAX_FRUITLESS + 1


def test_what_the_cluster_cannot_hold_is_said_before_anything_starts(tmp_path):
    plan, yard = stand_in_plan(tmp_path, ""), Yard()
    with pytest.raises(InputError, match="devices"):
        run_fleet(Fleet(tmp_path, plan, yard, RetryBudgets(), devices_per_run=2), plan.cells)
    assert yard.asked == []


def test_jobs_are_of_all_kinds_together(tmp_path):
    """Runs of one device and of two: one worker at a time, the one kind's after the other's."""
    sweep = stand_in_sweep("", "", "")
    cells = (*sweep.cells[:2], overlay(sweep.cells[2], {"mesh.data": 2}))
    plan = freeze_plan(
        tmp_path, build_plan(dataclasses.replace(sweep, cells=cells), WALL_TIME, lambda config: StandInCorpus())
    )
    yard = Yard(0.05)
    yard.check = lambda devices: None
    together = []
    real = yard.start

    def start(work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        together.append(len(yard.workers(work)) + count)
        return real(work, count)

    yard.start = start
    assert run_fleet(of(tmp_path, yard, jobs=1), plan.cells) == 0
    assert {devices for devices, _ in yard.asked} == {1, 2}
    assert set(together) == {1}


def test_a_worker_leaves_what_waits_for_a_trunk_of_another_kind(tmp_path):
    """It would hold its machine for nothing; the trunk's own worker may be waiting for it."""
    base = overlay(find_sweep("smoke").cells[3], {"data.corpus": "walk"})
    cells = (
        overlay(base, {"tokens": 32_768, "name": "trunk", "mesh.data": 2}),
        overlay(base, {"tokens": 8_192, "name": "branch"}),
    )
    made = build_plan(Sweep("trunks", cells, ""), WALL_TIME, lambda config: StandInCorpus())
    freeze_plan(tmp_path, made)
    runner = fleet.make_worker_runner(WorkerSpec(tmp_path, devices=1), slots=[Slot()], command=stand_in_command())
    assert runner() == 0
    assert count_starts(tmp_path) == {}


def test_a_cluster_that_refuses_for_a_while_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "LONGEST_WAIT_SECONDS", 0.2)
    folder, yard = tmp_path / "s", Yard(0.05)
    plan = stand_in_plan(folder, "", "", "killed")
    real, refusals = yard.start, []

    def start(work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        if yard.hands and len(refusals) < 3:
            refusals.append(count)
            raise InputError("unable to contact the controller")
        return real(work, 1)

    yard.start = start
    assert run_fleet(of(folder, yard, jobs=2), plan.cells) == 0
    assert len(refusals) == 3
    yard.start = lambda work, count: (_ for _ in ()).throw(InputError("unable"))
    anew = stand_in_plan(tmp_path / "t", "")
    with pytest.raises(InputError, match="unable"):
        run_fleet(of(tmp_path / "t", yard), anew.cells)
