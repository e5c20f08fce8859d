"""Sweeps on a real Ray cluster of two raylets: one loses all that a cluster can lose, and its table is the one that the
same sweep leaves on this machine in peace. A run over two hosts is stopped, and loses one of its processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from scaling.config.run_config import MeshConfig, RunConfig
from scaling.exit_codes import STOPPED
from scaling.record.run_folder import LEASE, RUNS
from sweeps.planning.plan import Plan
from tests.cluster.ray_cluster import MARK, RayCluster, Unavailable, ray_cluster
from tests.cluster.watching import (
    PLAIN,
    collected,
    frozen,
    kinds,
    parent,
    processes,
    reached,
    steps,
    unsaved,
    until,
    variable,
    workers_found,
)
from tests.conftest import scaling

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LONG, SHORT, MANY, PATIENCE = 800, 24, 4, 300.0
AGAIN = 24
"""Steps that an attempt may make once more: checkpoints lie 8 apart and are written beside the training."""


@pytest.fixture(scope="module")
def ray() -> Iterator[RayCluster]:
    """Two hosts of a core each. Leaves no process behind."""
    try:
        with ray_cluster() as cluster:
            yield cluster
    except Unavailable as why:
        pytest.skip(str(why))
    until(lambda: not started_by(cluster), "every process of the cluster has gone", PATIENCE)


def started_by(cluster: RayCluster, *words: str) -> list[int]:
    """Processes of a cluster in whose argv all words are, Ray's own and ours."""
    return [pid for pid in processes(*words) if variable(pid, MARK) == cluster.folder]


@contextlib.contextmanager
def running(ray: RayCluster, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command at work, what it says in command.txt."""
    command = [sys.executable, "-m", "scaling.cli", "sweep", "run", folder.name, "--out", str(folder.parent)]
    with (folder / "command.txt").open("ab") as said:
        process = subprocess.Popen(
            [*command, "--members", "1", "ray", "--address", ray.address],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=os.environ | PLAIN,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def said(folder: Path) -> str:
    return (folder / "command.txt").read_text()


def trainer(runs: list[Path], past: int) -> tuple[int, Path]:
    """A process that trains one of the runs, which is past a step and not near its end."""
    found: list[tuple[int, Path]] = []

    def look() -> bool:
        found.extend(
            (pid, run) for run in runs if past < reached(run) < LONG - 100 for pid in processes("train", str(run))
        )
        return bool(found)

    until(look, f"one of {len(runs)} runs past step {past}", PATIENCE)
    return found[0]


@dataclasses.dataclass(frozen=True)
class Storm:
    """A sweep after its commands have ended. victims: the run that was at work when a thing was killed under it. codes:
    of the command that was told to stop, and of the last. left: what the one told to stop left: leases, processes."""

    folder: Path
    victims: dict[str, Path]
    codes: tuple[int, int]
    left: list[str]


def in_plan(folder: Path, plan: Plan) -> list[Path]:
    return [folder / RUNS / cell.run_id for cell in plan.cells]


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory, tiny: RunConfig) -> Path:
    """Eight runs on this machine."""
    folder = tmp_path_factory.mktemp("peace") / "eight"
    frozen(folder, unsaved(tiny), *[LONG] * MANY, *[SHORT] * (8 - MANY))
    done = scaling("sweep", "run", "eight", "--out", folder.parent, "--jobs", 2, **PLAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def storm(ray: RayCluster, tmp_path_factory: pytest.TempPathFactory, tiny: RunConfig) -> Storm:
    """The same eight on the cluster. SIGKILL of a run, of an actor, of a host, of the command; SIGTERM to the command
    that went on, as soon as it sees the workers that were left; and a third that ends it. Strikes on runs come first
    and one at once after the other, or a fast machine would have no run left to strike."""
    folder = tmp_path_factory.mktemp("storm") / "eight"
    runs = in_plan(folder, frozen(folder, tiny, *[LONG] * MANY, *[SHORT] * (8 - MANY)))
    long, victims = runs[:MANY], {}

    with running(ray, folder) as command:
        process, victims["run"] = trainer(long, 20)
        os.kill(process, signal.SIGKILL)
        process, victims["actor"] = trainer([run for run in long if run not in victims.values()], 20)
        os.kill(parent(parent(process)), signal.SIGKILL)
        process, victims["host"] = trainer([run for run in long if run not in victims.values()], 20)
        ray.lose(parent(parent(parent(process))))
        command.kill()
        command.wait()
    ray.add()
    with running(ray, folder) as command:
        until(lambda: workers_found(folder, 8), "the workers that were left", PATIENCE)
        command.terminate()
        stopped = command.wait(PATIENCE)
    left = [str(path) for path in (folder / RUNS).glob(f"*/{LEASE}")]
    left += [f"process {pid}" for run in runs for pid in processes("train", str(run))]
    with running(ray, folder) as command:
        code = command.wait(PATIENCE)
    return Storm(folder, victims, (stopped, code), left)


def test_the_sweep_ends_and_its_table_is_that_of_this_machine(storm: Storm, peace: Path) -> None:
    assert storm.codes[1] == 0, said(storm.folder)
    ours, theirs = collected(storm.folder), collected(peace)
    assert len(theirs) == theirs["loss"].nunique() == 8
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.parametrize("what", ["actor", "host", "run"])
def test_what_was_killed_under_a_run_cost_it_few_steps(storm: Storm, what: str) -> None:
    run = storm.victims[what]
    until(lambda: kinds(run)[-1] == "done", "its worker notes that it ended", PATIENCE)
    ends, made = kinds(run), steps(run)
    assert len(ends) >= 2
    assert ("preempted" in ends) == (what == "run")
    assert made.count(1) == 1
    assert LONG <= len(made) <= LONG + AGAIN * (len(ends) - 1)


def test_a_command_that_is_told_to_stop_leaves_nothing_at_work(storm: Storm, ray: RayCluster) -> None:
    assert storm.codes[0] == STOPPED, said(storm.folder)
    assert storm.left == []
    until(lambda: not started_by(ray, "-m"), "no worker is left of a sweep that has ended", PATIENCE)


def test_a_run_over_two_hosts_is_stopped_and_loses_a_process(ray: RayCluster, tmp_path: Path, tiny: RunConfig) -> None:
    """What ends one process ends all, and all go on together from their last checkpoint."""
    folder = tmp_path / "two_hosts"
    (run,) = in_plan(folder, frozen(folder, dataclasses.replace(tiny, mesh=MeshConfig(data=2)), 192))
    with running(ray, folder) as command:
        until(lambda: reached(run) >= 10, "step 10", PATIENCE)
        (launcher,) = processes("sweeps.clusters.ray_multihost", str(run))
        os.kill(launcher, signal.SIGTERM)
        until(lambda: kinds(run), "both processes have saved", PATIENCE)
        assert steps(run) == list(range(1, reached(run) + 1))
        stopped = reached(run)
        until(lambda: reached(run) >= stopped + 10, "10 steps more", PATIENCE)
        ranks = {variable(pid, "JAX_PROCESS_ID"): pid for pid in processes("scaling.cli", "train", str(run))}
        assert {parent(parent(pid)) for rank, pid in ranks.items() if rank} == set(ray.raylets)
        os.kill(ranks["1"], signal.SIGKILL)
        code = command.wait(PATIENCE)
    assert code == 0, said(folder)
    until(lambda: kinds(run)[2:] == ["done"], "its worker notes that it ended", PATIENCE)
    assert kinds(run)[0] == "preempted"
    assert kinds(run)[1] in ("lost", "preempted")
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert 192 <= len(steps(run)) <= 192 + AGAIN
    assert set(steps(run)) == set(range(1, 193))


def test_a_host_that_does_not_see_the_sweep_is_one_line(ray: RayCluster, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from sweeps.running.cluster import WorkerSpec; from sweeps.clusters.ray_cluster import Ray\n"
        "folder = Path(sys.argv[2]) / 'nowhere'; cluster = Ray(sys.argv[1]).cluster(folder); cluster.check([1])\n"
        "(worker,) = cluster.start(WorkerSpec(folder), 1)\n"
        "while worker.state() != 'ended': time.sleep(.1)\n"
        "print(worker.describe())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, ray.address, tmp_path],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert re.search(f"{re.escape(str(tmp_path))}/nowhere/plan.json.*--out", told.stdout)


def test_more_devices_than_there_are_is_one_line(ray: RayCluster, tmp_path: Path, tiny: RunConfig) -> None:
    frozen(tmp_path / "bad", dataclasses.replace(tiny, mesh=MeshConfig(data=3)), 8)
    done = scaling("sweep", "run", "bad", "--out", tmp_path, "ray", "--address", ray.address, **PLAIN)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(r"error: .*devices.*\b3\b.*\b2\b.*\b0\b.*\b2\b", done.stderr)
    assert done.stderr.count("\n") == 1
