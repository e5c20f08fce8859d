"""Sweeps on a real SLURM of two nodes: one is struck by all that a cluster has for it, and its table is the one that
the same sweep leaves on this machine in peace. A run over two nodes loses one of its processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from scaling.config.run_config import MeshConfig, RunConfig
from scaling.record.run_folder import RUNS, read_metrics
from sweeps.local import processes as local
from sweeps.local.launch import ProcessHandle, Slot
from sweeps.planning.plan import Plan
from sweeps.running import attempt_log
from sweeps.running.fleet import train_command
from sweeps.running.outcomes import prepare_run
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.watching import (
    PLAIN,
    collected,
    frozen,
    kinds,
    parent,
    reached,
    steps,
    unsaved,
    until,
    variable,
    workers_found,
)
from tests.conftest import scaling

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LONG, SHORT, PATIENCE = 600, 32, 300.0


def idle(slurm: SlurmCluster) -> None:
    """Waits for the workers: the command ends with the last result, which they have yet to note."""
    until(lambda: not slurm.run("squeue", "--noheader").stdout, "no job left")


def verb(slurm: SlurmCluster, folder: Path, *flags: str) -> list[str]:
    """The argv of `scaling sweep run` inside."""
    named = [f"{name}={value}" for name, value in PLAIN.items()]
    command = [sys.executable, "-m", "scaling.cli", "sweep", "run", folder.name, "--out", str(folder.parent)]
    return slurm.inside("env", *named, *command, "--members", "1", *flags)


@contextlib.contextmanager
def running(slurm: SlurmCluster, folder: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command at work, what it says in command.txt. An end of the test before its own is that of the jobs, too."""
    with (folder / "command.txt").open("ab") as said:
        process = subprocess.Popen(verb(slurm, folder, *flags), stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield process
    except BaseException:
        slurm.run("scancel", "--user=root")
        raise
    finally:
        for pid in processes("sweep", str(folder.parent)):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def processes(*words: str) -> list[int]:
    """Processes of Python in whose argv all words are, as the host counts them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            argv = path.read_text().split("\0")
            if argv[0] == sys.executable and set(words) <= set(argv):
                found.append(int(path.parent.name))
    return found


@dataclasses.dataclass(frozen=True)
class Storm:
    """A sweep after its command has ended with `code`. preempted, killed, orphaned: steps that the long runs had made
    when the machines were taken, when run 0 was killed, when the worker of run 1 was."""

    folder: Path
    plan: Plan
    code: int
    seconds: float
    preempted: tuple[int, int]
    killed: int
    orphaned: int

    def run(self, index: int) -> Path:
        return self.folder / RUNS / self.plan.cells[index].run_id


@dataclasses.dataclass(frozen=True)
class Peace:
    """A sweep whose runs are made by one process."""

    folder: Path
    process: ProcessHandle


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory, tiny: RunConfig) -> Iterator[Peace]:
    """Eight runs on this machine, while the storm waits for SLURM."""
    folder = tmp_path_factory.mktemp("peace") / "eight"
    plan = frozen(folder, unsaved(tiny), LONG, LONG, *[SHORT] * 6)
    runs = {folder / RUNS / cell.run_id: cell for cell in plan.cells}
    for run, cell in runs.items():
        run.mkdir(parents=True)
        prepare_run(run, cell)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLAIN.items():
            patch.setenv(name, value)
        process = local.start_process(train_command(*runs), next(iter(runs)), Slot(cores=local.available_cores()[-1:]))
    yield Peace(folder, process)
    process.kill()


@pytest.fixture(scope="module")
def storm(peace: Peace, slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory, tiny: RunConfig) -> Storm:
    """The same eight by two workers, of which the command is killed and given again: a job of higher priority takes
    both nodes, then a run is killed, then a worker."""
    folder, began = tmp_path_factory.mktemp("storm") / "eight", time.monotonic()
    plan = frozen(folder, tiny, LONG, LONG, *[SHORT] * 6)
    runs = [folder / RUNS / cell.run_id for cell in plan.cells[:2]]

    flags = ("--jobs", "2", "slurm", "--partition", "low")
    with running(slurm, folder, *flags):
        until(lambda: slurm.run("squeue", "--noheader", "--states=RUNNING").stdout.count("\n") == 2, "two workers")
    with running(slurm, folder, *flags) as command:
        until(lambda: workers_found(folder, 8) == [2], "the command again")
        held: dict[Path, int] = {}
        until(lambda: all(hold(run, 40, held) for run in runs), "both long runs held at step 40")
        taken = slurm.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
        assert taken.returncode == 0, taken.stderr
        until(lambda: all(let_go_when_told(pid) for pid in held.values()), "both long runs told to stop")
        until(lambda: all(attempt_log.count_outcomes(run)["stopped"] for run in runs), "both long runs stopped")
        preempted = reached(runs[0]), reached(runs[1])
        held.clear()
        until(lambda: hold(runs[0], preempted[0] + 40, held) & hold(runs[1], preempted[1] + 80, held), "both going on")
        killed, orphaned = reached(runs[0]), reached(runs[1])
        os.kill(held[runs[0]], signal.SIGKILL)
        os.kill(parent(held[runs[1]]), signal.SIGKILL)
        os.kill(held[runs[1]], signal.SIGCONT)
        code = command.wait(PATIENCE)
    idle(slurm)
    return Storm(folder, plan, code, time.monotonic() - began, preempted, killed, orphaned)


def hold(run: Path, step: int, held: dict[Path, int]) -> bool:
    """Whether a run's process is held, as it is from `step` on: on a quiet machine a run may otherwise be over before
    SLURM has made up its mind."""
    if run not in held and reached(run) >= step:
        (held[run],) = processes("train", str(run))
        os.kill(held[run], signal.SIGSTOP)
    return run in held


def let_go_when_told(pid: int) -> bool:
    """Whether a held process has its SIGTERM; from then on it is no longer held."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    told = int(status["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1 or not status["State"].startswith("T")
    if told:
        os.kill(pid, signal.SIGCONT)
    return bool(told)


def test_the_sweep_ends_and_its_table_is_that_of_this_machine(storm: Storm, peace: Peace) -> None:
    assert storm.code == 0, (storm.folder / "command.txt").read_text()
    until(lambda: peace.process.poll() is not None, "the same eight in peace")
    ours, theirs = collected(storm.folder), collected(peace.folder)
    assert len(theirs) == theirs["loss"].nunique() == 8
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_a_preempted_run_goes_on_where_it_was(storm: Storm) -> None:
    for index, before in enumerate(storm.preempted):
        assert kinds(storm.run(index))[0] == "stopped"
        made = steps(storm.run(index))
        assert made[: before + 1] == list(range(1, before + 2)), "no step was made twice, the run saved as it was told"


def test_a_killed_run_goes_on_from_its_checkpoint(storm: Storm) -> None:
    assert kinds(storm.run(0)) == ["stopped", "preempted", "done"]
    again = [step for step, then in zip(steps(storm.run(0)), steps(storm.run(0))[1:], strict=False) if then <= step]
    assert len(again) == 1
    assert storm.killed <= again[0]
    assert min(steps(storm.run(0))[again[0] :]) > storm.preempted[0] + 1, "not from the checkpoint of the preemption"


def test_a_killed_worker_is_replaced_and_its_run_goes_on(storm: Storm) -> None:
    assert kinds(storm.run(1)) == ["stopped", "lost", "done"]
    assert steps(storm.run(1)).count(1) == 1
    numbers = {path.name.split("_submitted")[0] for path in (storm.folder / "slurm").glob("*_submitted.pkl")}
    assert len(numbers) == 3, "two workers, and one in the place of the killed"


def test_a_run_over_two_nodes_loses_a_process(slurm: SlurmCluster, tmp_path: Path, tiny: RunConfig) -> None:
    """Argument-less jax.distributed.initialize under srun. Stopped with the command, all processes have saved; the loss
    of one is the loss of all, which go on from the checkpoint."""
    folder = tmp_path / "two_nodes"
    plan = frozen(folder, dataclasses.replace(tiny, mesh=MeshConfig(data=2)), 320)
    run = folder / RUNS / plan.cells[0].run_id
    flags = ("slurm", "--partition", "low", "--devices-per-node", "1")
    with running(slurm, folder, *flags):
        until(lambda: len(read_metrics(run)) >= 20, "step 20")
        os.kill(*processes("sweep", str(tmp_path)), signal.SIGTERM)
        idle(slurm)
        stopped = steps(run)[-1]
    with running(slurm, folder, *flags) as command:
        until(lambda: len(read_metrics(run)) >= stopped + 20, "20 steps more")
        two = processes("train", str(run))
        ranks = {variable(pid, "SLURM_PROCID"): pid for pid in two if variable(pid, "SLURM_PROCID")}
        assert {variable(pid, "SLURMD_NODENAME") for pid in ranks.values()} == {"n1", "n2"}
        os.kill(ranks["1"], signal.SIGKILL)
        code = command.wait(PATIENCE)
    idle(slurm)
    assert code == 0, (folder / "command.txt").read_text()
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert kinds(run) in (["stopped", "preempted", "done"], ["stopped", "lost", "done"])
    assert steps(run)[: stopped + 1] == list(range(1, stopped + 2))
    assert steps(run).count(1) == 1
    assert steps(run)[-1] == 320


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--partition", "lo"], r"partition.*\blo\b.*\blow\b.*\bhigh\b"),
        (["--devices-per-node", "1"], r"devices.*\b4\b.*\b4\b.*\b1\b.*\blow\b.*\b2\b.*\b2\b"),
        (["--minutes", "100"], r"minutes.*\b100\b.*\blow\b.*\b60\b"),
    ],
)
def test_bad_input_is_one_line(slurm: SlurmCluster, tmp_path: Path, tiny: RunConfig, flags, said) -> None:
    frozen(tmp_path / "bad", dataclasses.replace(tiny, mesh=MeshConfig(data=4)), 8)
    done = subprocess.run(verb(slurm, tmp_path / "bad", "slurm", *flags), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: .*{said}.*\n", done.stderr)


def test_no_cluster_is_one_line(tmp_path: Path, tiny: RunConfig) -> None:
    frozen(tmp_path / "bad", tiny, 8)
    done = scaling("sweep", "run", "bad", "--out", tmp_path, "slurm", PATH="/nowhere")
    assert done.returncode == 2
    assert re.match(r"error: .*\bslurm\b.*\bsbatch\b", done.stderr)
    assert done.stderr.count("\n") == 1


def test_a_cluster_that_does_not_answer_is_one_line(slurm: SlurmCluster, tmp_path: Path, tiny: RunConfig) -> None:
    """The port of slurmctld is another here, at which nobody is."""
    frozen(tmp_path / "bad", tiny, 8)
    lines = slurm.run("cat", "/etc/slurm/slurm.conf").stdout.splitlines()
    conf = tmp_path / "slurm.conf"
    conf.write_text("\n".join([*lines, "SlurmctldPort=17999", "MessageTimeout=2", ""]))
    argv = verb(slurm, tmp_path / "bad", "slurm")
    argv.insert(argv.index("JAX_PLATFORMS=cpu"), f"SLURM_CONF={conf}")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.match(r"error: .*\bslurm\b", done.stderr)
    assert "sbatch" not in done.stderr, "that there is"
    assert done.stderr.count("\n") == 1
