"""Workers that are jobs of a SLURM cluster, by submitit: arrays, runs over several nodes, preemption and requeue."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling.errors import InputError
from sweeps.clusters.slurm_job import SlurmWorker, slurm_output
from sweeps.clusters.slurm_partitions import Partition, choose_partition, parse_partitions, query_sinfo
from sweeps.running import fleet
from sweeps.running.cluster import Cluster, WorkerHandle, WorkerSpec, WorkerState

JOB_FOLDER = "slurm"
SQUEUE_SECONDS = 1.0
DEFAULT_MINUTES = 240
MAX_TIMEOUTS = 1_000_000
MAX_ARRAY_JOBS = 1000  # jobs in an array, where SLURM's own default stands
QUEUED_STATES = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class Slurm:
    """Jobs of a SLURM cluster. The folder of the sweep and this environment must be on a disk that its nodes share.

    A worker is one job: it makes run after run until its time is over, and is then queued again.

    Args:
        partition: the cluster's default one, when not given.
        account: whom SLURM charges.
        qos: quality of service.
        minutes: time limit of a worker; 240, or the partition's limit where that is less, when not given.
        cpus: cores per device; a device's share of a node with GPUs, 1 elsewhere, when not given.
        memory: GB per device; the cluster's default when not given.
        devices_per_node: the GPUs of a node, 1 on nodes without, when not given. Larger runs take several nodes.
        signal: seconds before the time limit at which the runs are told to save.
        options: more options of sbatch, as in constraint=a100 or exclusive; they come before those above.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    minutes: int | None = None
    cpus: int | None = None
    memory: int | None = None
    devices_per_node: int | None = None
    signal: int = 150
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "memory", "devices_per_node", "signal"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} = {value}: must be 1 or more")
        for option in self.options:
            if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", option):
                raise InputError(f"options: {option!r}: must be KEY=VALUE or KEY, of sbatch, without its dashes")

    def cluster(self, folder: Path) -> Cluster:
        """The cluster that this machine submits to, for the sweep in `folder`."""
        return SlurmJobs(self, folder.absolute())


@dataclass
class SlurmQueue:
    """What squeue said last of this user's jobs, {job: (name, state, reason)}; asked about all of them at once, and
    not again within a second. When SLURM does not answer, they are as they were."""

    jobs: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    read_at: float = float("-inf")

    def now(self) -> Mapping[str, tuple[str, str, str]]:
        if time.monotonic() - self.read_at > SQUEUE_SECONDS:
            said = slurm_output("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T|%r")
            if said is not None:
                rows = (line.split("|", 3) for line in said.splitlines())
                self.jobs = {job: (name, state, reason) for job, name, state, reason in rows}
            self.read_at = time.monotonic()
        return self.jobs


@dataclass(frozen=True, eq=False)
class SlurmJob:
    """A worker: one job, or one element of an array, by its number. folder: where its output is."""

    number: str
    folder: Path
    queue: SlurmQueue

    def state(self) -> WorkerState:
        _, state, _ = self.queue.now().get(self.number, ("", "", ""))
        if not state:
            return "ended"
        return "queued" if state in QUEUED_STATES else "running"

    def describe(self) -> str:
        _, state, reason = self.queue.jobs.get(self.number, ("", "ended", "None"))
        why = "" if reason == "None" else f", {reason}"
        return f"SLURM job {self.number} ({state.lower()}{why}), its output in {self.folder / self.number}_0_log.err"


@dataclass
class SlurmJobs:
    """The cluster, for one sweep. Its jobs bear the sweep's name and a hash of its folder, by which a later command
    finds them in the queue, and a hash of what the command asked for. dismissed: those of another such command."""

    options: Slurm
    folder: Path
    queue: SlurmQueue = field(default_factory=SlurmQueue)
    found: Partition | None = None
    dismissed: set[str] = field(default_factory=set)

    def check(self, devices: Sequence[int]) -> None:
        if find_spec("submitit") is None:
            raise InputError("executor slurm: needs submitit; pip install 'scaling-laws[slurm]'")
        if shutil.which("sbatch") is None:
            raise InputError("executor slurm: no sbatch on this machine; run this on a login node of a SLURM cluster")
        partition = self.partition()
        if (asked := self.options.minutes or 0) > (limit := partition.minutes or asked):
            raise InputError(f"minutes = {asked}: partition {partition.name} ends jobs after {limit}")
        if self.options.signal >= self.minutes(partition) * 60:
            raise InputError(
                f"signal = {self.options.signal}: must be below the {self.minutes(partition) * 60} s of a worker"
            )
        for count in devices:
            nodes, per_node = self.shape(count, partition)
            if nodes > partition.room(per_node, self.cpus(partition)):
                raise InputError(
                    f"devices = {count}: takes {nodes} nodes of {per_node}; partition {partition.name} has "
                    f"{partition.has}"
                )

    def partition(self) -> Partition:
        """The partition asked for. Raises InputError when there is none such, or no cluster answers."""
        if self.found is None:
            self.found = choose_partition(parse_partitions(query_sinfo()), self.options.partition)
        return self.found

    def minutes(self, partition: Partition) -> int:
        return self.options.minutes or min(DEFAULT_MINUTES, partition.minutes or DEFAULT_MINUTES)

    def cpus(self, partition: Partition) -> int:
        """Cores per device."""
        if self.options.cpus:
            return self.options.cpus
        shares = [kind.cpus // kind.gpus for kind in partition.nodes if kind.gpus]
        return max(min(shares), 1) if shares else 1

    def shape(self, devices: int, partition: Partition) -> tuple[int, int]:
        """Nodes of a run, and its devices on each: as few nodes as hold equal shares."""
        most = self.options.devices_per_node or partition.gpus or 1
        nodes = next(n for n in range(-(-devices // most), devices + 1) if devices % n == 0)
        return nodes, devices // nodes

    def name(self, work: WorkerSpec) -> str:
        """What the jobs of some work are called."""
        return f"{self.folder.name}-{work.devices}{self.mark}{digest(work.devices_per_run, work.members, work.budgets)}"

    @property
    def mark(self) -> str:
        """What the names of all jobs of this folder have, and no others."""
        return f"-{digest(str(self.folder.resolve()))}-"

    def parameters(self, work: WorkerSpec, partition: Partition) -> dict[str, Any]:
        """Of submitit's executor."""
        nodes, per_node = self.shape(work.devices, partition)
        cpus, most = self.cpus(partition), {key: getattr(self.options, key) for key in ("account", "qos")}
        tasks = 1 if nodes == 1 else per_node
        more: dict[str, Any] = {"requeue": True}
        if partition.gpus:
            more["gres"] = f"gpu:{per_node}"
        if self.options.memory:
            more["mem"] = f"{self.options.memory * per_node}G"
        more |= {key: value or True for key, _, value in (option.partition("=") for option in self.options.options)}
        return {key: value for key, value in most.items() if value} | {
            "job_name": self.name(work),
            "partition": partition.name,
            "time": self.minutes(partition),
            "nodes": nodes,
            "ntasks_per_node": tasks,
            "cpus_per_task": cpus * per_node // tasks,
            "signal_delay_s": self.options.signal,
            "array_parallelism": MAX_ARRAY_JOBS,
            "srun_args": ["--nodes=1", "--ntasks=1", "--overlap"],
            "additional_parameters": more,
        }

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        """Those of a command that asked for something else are told to end, whatever they were to do."""
        mine = self.name(work)
        jobs = {number: name for number, (name, _, _) in self.queue.now().items() if self.mark in name}
        others = {number for number, name in jobs.items() if not name.endswith(mine.rpartition(self.mark)[2])}
        if others := others - self.dismissed:
            self.dismissed |= others
            workers = f"{len(others)} worker{'s' * (len(others) > 1)}"
            fleet.print_line(Console(), f"ending {workers} of an earlier command, which asked for something else")
            self.cancel([self.job(number) for number in sorted(others)])
        return [self.job(number) for number, name in jobs.items() if name == mine]

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        partition = self.partition()
        executor = SlurmExecutor(self.folder / JOB_FOLDER, max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**self.parameters(work, partition))
        nodes, per_node = self.shape(work.devices, partition)
        pilot = SlurmWorker(work, nodes, per_node, self.cpus(partition))
        try:
            jobs = []
            for begin in range(0, count, MAX_ARRAY_JOBS):
                with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                    jobs += [executor.submit(pilot) for _ in range(min(count - begin, MAX_ARRAY_JOBS))]
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(f"executor slurm: {' '.join(str(error).split())}") from None
        for job in jobs:
            self.queue.jobs[job.job_id] = (self.name(work), "PENDING", "None")
        self.queue.read_at = float("-inf")
        return [self.job(job.job_id) for job in jobs]

    def job(self, number: str) -> SlurmJob:
        return SlurmJob(number, self.folder / JOB_FOLDER, self.queue)

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        """A worker that runs takes SIGUSR1 to let its runs save, and ends; the others leave the queue."""
        self.queue.read_at = float("-inf")
        now = self.queue.now()
        states = {one.number: now[one.number][1] for one in workers if isinstance(one, SlurmJob) and one.number in now}
        if running := [job for job, state in states.items() if state == "RUNNING"]:
            slurm_output("scancel", "--signal=USR1", *running)
        if others := [job for job in states if job not in running]:
            slurm_output("scancel", *others)


def digest(*what: object) -> str:
    """A short hash of what is said of something."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]
