"""What runs inside a job of a SLURM cluster: a worker, and how it starts a run over the job's nodes.

Not in the design's list of modules: slurm.py would hold two concepts, the cluster from outside and from inside.
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

from scaling.exit_codes import DIVERGED, OUT_OF_MEMORY, STOPPED
from scaling.record.run_folder import LOG_FILE
from scaling.training.out_of_memory import VMSTAT
from sweeps.local import child
from sweeps.local.launch import Launcher, ProcessHandle, Slot
from sweeps.local.processes import compilation_cache_variables, slot_environment, start_process
from sweeps.running import fleet
from sweeps.running.cluster import WorkerSpec
from sweeps.running.runner import Runner

ASK_SECONDS, KILL_SECONDS, STRAGGLER_SECONDS = 20.0, 8.0, 600
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 30.0
LISTEN_SECONDS = 0.02
"""How long the first thread is deaf at most. While one signal waits for it, the kernel gives the next to any thread
(SLURM sends SIGCONT before SIGTERM), and Python runs the handler when the first thread next wakes."""
FIRST_EXIT_FILE = ".first_exit"
SRUN_OUT_OF_MEMORY = 253
CancelStatus = Literal["told", "gone", "unknown"]

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
case $code in {STOPPED}|{DIVERGED}) exit 0;; esac
exit $code
"""
"""The shell around each process of a gang. The first that ends with another code than 0 leaves it in a file: srun says
of a step only that it was killed. One that the kernel killed for memory ends as one that says so itself. What all
processes agree to end with kills none of the others, which are still writing. Signals to the worker reach every process
of its job: those that come while Python starts are not for it."""


@dataclass
class SlurmWorker:
    """A worker, as submitit calls it in its job. nodes, per_node: of a gang, when the runs are larger than a node; cpus
    of each of its processes. Pickled before it runs: the runner is of the job alone."""

    work: WorkerSpec
    nodes: int = 1
    per_node: int = 1
    cpus: int = 1
    runner: Runner | None = field(default=None, init=False)
    ending: Future[int] | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"runner": None, "ending": None}

    def __call__(self) -> int:
        """Works until nothing is left that is not another's. SIGUSR1 or SIGTERM: the runs save, and it ends.

        The runner has a thread of its own: submitit's handler of SIGUSR2 waits for it in this one.
        """
        launch: Launcher = start_process if self.nodes == 1 else StepLauncher(self.nodes, self.per_node, self.cpus)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self.stop)
        self.runner = fleet.make_worker_runner(self.work, launch)
        with ThreadPoolExecutor(1) as thread:
            self.ending = thread.submit(self.runner)
            while not self.ending.done():
                time.sleep(LISTEN_SECONDS)
            code = self.ending.result()
        if code == STOPPED and is_preempted():
            subprocess.run(["scontrol", "requeue", own_job_id()], timeout=ASK_SECONDS, check=False)
        return code

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Asks the runs to save and end."""
        if self.runner is None:
            sys.exit(STOPPED)
        self.runner.stops = 1

    def checkpoint(self) -> Any:
        """What submitit puts back in the queue, when SLURM takes the machine or the time is over: the same again."""
        from submitit.helpers import DelayedSubmission

        if self.ending is not None:
            self.stop()
            self.ending.exception()
        return DelayedSubmission(SlurmWorker(self.work, self.nodes, self.per_node, self.cpus))


def own_job_id() -> str:
    """The number of this job; of an array, of this element."""
    return os.environ["SLURM_JOB_ID"]


def is_preempted() -> bool:
    """Whether SLURM is taking this job's machine. A cluster that sends SIGTERM for it, not the signal that was asked
    for, would hold the job to have ended by itself."""
    asked = slurm_output("squeue", "--noheader", f"--jobs={own_job_id()}", "--Format=PreemptTime")
    return asked is not None and asked.strip() not in ("", "N/A", "None")


def slurm_output(*command: str) -> str | None:
    """What a SLURM command says; None when it fails, or says nothing in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class StepLauncher:
    """Launches a run over the nodes of this job, one process a device, beside the worker. JAX finds the other
    processes through SLURM's variables. If one dies, all are killed.

    srun is of the worker's step, hence hears all signals to it: it hands SIGUSR1 and SIGUSR2 on to the processes, but
    at SIGTERM, which a plain scancel sends, it kills them.
    """

    nodes: int
    per_node: int
    cpus: int

    def __call__(self, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()) -> ProcessHandle:
        first, name = folder / FIRST_EXIT_FILE, f"{folder.name}-{time.monotonic_ns()}"
        first.unlink(missing_ok=True)
        srun = ["srun", f"--jobid={own_job_id()}", f"--job-name={name}", f"--nodes={self.nodes}"]
        srun += [f"--ntasks={self.nodes * self.per_node}", f"--ntasks-per-node={self.per_node}"]
        srun += [f"--cpus-per-task={self.cpus}", "--overlap", "--kill-on-bad-exit=1", f"--wait={STRAGGLER_SECONDS}"]
        rank = ["sh", "-c", PROCESS_SCRIPT, "sh", str(first.absolute()), str((folder / LOG_FILE).absolute()), *command]
        tied = [sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), "-"]
        mine = slot_environment(dataclasses.replace(slot, devices=1), os.environ)
        theirs = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
        with (folder / "srun.txt").open("ab") as chatter:
            popen = subprocess.Popen(
                [*tied, *srun, *rank],
                stdin=subprocess.DEVNULL,
                stdout=chatter,
                stderr=subprocess.STDOUT,
                env=compilation_cache_variables(folder) | mine | theirs,
                pass_fds=tuple(inherit),
                start_new_session=True,
            )
        return SlurmStep(popen, name, first)


@dataclass
class SlurmStep:
    """A run over several nodes: a step of this job. first: where the process that failed first leaves its exit code.

    SLURM's commands may fail or hang while its controller is away, so a thread gives them, and gives them again:
    nothing here waits for them. stopping: it is to save. ending: since when it is to be killed. order: the last one
    given. due: when to give the next. pause: how much later that will be than the end of this one.
    """

    popen: subprocess.Popen[bytes]
    name: str
    first: Path
    code: int | None = None
    stopping: bool = False
    ending: float | None = None
    due: float = 0.0
    pause: float = PAUSE_SECONDS
    order: Future[CancelStatus] | None = None
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def poll(self) -> int | None:
        """The exit code of the process that failed first. As long as one process has failed and others run, SLURM asks
        these to save, for which they need the one that is gone: they are killed here. None until SLURM has said that
        nothing is left of what was killed."""
        if self.code is None and self.ended():
            self.code = step_exit_code(self.said(), self.popen.returncode)
            self.first.unlink(missing_ok=True)
        return self.code

    def ended(self) -> bool:
        srun = self.popen.poll()
        if (srun is None and self.said() not in (0, STOPPED, DIVERGED)) or (srun is not None and srun < 0):
            self.end()
        if self.ending is None:
            if srun is None and self.stopping:
                self.stopping = self.give("--signal=TERM") != "told"
            return srun is not None
        if srun is None:
            if time.monotonic() > self.ending + KILL_SECONDS:
                self.popen.kill()
            return False
        return self.give() == "gone"

    def said(self) -> int:
        """What the process that failed first ended with; 0 when none did."""
        try:
            return int(self.first.read_text() or 0)
        except FileNotFoundError:
            return 0

    def terminate(self) -> None:
        """`poll` passes it on, as soon as there is a step."""
        self.stopping = True
        self.poll()

    def kill(self) -> None:
        """Ends it on all nodes, also when srun, which watches over it, is gone. Waits for a moment; `poll` goes on."""
        if self.ending is None:
            self.end()
            late = time.monotonic() + KILL_SECONDS
            while self.poll() is None and time.monotonic() < late:
                time.sleep(PAUSE_SECONDS / 5)

    def end(self) -> None:
        """srun kills at SIGTERM."""
        if self.ending is None:
            self.popen.terminate()
            self.ending, self.order, self.due, self.pause = time.monotonic(), None, 0.0, PAUSE_SECONDS

    def give(self, *how: str) -> CancelStatus:
        """What came of the last order to scancel the step so; gives the next when it is time."""
        if self.order is None:
            if time.monotonic() >= self.due:
                self.order = self.thread.submit(cancel_step, self.name, *how)
            return "unknown"
        if not self.order.done():
            return "unknown"
        seen, self.order = self.order.result(), None
        self.due, self.pause = time.monotonic() + self.pause, min(2 * self.pause, LONGEST_PAUSE_SECONDS)
        return seen


def cancel_step(name: str, *how: str) -> CancelStatus:
    """Scancels the step of a name. "gone" when SLURM says that there is none such; "unknown" when it says nothing."""
    listed = slurm_output("squeue", "--noheader", "--steps", "--format=%i|%j")
    if listed is None:
        return "unknown"
    rows = (line.partition("|") for line in listed.splitlines())
    steps = [number for number, _, its in rows if its == name]
    if not steps:
        return "gone"
    return "unknown" if slurm_output("scancel", *how, *steps) is None else "told"


def step_exit_code(said: int, srun: int) -> int:
    """How a gang ended, as subprocess has it: what the process that failed first said, else srun."""
    if srun == SRUN_OUT_OF_MEMORY and said in (0, 128 + signal.SIGKILL):
        return OUT_OF_MEMORY
    code = said or srun
    return 128 - code if code - 128 in [*signal.Signals] else code
