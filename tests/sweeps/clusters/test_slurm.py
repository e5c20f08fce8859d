"""The SLURM executor without a cluster: its commands, and how their output is read. tests/cluster/test_slurm.py has a
cluster."""

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.errors import InputError
from scaling.exit_codes import DIVERGED, OUT_OF_MEMORY, STOPPED
from sweeps.clusters import slurm, slurm_job
from sweeps.clusters.slurm import Slurm, SlurmJob, SlurmJobs, SlurmQueue
from sweeps.clusters.slurm_job import PROCESS_SCRIPT, SlurmStep, SlurmWorker, StepLauncher, step_exit_code
from sweeps.clusters.slurm_partitions import NodeKind, Partition, choose_partition, parse_minutes, parse_partitions
from sweeps.local.launch import Slot
from sweeps.running.attempt_log import RetryBudgets
from sweeps.running.cluster import WorkerSpec
from sweeps.running.outcomes import classify_exit

SINFO = """\
low*|2|2|gpu:2|1:00:00
low*|3|64|gpu:a100:8(S:0-1),shard:4|1:00:00
cpu|10|32|(null)|infinite
long|1|16+|(null)|7-12:30:00
"""
GPUS = Partition("low", (NodeKind(2, 8, 2), NodeKind(3, 64, 8)), 60, is_default=True)
CPUS = Partition("cpu", (NodeKind(10, 32, 0),))


def jobs(tmp_path, partition=GPUS, **options) -> SlurmJobs:
    return SlurmJobs(Slurm(**options), tmp_path / "sweep", known_partition=partition)


def test_partitions_are_read():
    partitions = parse_partitions(SINFO)
    assert partitions["low"] == Partition("low", (NodeKind(2, 2, 2), NodeKind(3, 64, 8)), 60, is_default=True)
    assert partitions["cpu"] == Partition("cpu", (NodeKind(10, 32, 0),), None)
    assert partitions["long"] == Partition("long", (NodeKind(1, 16, 0),), (7 * 24 + 12) * 60 + 30)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("30:00", 30), ("1:00:00", 60), ("2-00:00:00", 2880), ("infinite", None), ("n/a", None), ("0:30", 0)],
)
def test_time_limits_are_read(limit, minutes):
    assert parse_minutes(limit) == minutes


def test_the_partition_is_the_one_asked_for_or_the_default():
    partitions = parse_partitions(SINFO)
    assert choose_partition(partitions, "").name == "low"
    assert choose_partition(partitions, "cpu").name == "cpu"
    with pytest.raises(InputError, match=r"partition.*lowe") as error:
        choose_partition(partitions, "lowe")
    names = re.findall(r"\w+", str(error.value))
    assert {"low", "cpu", "long"} <= set(names)
    assert names.count("low") == 2, "among all that there are, and as the nearest"
    with pytest.raises(InputError, match=r"partition.*\bcpu\b"):
        choose_partition({"cpu": CPUS}, "")


@pytest.mark.parametrize(
    ("devices", "per_node", "shape"),
    [(1, None, (1, 1)), (8, None, (1, 8)), (16, None, (2, 8)), (12, None, (2, 6)), (3, 2, (3, 1)), (4, 2, (2, 2))],
)
def test_a_run_takes_as_few_nodes_as_hold_equal_shares(tmp_path, devices, per_node, shape):
    assert jobs(tmp_path, devices_per_node=per_node).shape(devices, GPUS) == shape


def test_a_cpu_node_counts_as_one_device(tmp_path):
    assert jobs(tmp_path, CPUS).shape(3, CPUS) == (3, 1)
    assert jobs(tmp_path, CPUS).cpus(CPUS) == 1


def test_room_counts_the_nodes_that_hold_a_share():
    assert GPUS.count_nodes(2, 1) == 5
    assert GPUS.count_nodes(8, 8) == 3
    assert GPUS.count_nodes(8, 9) == 0
    assert CPUS.count_nodes(4, 8) == 10
    mixed = Partition("both", (*GPUS.nodes, *CPUS.nodes))
    assert mixed.count_nodes(1, 1) == 5, "a node without GPUs is no room for runs that take them"


def program(path: Path, does: str) -> None:
    """In the place of one of SLURM's."""
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)


def test_what_sbatch_is_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for name, does in (("sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 7'), ("srun", "exit 1")):
        program(tmp_path / name, does)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sweep_jobs = jobs(tmp_path, memory=10, account="me", options=("constraint=a100", "exclusive", "gres=gpu:h100:4"))
    (worker,) = sweep_jobs.start(WorkerSpec(tmp_path, devices=16), 1)
    assert worker.number == "7"
    text = (tmp_path / "script").read_text()
    lines = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert lines >= {"nodes=2", "ntasks-per-node=8", "cpus-per-task=4", "mem=80G", "time=60", "account=me", "requeue"}
    assert lines >= {"constraint=a100", "exclusive", "gres=gpu:h100:4", "signal=USR2@150", "partition=low"}
    assert "srun --unbuffered" in text
    assert "--nodes=1 --ntasks=1 --overlap" in text
    assert not any(line.startswith("qos") for line in lines)


def test_a_run_on_one_node_is_one_task(tmp_path):
    parameters = jobs(tmp_path, cpus=3, minutes=7, signal=60).executor_parameters(WorkerSpec(tmp_path, devices=2), GPUS)
    assert (
        parameters["nodes"],
        parameters["ntasks_per_node"],
        parameters["cpus_per_task"],
        parameters["time"],
    ) == (1, 1, 6, 7)
    assert parameters["additional_parameters"]["gres"] == "gpu:2"
    assert "gres" not in jobs(tmp_path, CPUS).executor_parameters(WorkerSpec(tmp_path), CPUS)["additional_parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, r"minutes.*\b0\b"),
        ({"devices_per_node": -1}, "devices_per_node.*-1"),
        ({"options": ("--exclusive",)}, "options.*'--exclusive'"),
        ({"options": ("mem=",)}, "options.*'mem='"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        Slurm(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "devices", "message"),
    [
        ({}, 48, r"devices.*48.*\b6\b.*\b8\b.*\blow\b.*\b2\b.*\b2\b.*\b3\b.*\b8\b"),
        ({"minutes": 61}, 1, r"minutes.*61.*\blow\b.*60"),
        ({"minutes": 2}, 1, "signal.*150.*120"),
    ],
)
def test_what_has_no_room_is_one_line(tmp_path, monkeypatch, options, devices, message):
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    with pytest.raises(InputError, match=message) as error:
        jobs(tmp_path, **options).check([1, devices])
    assert "\n" not in str(error.value)


def test_no_submitit_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"submitit.*scaling-laws\[slurm\]"):
        jobs(tmp_path).check([1])


def test_the_queue_is_asked_once_and_kept_when_it_does_not_answer(tmp_path, monkeypatch):
    answers = ["7_0|n|RUNNING|None\n7_1|n|PENDING|Resources\n", None, "7_1|n|RUNNING|None\n"]
    commands = []
    monkeypatch.setattr(slurm, "slurm_output", lambda *command: commands.append(command) or answers[len(commands) - 1])
    queue = SlurmQueue()
    workers = [SlurmJob(number, tmp_path, queue) for number in ("7_0", "7_1", "7_2")]
    for states in (["running", "queued", "ended"], ["running", "queued", "ended"], ["ended", "running", "ended"]):
        queue.read_at = float("-inf")
        assert [worker.state() for worker in workers] == states
    assert len(commands) == 3
    description = workers[1].describe()
    assert "7_1" in description.split()
    assert "running" in description
    assert f"{tmp_path}/7_1_0_log.err" in description


def test_workers_are_known_by_their_folder_and_the_options_of_the_command(tmp_path, monkeypatch, capsys):
    """Workers of another folder stay; those of a command with other options are asked to end, once."""
    mine, other, commands = jobs(tmp_path / "a"), jobs(tmp_path / "b"), []
    work, larger = WorkerSpec(tmp_path, devices=1, total_slots=3), WorkerSpec(tmp_path, devices=2)
    before = [
        WorkerSpec(tmp_path, devices=2, devices_per_run=2),
        WorkerSpec(tmp_path, members=4),
        WorkerSpec(tmp_path, budgets=RetryBudgets(failures=9)),
    ]
    names = [mine.job_name(work), other.job_name(work), mine.job_name(larger), *map(mine.job_name, before)]
    assert len(set(names)) == 6
    states = ["RUNNING"] * 4 + ["PENDING", "RUNNING"]
    queue = "".join(f"{i}|{name}|{state}|None\n" for i, (name, state) in enumerate(zip(names, states, strict=True)))
    monkeypatch.setattr(slurm, "slurm_output", lambda *command: commands.append(command) or queue)
    assert [worker.number for worker in mine.workers(work)] == ["0"]
    assert [worker.number for worker in mine.workers(larger)] == ["2"]
    scancels = [command for command in commands if command[0] == "scancel"]
    assert scancels == [("scancel", "--signal=USR1", "3", "5"), ("scancel", "4")]
    (line,) = capsys.readouterr().out.splitlines()
    assert re.findall(r"\d+", line) == ["3"], "how many"


def test_only_running_workers_are_asked_to_save(tmp_path, monkeypatch):
    sweep, commands = jobs(tmp_path), []
    queue = "1|n|RUNNING|None\n2|n|PENDING|BeginTime\n"
    monkeypatch.setattr(slurm, "slurm_output", lambda *command: commands.append(command) or queue)
    sweep.cancel([sweep.job("1"), sweep.job("2"), sweep.job("3")])
    assert commands[1:] == [("scancel", "--signal=USR1", "1"), ("scancel", "2")]


def test_a_worker_is_pickled_without_what_it_does(tmp_path):
    worker = SlurmWorker(WorkerSpec(tmp_path, devices=4), nodes=2, devices_per_node=2)
    worker.runner = object()
    again = pickle.loads(pickle.dumps(worker))
    assert (again.work, again.nodes, again.runner) == (worker.work, 2, None)


def start_in_script(folder, index, code) -> subprocess.Popen:
    """A process of a run over several nodes, in the shell script that StepLauncher puts around it."""
    end = (
        "import os; os.kill(os.getpid(), 9)"
        if code == 137
        else f"print('the end of {index}'); raise SystemExit({code})"
    )
    command = [
        "sh",
        "-c",
        PROCESS_SCRIPT,
        "sh",
        str(folder / "first"),
        str(folder / "log.txt"),
        sys.executable,
        "-c",
        end,
    ]
    return subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(index)})


@pytest.mark.parametrize(
    ("code", "seen", "judged"),
    [
        (0, 0, 0),
        (OUT_OF_MEMORY, OUT_OF_MEMORY, OUT_OF_MEMORY),
        (137, 137, -9),
        (STOPPED, 0, STOPPED),
        (DIVERGED, 0, DIVERGED),
    ],
)
def test_the_exit_code_of_a_step_is_that_of_the_first_process_that_fails(tmp_path, code, seen, judged):
    assert start_in_script(tmp_path, 1, code).wait() == seen, "an end by agreement kills none of the others"
    assert start_in_script(tmp_path, 0, code and OUT_OF_MEMORY).wait() == (code and OUT_OF_MEMORY)
    step = SlurmStep(subprocess.Popen(["sh", "-c", f"exit {seen}"]), "name", tmp_path / "first")
    step.popen.wait()
    assert step.poll() == judged
    assert step.poll() == judged
    assert not (tmp_path / "first").exists()
    log = (tmp_path / "log.txt").read_text()
    assert ("the end of 1" in log) == (code not in (0, 137))


def test_a_process_of_a_step_that_is_stopped_before_it_starts_does_not_start(tmp_path):
    slow = PROCESS_SCRIPT.replace("=$(grep", f"=$(: >{tmp_path}/up; sleep 1; grep", 1)
    command = ["sh", "-c", slow, "sh", str(tmp_path / "first"), str(tmp_path / "log.txt"), "sleep", "60"]
    process = subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": "0"})
    late = time.monotonic() + 20
    while not (tmp_path / "up").exists() and time.monotonic() < late:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == STOPPED
    assert not (tmp_path / "log.txt").exists()


def test_a_process_that_the_kernel_killed_for_memory_says_so(tmp_path):
    count = tmp_path / "vmstat"
    count.write_text("oom_kill_x 1\noom_kill 3\n")
    for now, code in ((3, 137), (4, OUT_OF_MEMORY), (4, 137)):
        end = f"import os; open({str(count)!r}, 'w').write('oom_kill_x 1\\noom_kill {now}\\n'); os.kill(os.getpid(), 9)"
        shell = PROCESS_SCRIPT.replace("/proc/vmstat", str(count))
        command = ["sh", "-c", shell, "sh", str(tmp_path / f"{now}{code}"), str(tmp_path / "log"), sys.executable]
        assert subprocess.run([*command, "-c", end], env=os.environ | {"SLURM_PROCID": "0"}).returncode == code
        assert (tmp_path / f"{now}{code}").read_text() == f"{code}\n"


@pytest.mark.parametrize(
    ("first_exit_code", "srun", "code"),
    [
        (0, 253, OUT_OF_MEMORY),
        (137, 253, OUT_OF_MEMORY),
        (1, 253, 1),
        (0, 255, 255),
        (0, 143, -15),
        (137, 1, -9),
        (0, -9, -9),
        (0, 200, 200),
    ],
)
def test_only_a_signal_becomes_one(first_exit_code, srun, code):
    assert step_exit_code(first_exit_code, srun) == code
    classify_exit(code, Path())


@pytest.fixture
def controller(tmp_path, monkeypatch) -> Path:
    """A folder whose squeue and scancel do what the controller's would for a step that ignores all but a kill: while
    the file `away` is there they hang and fail, `steps` is what squeue lists, `scancelled` what scancel was asked."""
    for name, does in (
        ("squeue", "cat steps"),
        ("scancel", 'echo "$@" >>scancelled; [ $# = 2 ] || echo "7.1|other" >steps'),
    ):
        program(tmp_path / name, f"cd {tmp_path}\nif [ -e away ]; then sleep 1; exit 1; fi\n{does}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "steps").write_text("7.1|other\n")
    return tmp_path


def soon(true, poll) -> None:
    late = time.monotonic() + 20
    while not true():
        began = time.monotonic()
        assert poll() is None
        assert time.monotonic() - began < 0.9, "it waits for SLURM"
        assert time.monotonic() < late
        time.sleep(0.02)


def test_a_step_is_asked_to_save_once_there_is_one_and_slurm_answers(controller):
    step = SlurmStep(subprocess.Popen(["sleep", "60"]), "name", controller / "first")
    (controller / "away").touch()
    step.terminate()
    soon(lambda: step.next_cancel_at, step.poll)
    (controller / "away").unlink()
    pause = step.pause
    soon(lambda: step.pause > pause, step.poll)
    assert not (controller / "scancelled").exists()
    (controller / "steps").write_text("7.1|other\n7.2|name\n")
    soon(lambda: not step.is_stopping, step.poll)
    assert (controller / "scancelled").read_text() == "--signal=TERM 7.2\n"
    step.popen.kill()
    step.popen.wait()


def test_a_killed_step_has_not_ended_until_slurm_says_so(controller, monkeypatch):
    monkeypatch.setattr(slurm_job, "KILL_SECONDS", 0.5)
    step = SlurmStep(
        subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep .1; done"]), "name", controller / "first"
    )
    (controller / "away").touch()
    (controller / "steps").write_text("7.1|other\n7.2|name\n")
    time.sleep(0.2)
    step.kill()
    soon(lambda: step.next_cancel_at, step.poll)
    assert step.popen.returncode == -signal.SIGKILL, "srun did not end by itself"
    (controller / "away").unlink()
    late = time.monotonic() + 20
    while step.poll() is None and time.monotonic() < late:
        time.sleep(0.02)
    assert step.poll() == -signal.SIGKILL
    assert (controller / "scancelled").read_text() == "7.2\n"


def test_a_process_of_a_step_ignores_sigusr1_and_sigusr2_and_saves_at_sigterm(tmp_path):
    end = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75)); "
        f"open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(30)"
    )
    command = [
        "sh",
        "-c",
        PROCESS_SCRIPT,
        "sh",
        str(tmp_path / "first"),
        str(tmp_path / "log.txt"),
        sys.executable,
        "-c",
        end,
    ]
    process = subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": "0"}, start_new_session=True)
    late = time.monotonic() + 20
    while not (tmp_path / "up").exists() and time.monotonic() < late:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGUSR1)
    os.killpg(process.pid, signal.SIGUSR2)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(10) == 0
    assert (tmp_path / "first").read_text() == "75\n"


def test_a_run_over_several_nodes_is_a_step_of_this_job(tmp_path, monkeypatch):
    """srun itself is a script here that says how it was called; the real one is in tests/cluster."""
    program(tmp_path / "srun", 'printf "%s\\n" "$@"; env')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "1"), ("SLURM_CONF", "/etc/slurm/slurm.conf")):
        monkeypatch.setenv(name, value)
    run = tmp_path / "sweep" / "runs" / "r0"
    run.mkdir(parents=True)
    step = StepLauncher(2, 4, 3)(["train"], run, Slot(devices=8))
    assert step.popen.wait(20) == 0
    lines = set((run / "srun.txt").read_text().splitlines())
    assert lines >= {"--jobid=7", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=3", "--overlap"}
    assert "SLURM_CONF=/etc/slurm/slurm.conf" in lines
    assert not any(line.startswith(("SLURM_NTASKS", "JAX_NUM_CPU_DEVICES")) for line in lines)


DEAF = """
import signal, sys, threading, time
from pathlib import Path
from sweeps.clusters import slurm_job
from sweeps.running.cluster import WorkerSpec

class Runner:
    stops = 0
    def __call__(self):
        time.sleep(.5)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        late = time.monotonic() + 5
        while not self.stops and time.monotonic() < late:
            time.sleep(.01)
        return 7 if self.stops else 1

slurm_job.fleet.make_worker_runner = lambda work, launch: Runner()
sys.exit(slurm_job.SlurmWorker(WorkerSpec(Path(sys.argv[1])))())
"""


def test_a_signal_that_the_kernel_gives_to_another_thread_stops_the_worker_too(tmp_path):
    """As it does where SLURM's SIGCONT still waits for the first thread: its SIGTERM was lost for ever there."""
    assert subprocess.run([sys.executable, "-c", DEAF, tmp_path], timeout=60, check=False).returncode == 7


ODD = "a b'c\"d $(touch X) `touch X` $X # é"


def test_every_value_comes_back_whole_from_a_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    programs, script = tmp_path / "bin", tmp_path / "script"
    programs.mkdir()
    words = f"import json, sys; open({str(tmp_path / 'words')!r}, 'w').write(json.dumps(sys.argv[1:]))"
    for name, code in (
        ("sbatch", f"import shutil, sys; shutil.copy(sys.argv[-1], {str(script)!r}); print('Submitted batch job 7')"),
        ("srun", words),
    ):
        (programs / name).write_text(f"#!{sys.executable}\n{code}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ODD
    options = Slurm(account=ODD, qos=ODD, options=(f"comment={ODD}",))
    SlurmJobs(options, folder, known_partition=GPUS).start(WorkerSpec(folder), 1)
    text = script.read_text()
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    flags = [shlex.split(line.removeprefix("#SBATCH ")) for line in text.splitlines() if line.startswith("#SBATCH ")]
    for flag in (f"--account={ODD}", f"--qos={ODD}", f"--comment={ODD}"):
        assert [flag] in flags
    (job_name,) = [flag[0] for flag in flags if flag[0].startswith("--job-name=")]
    assert ODD in job_name
    subprocess.run(["bash", script], check=True)
    assert str(folder / slurm.JOB_FOLDER) in " ".join(json.loads((tmp_path / "words").read_text()))
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("options", [{"account": "a\nb"}, {"options": ("comment=a\ntouch X",)}])
def test_a_value_of_two_lines_is_refused(tmp_path: Path, options: dict) -> None:
    with pytest.raises(InputError, match=r"a\\n"):
        jobs(tmp_path, **options).executor_parameters(WorkerSpec(tmp_path), GPUS)
