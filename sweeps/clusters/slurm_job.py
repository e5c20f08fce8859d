"""What runs inside a SLURM job: a worker, and the launcher that starts one run as a step over all nodes of the job.

`sweeps/clusters/slurm.py` submits these jobs.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from scaling.exit_codes import OUT_OF_MEMORY, STOPPED
from scaling.record.run_folder import LOG_FILE
from scaling.training.out_of_memory import VMSTAT
from sweeps.clusters.process_supervision import JOINT_END_CODES
from sweeps.local import child
from sweeps.local.launch import Launcher, ProcessHandle, Slot
from sweeps.local.processes import compilation_cache_variables, slot_environment, start_process
from sweeps.running import fleet
from sweeps.running.cluster import WorkerSpec
from sweeps.running.runner import Runner

COMMAND_SECONDS = 20.0
"""Time limit of a SLURM command."""

KILL_SECONDS = 8.0
"""How long a killed step has before srun itself is killed."""

STRAGGLER_SECONDS = 600
"""srun --wait: how long the other processes of a step may run after the first has ended with 0."""

PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 30.0
"""Between two attempts to cancel a step; the pause doubles each time."""

WAKE_SECONDS = 0.02
"""How often the main thread wakes. Python runs signal handlers only there, and the kernel does not always wake it:
while one signal is pending for it, the kernel gives the next to any thread, and SLURM sends SIGCONT before SIGTERM."""

FIRST_EXIT_FILE = ".first_exit"
"""In the run folder: the exit code of the first process of a step that did not end with 0."""

SRUN_OUT_OF_MEMORY = 253
"""srun's exit code when the node killed the step for exceeding its memory."""

CancelStatus = Literal["sent", "gone", "unknown"]
"""What scancel achieved: SLURM took it; there is no such step; SLURM did not answer."""

PROCESS_SCRIPT = f"""
trap '' USR1 USR2
trap 'exit {STOPPED}' TERM
first=$1; log=$2; own=$2; shift 2
[ "$SLURM_PROCID" = 0 ] || own=$log.$SLURM_PROCID
before=$(grep '^oom_kill ' {VMSTAT} 2>/dev/null)
trap : TERM
"$@" >>"$own" 2>&1
code=$?
[ $code = 137 ] && [ "$(grep '^oom_kill ' {VMSTAT} 2>/dev/null)" != "$before" ] && code={OUT_OF_MEMORY}
[ $code = 0 ] && exit 0
if (set -C; echo $code >"$first") 2>/dev/null && [ "$own" != "$log" ]; then tail -n 60 "$own" >>"$log"; fi
case $code in {"|".join(map(str, JOINT_END_CODES))}) exit 0;; esac
exit $code
"""
"""The shell script around each process of a step. Arguments: file for the first exit code, log, command.

- The first process that ends with a code other than 0 writes it to a file (`set -C` makes that atomic), because srun
  itself reports only that the step was killed. It also copies the end of its own output to the log of the run.
- A process that the kernel killed for lack of memory (137 = 128 + SIGKILL) ends with the code of one that reports it.
- JOINT_END_CODES become 0 for srun: with --kill-on-bad-exit it would kill the others, which are still writing.
- Signals to the worker reach every process of its job. SIGUSR1 and SIGUSR2 are not meant for this one. A SIGTERM before
  the command starts ends the script; one that comes later is for the command, and the script waits for it."""


@dataclass
class SlurmWorker:
    """A worker; submitit pickles it, and calls it inside its job.

    nodes, devices_per_node: of one run. cpus: cores of each process of a run over several nodes. runner, result: exist
    only inside the job, and are not pickled. result: the exit code that the runner will have.
    """

    work: WorkerSpec
    nodes: int = 1
    devices_per_node: int = 1
    cpus: int = 1
    runner: Runner | None = field(default=None, init=False)
    result: Future[int] | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"runner": None, "result": None}

    def __call__(self) -> int:
        """Trains runs until none is left that no other worker holds. On SIGUSR1 or SIGTERM the runs save, and it ends.

        The runner has a thread of its own, because submitit's handler of SIGUSR2 calls `checkpoint`, which waits for
        the runner, in the main thread.
        """
        launch: Launcher = start_process
        if self.nodes > 1:
            launch = StepLauncher(self.nodes, self.devices_per_node, self.cpus)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self.stop)
        self.runner = fleet.make_worker_runner(self.work, launch)
        with ThreadPoolExecutor(1) as thread:
            self.result = thread.submit(self.runner)
            while not self.result.done():
                time.sleep(WAKE_SECONDS)
            code = self.result.result()
        if code == STOPPED and is_preempted():
            subprocess.run(["scontrol", "requeue", own_job_id()], timeout=COMMAND_SECONDS, check=False)
        return code

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Asks the runs to save and end."""
        if self.runner is None:
            sys.exit(STOPPED)
        self.runner.stops = 1

    def checkpoint(self) -> Any:
        """Returns what submitit queues again when SLURM preempts the job or its time is over: the same worker."""
        from submitit.helpers import DelayedSubmission

        if self.result is not None:
            self.stop()
            self.result.exception()  # waits until the runs are saved
        return DelayedSubmission(SlurmWorker(self.work, self.nodes, self.devices_per_node, self.cpus))


def own_job_id() -> str:
    """The number of this job, or of this element of an array."""
    return os.environ["SLURM_JOB_ID"]


def is_preempted() -> bool:
    """Whether SLURM is preempting this job. The job then has to requeue itself: a cluster that announces a preemption
    by SIGTERM, and not by the signal that sbatch was given, takes a job that ends for one that is done."""
    preempt_time = slurm_output("squeue", "--noheader", f"--jobs={own_job_id()}", "--Format=PreemptTime")
    return preempt_time is not None and preempt_time.strip() not in ("", "N/A", "None")


def slurm_output(*command: str) -> str | None:
    """The output of a SLURM command; None when it fails or takes more than COMMAND_SECONDS."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class StepLauncher:
    """Launches a run over all nodes of this job, one process per device, as a step beside the worker's own. JAX finds
    the other processes by SLURM's variables. When one process dies, srun kills the others.

    srun runs inside the worker's step and gets every signal sent to that: it forwards SIGUSR1 and SIGUSR2 to the
    processes, but at SIGTERM, which a plain scancel sends, it kills them.
    """

    nodes: int
    devices_per_node: int
    cpus: int

    def __call__(self, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()) -> ProcessHandle:
        first_exit, log = folder / FIRST_EXIT_FILE, folder / LOG_FILE
        name = f"{folder.name}-{time.monotonic_ns()}"
        first_exit.unlink(missing_ok=True)
        srun = ["srun", f"--jobid={own_job_id()}", f"--job-name={name}", f"--nodes={self.nodes}"]
        srun += [f"--ntasks={self.nodes * self.devices_per_node}", f"--ntasks-per-node={self.devices_per_node}"]
        # --overlap: the step uses the resources of the worker's own step.
        srun += [f"--cpus-per-task={self.cpus}", "--overlap", "--kill-on-bad-exit=1", f"--wait={STRAGGLER_SECONDS}"]
        process = ["sh", "-c", PROCESS_SCRIPT, "sh", str(first_exit.absolute()), str(log.absolute()), *command]
        child_argv = [sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), "-"]
        variables = slot_environment(dataclasses.replace(slot, devices=1), os.environ)
        # slot_environment drops all SLURM variables, those by which srun finds the controller too.
        controller = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
        with (folder / "srun.txt").open("ab") as srun_log:
            popen = subprocess.Popen(
                [*child_argv, *srun, *process],
                stdin=subprocess.DEVNULL,
                stdout=srun_log,
                stderr=subprocess.STDOUT,
                env=compilation_cache_variables(folder) | variables | controller,
                pass_fds=tuple(inherit),
                start_new_session=True,
            )
        return SlurmStep(popen, name, first_exit)


@dataclass
class SlurmStep:
    """A run over several nodes, as a step of this job.

    SLURM's commands can fail or hang while its controller is down, so a thread runs scancel, again and again until it
    succeeds, and nothing here waits for it.

    Args:
        popen: srun.
        name: the name of the step, by which squeue lists it.
        first_exit: the file of the first exit code (PROCESS_SCRIPT).
        code: the exit code of the run, once it has ended.
        is_stopping: the step is to be asked to save, and scancel has not yet succeeded.
        killed_at: monotonic seconds since which the step is to be killed; None when it is not.
        next_cancel_at: monotonic seconds of the next scancel.
        pause: seconds from the end of the running scancel to the next.
        cancellation: the scancel that runs or whose result is not yet read.
    """

    popen: subprocess.Popen[bytes]
    name: str
    first_exit: Path
    code: int | None = None
    is_stopping: bool = False
    killed_at: float | None = None
    next_cancel_at: float = 0.0
    pause: float = PAUSE_SECONDS
    cancellation: Future[CancelStatus] | None = None
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def poll(self) -> int | None:
        """The exit code of the process that failed first; None while the step runs, and after a kill until SLURM
        confirms that nothing of it is left."""
        if self.code is None and self.has_ended():
            self.code = step_exit_code(self.first_exit_code(), self.popen.returncode)
            self.first_exit.unlink(missing_ok=True)
        return self.code

    def has_ended(self) -> bool:
        """Whether nothing of the step runs; moves an asked-for stop or kill one step further."""
        srun = self.popen.poll()
        # A process has failed while others run: SLURM would ask these to save, which they cannot do without the one
        # that is gone. Or srun was killed by a signal, and what it started may still run.
        if (srun is None and self.first_exit_code() not in JOINT_END_CODES) or (srun is not None and srun < 0):
            self.start_kill()
        if self.killed_at is None:
            if srun is None and self.is_stopping:
                self.is_stopping = self.cancel("--signal=TERM") != "sent"
            return srun is not None
        if srun is None:
            if time.monotonic() > self.killed_at + KILL_SECONDS:
                self.popen.kill()
            return False
        return self.cancel() == "gone"

    def first_exit_code(self) -> int:
        """The exit code of the process that failed first; 0 when none has."""
        try:
            return int(self.first_exit.read_text() or 0)
        except FileNotFoundError:
            return 0

    def terminate(self) -> None:
        """`poll` sends SIGTERM to the processes as soon as SLURM knows the step."""
        self.is_stopping = True
        self.poll()

    def kill(self) -> None:
        """Kills the step on all nodes, also when srun is gone. Returns after KILL_SECONDS at most; `poll` goes on."""
        if self.killed_at is None:
            self.start_kill()
            deadline = time.monotonic() + KILL_SECONDS
            while self.poll() is None and time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS / 5)

    def start_kill(self) -> None:
        """Makes srun kill the processes, which it does at SIGTERM; `poll` follows it up with scancel."""
        if self.killed_at is None:
            self.popen.terminate()
            self.killed_at, self.cancellation = time.monotonic(), None
            self.next_cancel_at, self.pause = 0.0, PAUSE_SECONDS

    def cancel(self, *options: str) -> CancelStatus:
        """The result of the last scancel of this step, once; starts the next when it is time."""
        if self.cancellation is None:
            if time.monotonic() >= self.next_cancel_at:
                self.cancellation = self.thread.submit(cancel_step, self.name, *options)
            return "unknown"
        if not self.cancellation.done():
            return "unknown"
        status, self.cancellation = self.cancellation.result(), None
        self.next_cancel_at, self.pause = time.monotonic() + self.pause, min(2 * self.pause, MAX_PAUSE_SECONDS)
        return status


def cancel_step(name: str, *options: str) -> CancelStatus:
    """Runs scancel, with these options, on the steps of that name."""
    listed = slurm_output("squeue", "--noheader", "--steps", "--format=%i|%j")
    if listed is None:
        return "unknown"
    rows = (line.partition("|") for line in listed.splitlines())
    steps = [number for number, _, step_name in rows if step_name == name]
    if not steps:
        return "gone"
    return "unknown" if slurm_output("scancel", *options, *steps) is None else "sent"


def step_exit_code(first_exit_code: int, srun: int) -> int:
    """The exit code of a step, negative for a signal as in subprocess: that of the process that failed first, or else
    srun's. A shell reports a signal as 128 + its number."""
    if srun == SRUN_OUT_OF_MEMORY and first_exit_code in (0, 128 + signal.SIGKILL):
        return OUT_OF_MEMORY
    code = first_exit_code or srun
    return 128 - code if code - 128 in [*signal.Signals] else code
