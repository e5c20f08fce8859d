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
from sweeps.running import attempt_log, claims, fleet, progress
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
class StandInWorker:
    process: subprocess.Popen[bytes]

    def state(self) -> WorkerState:
        return "running" if self.process.poll() is None else "ended"

    def describe(self) -> str:
        return f"process {self.process.pid}"


@dataclass
class StandInCluster:
    """A cluster of processes. program: of a worker; asked: for how many, when."""

    step_seconds: float = 0.0
    program: str = WORKER
    started: list[StandInWorker] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)

    def check(self, devices: Sequence[int]) -> None:
        if max(devices) > 1:
            raise InputError("devices")

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        return [hand for hand in self.started if hand.state() != "ended"]

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        self.asked.append((work.devices, count))
        arguments = [sys.executable, "-c", self.program, pickle.dumps(work).hex(), str(self.step_seconds)]
        env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
        started = [StandInWorker(subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL)) for _ in range(count)]
        self.started += started
        return started

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        for hand in self.started:
            hand.process.terminate()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "WATCH_SECONDS", 0.1)


def make_fleet(folder: Path, cluster: StandInCluster, jobs: int | None = None) -> Fleet:
    return Fleet(folder, load_plan(folder), cluster, RetryBudgets(failures=1), jobs, members=1)


def uninterrupted_rows(tmp_path: Path, *habits: str) -> dict[str, dict]:
    stand_in_plan(tmp_path / "uninterrupted_rows", *habits)
    run_locally(tmp_path / "uninterrupted_rows", command=stand_in_command(), budgets=RetryBudgets(failures=1))
    return read_result_rows(tmp_path / "uninterrupted_rows")


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_workers_train_every_run_once(tmp_path, capsys):
    habits = ["", "crash", "", "diverge", "", ""]
    plan, cluster = stand_in_plan(tmp_path / "s", *habits), StandInCluster(0.05)
    assert run_fleet(make_fleet(tmp_path / "s", cluster, jobs=2), plan.cells) == 1
    assert read_result_rows(tmp_path / "s") == uninterrupted_rows(tmp_path, *habits)
    assert find_overlaps(tmp_path / "s") == []
    assert set(count_starts(tmp_path / "s").values()) == {1}
    assert cluster.asked[0] == (1, 2)
    assert all(count <= 2 for _, count in cluster.asked)
    assert "[6/6]" in capsys.readouterr().out
    assert run_fleet(make_fleet(tmp_path / "s", cluster), ()) == 1, "and again it finds that all has ended"
    assert len(cluster.started) == sum(count for _, count in cluster.asked)


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    folder, cluster = tmp_path / "s", StandInCluster(0.2)
    plan = stand_in_plan(folder, *[""] * 4)
    killer = threading.Thread(
        target=lambda: (wait_until(lambda: len(count_starts(folder)) == 2), cluster.started[0].process.kill())
    )
    killer.start()
    assert run_fleet(make_fleet(folder, cluster, jobs=2), plan.cells) == 0
    killer.join()
    assert cluster.started[0].process.returncode == -signal.SIGKILL
    assert len(cluster.started) > 2
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, *[""] * 4)
    assert find_overlaps(folder) == []


def test_no_worker_is_submitted_for_a_run_whose_lease_is_still_fresh(tmp_path, monkeypatch):
    """For a minute nobody may take over; workers that came would find nothing to do, and seem useless."""
    monkeypatch.setattr(claims, "LEASE_SECONDS", 2.0)
    folder, cluster = tmp_path / "s", StandInCluster()
    plan = stand_in_plan(folder, "")
    run = folder / RUNS / plan.cells[0].run_id
    run.mkdir(parents=True)
    (run / LEASE).write_text('{"nonce": "theirs", "machine": "another", "host": "another", "pid": 1}')
    monkeypatch.setattr(progress, "HEARTBEAT_TIMEOUT_SECONDS", 0.0)
    began = time.monotonic()
    assert run_fleet(make_fleet(folder, cluster, jobs=1), plan.cells) == 0
    assert cluster.asked == [(1, 1)]
    assert time.monotonic() - began > 2.0


def test_workers_of_an_earlier_command_are_found(tmp_path):
    folder, cluster = tmp_path / "s", StandInCluster(0.2)
    plan = stand_in_plan(folder, "", "")
    first = make_fleet(folder, cluster, jobs=2)
    cluster.start(first.worker_spec(1, 2), 2)
    assert run_fleet(make_fleet(folder, cluster, jobs=2), plan.cells) == 0
    assert cluster.asked == [(1, 2)]


def test_a_signal_stops_the_workers_and_the_same_command_goes_on(tmp_path):
    folder, cluster = tmp_path / "s", StandInCluster(0.3)
    plan = stand_in_plan(folder, "", "", "")
    stopper = threading.Thread(
        target=lambda: (wait_until(lambda: count_starts(folder)), os.kill(os.getpid(), signal.SIGTERM))
    )
    stopper.start()
    assert run_fleet(make_fleet(folder, cluster, jobs=1), plan.cells) == STOPPED
    stopper.join()
    assert [hand.process.poll() for hand in cluster.started] == [STOPPED]
    assert run_fleet(make_fleet(folder, StandInCluster(), jobs=2), plan.cells) == 0
    assert read_result_rows(folder) == uninterrupted_rows(tmp_path, "", "", "")


def test_workers_that_die_without_progress_end_the_sweep_with_one_line(tmp_path):
    folder, cluster = tmp_path / "s", StandInCluster(program="raise SystemExit(3)")
    plan = stand_in_plan(folder, "", "")
    with pytest.raises(InputError, match=rf"\b{fleet.MAX_FRUITLESS + 1}\b.*process \d+"):
        run_fleet(make_fleet(folder, cluster, jobs=1), plan.cells)
    assert len(cluster.started) == fleet.MAX_FRUITLESS + 1


def test_runs_too_large_for_the_cluster_are_refused_before_anything_starts(tmp_path):
    plan, cluster = stand_in_plan(tmp_path, ""), StandInCluster()
    with pytest.raises(InputError, match="devices"):
        run_fleet(Fleet(tmp_path, plan, cluster, RetryBudgets(), devices_per_run=2), plan.cells)
    assert cluster.asked == []


def test_jobs_limits_the_workers_of_all_groups_together(tmp_path):
    """Runs of one device and of two: one worker at a time, the one kind's after the other's."""
    sweep = stand_in_sweep("", "", "")
    cells = (*sweep.cells[:2], overlay(sweep.cells[2], {"mesh.data": 2}))
    plan = freeze_plan(
        tmp_path, build_plan(dataclasses.replace(sweep, cells=cells), WALL_TIME, lambda config: StandInCorpus())
    )
    cluster = StandInCluster(0.05)
    cluster.check = lambda devices: None
    together = []
    real = cluster.start

    def start(work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        together.append(len(cluster.workers(work)) + count)
        return real(work, count)

    cluster.start = start
    assert run_fleet(make_fleet(tmp_path, cluster, jobs=1), plan.cells) == 0
    assert {devices for devices, _ in cluster.asked} == {1, 2}
    assert set(together) == {1}


def test_a_worker_ends_when_its_cells_wait_for_a_trunk_of_another_group(tmp_path):
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


def test_a_worker_leaves_the_other_workers_their_share_of_the_runs_of_one_shape(tmp_path):
    """Runs of one shape train in one process, but not more of them than half of a worker's share of the work."""
    for total_slots, members in ((1, 4), (2, 2), (4, 1)):
        folder = tmp_path / str(total_slots)
        plan = stand_in_plan(folder, *[""] * 8)
        work = WorkerSpec(folder, total_slots=total_slots)
        assert fleet.make_worker_runner(work, slots=[Slot()], command=stand_in_command())() == 0
        first_attempt = attempt_log.read_attempts(folder / RUNS / plan.cells[0].run_id)[0]
        assert first_attempt["members"] == members


def test_workers_are_submitted_again_after_a_refusal(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "LONGEST_WAIT_SECONDS", 0.2)
    folder, cluster = tmp_path / "s", StandInCluster(0.05)
    plan = stand_in_plan(folder, "", "", "killed")
    real, refusals = cluster.start, []

    def start(work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        if cluster.started and len(refusals) < 3:
            refusals.append(count)
            raise InputError("unable to contact the controller")
        return real(work, 1)

    cluster.start = start
    assert run_fleet(make_fleet(folder, cluster, jobs=2), plan.cells) == 0
    assert len(refusals) == 3
    cluster.start = lambda work, count: (_ for _ in ()).throw(InputError("unable"))
    anew = stand_in_plan(tmp_path / "t", "")
    with pytest.raises(InputError, match="unable"):
        run_fleet(make_fleet(tmp_path / "t", cluster), anew.cells)
