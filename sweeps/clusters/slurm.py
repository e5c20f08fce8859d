"""Workers that are SLURM jobs, submitted as arrays by submitit; SLURM requeues those that it preempts.

`sweeps/clusters/slurm_job.py` is what runs inside a job.
"""

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

from scaling.errors import InputError
from scaling.terminal import make_console
from sweeps.clusters.slurm_job import SlurmWorker, slurm_output
from sweeps.clusters.slurm_partitions import Partition, choose_partition, parse_partitions, query_sinfo
from sweeps.running import fleet
from sweeps.running.cluster import Cluster, WorkerHandle, WorkerSpec, WorkerState

JOB_FOLDER = "slurm"
SQUEUE_SECONDS = 1.0
"""Shortest time between two calls of squeue."""
DEFAULT_MINUTES = 240
MAX_TIMEOUTS = 1_000_000
"""How often submitit queues a job again whose time is over: as good as always."""
MAX_ARRAY_JOBS = 1000
"""Jobs in one array: SLURM's default for MaxArraySize allows indices below 1001."""
QUEUED_STATES = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class Slurm:
    """Jobs of a SLURM cluster. The folder of the sweep and this environment must be on a disk that its nodes share.

    A worker is one job: it trains one run after another until its time is over, and is then queued again.

    Args:
        partition: partition of the jobs; by default the cluster's default one.
        account: account that SLURM charges; by default the user's own.
        qos: quality of service of the jobs; by default that of the account.
        minutes: time limit of a worker; by default 240, or the partition's limit where that is less.
        cpus: cores per device; by default a device's share of the cores of a node with GPUs, and 1 on other nodes.
        memory: GB of memory per device; by default what the cluster gives.
        devices_per_node: devices of one node that a run uses; larger runs take several nodes. By default the GPUs of a
            node, and 1 on nodes without GPUs.
        signal: seconds before the time limit at which the runs are asked to save.
        options: more options of sbatch, as in constraint=a100 or exclusive; they override those above.
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
    """The jobs of this user, from squeue: {number: (name, state, reason)}. One call lists all jobs, at most once in
    SQUEUE_SECONDS. When SLURM does not answer, the jobs stay as they were."""

    jobs: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    read_at: float = float("-inf")

    def read(self) -> Mapping[str, tuple[str, str, str]]:
        if time.monotonic() - self.read_at > SQUEUE_SECONDS:
            listed = slurm_output("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T|%r")
            if listed is not None:
                rows = (line.split("|", 3) for line in listed.splitlines())
                self.jobs = {job: (name, state, reason) for job, name, state, reason in rows}
            self.read_at = time.monotonic()
        return self.jobs


@dataclass(frozen=True, eq=False)
class SlurmJob:
    """A worker: one job, or one element of an array. number: SLURM's, as 7 or 7_0. folder: of its output."""

    number: str
    folder: Path
    queue: SlurmQueue

    def state(self) -> WorkerState:
        _, state, _ = self.queue.read().get(self.number, ("", "", ""))
        if not state:
            return "ended"
        return "queued" if state in QUEUED_STATES else "running"

    def describe(self) -> str:
        _, state, reason = self.queue.jobs.get(self.number, ("", "ended", "None"))
        why_queued = "" if reason == "None" else f", {reason}"
        log = f"{self.folder / self.number}_0_log.err"
        return f"SLURM job {self.number} ({state.lower()}{why_queued}), its output in {log}"


@dataclass
class SlurmJobs:
    """The workers of one sweep on a SLURM cluster.

    The name of a job holds the sweep's name, the devices of a run, a hash of the sweep's folder and a hash of the
    command's options. By it a later command finds the jobs in the queue.

    known_partition: the partition, once it was looked up. cancelled: numbers of jobs that an earlier command with other
    options left.
    """

    options: Slurm
    folder: Path
    queue: SlurmQueue = field(default_factory=SlurmQueue)
    known_partition: Partition | None = None
    cancelled: set[str] = field(default_factory=set)

    def check(self, devices: Sequence[int]) -> None:
        if find_spec("submitit") is None:
            raise InputError("executor slurm: needs submitit; pip install 'scaling-laws[slurm]'")
        if shutil.which("sbatch") is None:
            raise InputError("executor slurm: no sbatch on this machine; run this on a login node of a SLURM cluster")
        partition = self.partition()
        if (minutes := self.options.minutes or 0) > (limit := partition.minutes or minutes):
            raise InputError(
                f"minutes = {minutes}: partition {partition.name} ends jobs after {limit}; give at most that"
            )
        if self.options.signal >= self.minutes(partition) * 60:
            raise InputError(
                f"signal = {self.options.signal}: must be below {self.minutes(partition) * 60}, the seconds of a worker"
            )
        for count in devices:
            nodes, per_node = self.shape(count, partition)
            if nodes > partition.count_nodes(per_node, self.cpus(partition)):
                raise InputError(
                    f"devices = {count}: takes {nodes} nodes of {per_node}; partition {partition.name} has "
                    f"{partition.description}"
                )

    def partition(self) -> Partition:
        """The partition of the jobs. Raises InputError when there is none of that name, or no cluster answers."""
        if self.known_partition is None:
            self.known_partition = choose_partition(parse_partitions(query_sinfo()), self.options.partition)
        return self.known_partition

    def minutes(self, partition: Partition) -> int:
        return self.options.minutes or min(DEFAULT_MINUTES, partition.minutes or DEFAULT_MINUTES)

    def cpus(self, partition: Partition) -> int:
        """Cores per device."""
        if self.options.cpus:
            return self.options.cpus
        shares = [kind.cpus // kind.gpus for kind in partition.nodes if kind.gpus]
        return max(min(shares), 1) if shares else 1

    def shape(self, devices: int, partition: Partition) -> tuple[int, int]:
        """The nodes of a run, and its devices on each: the fewest nodes that hold equal shares."""
        most = self.options.devices_per_node or partition.gpus or 1
        # -(-a // b) rounds up
        nodes = next(n for n in range(-(-devices // most), devices + 1) if devices % n == 0)
        return nodes, devices // nodes

    def job_name(self, work: WorkerSpec) -> str:
        """The name of the jobs of one kind of worker."""
        options = digest(work.devices_per_run, work.members, work.budgets)
        return f"{self.folder.name}-{work.devices}{self.folder_mark}{options}"

    @property
    def folder_mark(self) -> str:
        """The part of a job name that all jobs of this folder have, and no others."""
        return f"-{digest(str(self.folder.resolve()))}-"

    def executor_parameters(self, work: WorkerSpec, partition: Partition) -> dict[str, Any]:
        """Parameters of submitit's executor: options of sbatch under submitit's names. submitit quotes them, but sbatch
        reads one option a line: raises InputError on a value with a line break."""
        nodes, per_node = self.shape(work.devices, partition)
        cpus = self.cpus(partition)
        given = {key: value for key in ("account", "qos") if (value := getattr(self.options, key))}
        # On one node a run is one process that sees all devices; on several, it is one process per device.
        tasks = 1 if nodes == 1 else per_node
        sbatch_options: dict[str, Any] = {"requeue": True}
        if partition.gpus:
            sbatch_options["gres"] = f"gpu:{per_node}"
        if self.options.memory:
            sbatch_options["mem"] = f"{self.options.memory * per_node}G"
        for option in self.options.options:
            key, _, value = option.partition("=")
            sbatch_options[key] = value or True
        for key, value in (given | sbatch_options | {"folder": self.folder}).items():
            if set("\n\r\0") & {*key, *str(value)}:
                raise InputError(f"executor slurm: {key} = {str(value)!r}: must be one line, as sbatch reads it")
        return given | {
            "job_name": self.job_name(work),
            "partition": partition.name,
            "time": self.minutes(partition),
            "nodes": nodes,
            "ntasks_per_node": tasks,
            "cpus_per_task": cpus * per_node // tasks,
            "signal_delay_s": self.options.signal,
            "array_parallelism": MAX_ARRAY_JOBS,
            # submitit starts the worker by srun: one process on the first node, beside which steps of runs may start.
            "srun_args": ["--nodes=1", "--ntasks=1", "--overlap"],
            "additional_parameters": sbatch_options,
        }

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        """Jobs of a command with other options are asked to end, whatever number of devices they are for."""
        own_name = self.job_name(work)
        jobs = {number: name for number, (name, _, _) in self.queue.read().items() if self.folder_mark in name}
        own_options = own_name.rpartition(self.folder_mark)[2]
        others = {number for number, name in jobs.items() if not name.endswith(own_options)}
        if others := others - self.cancelled:
            self.cancelled |= others
            count = f"{len(others)} worker{'s' * (len(others) > 1)}"
            fleet.print_line(make_console(), f"ending {count} of an earlier command, which had other options")
            self.cancel([self.job(number) for number in sorted(others)])
        return [self.job(number) for number, name in jobs.items() if name == own_name]

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        partition = self.partition()
        executor = SlurmExecutor(self.folder / JOB_FOLDER, max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**self.executor_parameters(work, partition))
        nodes, per_node = self.shape(work.devices, partition)
        worker = SlurmWorker(work, nodes, per_node, self.cpus(partition))
        try:
            jobs = []
            for begin in range(0, count, MAX_ARRAY_JOBS):
                # `batch` submits all jobs as one array. What submitit prints about it stays off the terminal.
                with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                    jobs += [executor.submit(worker) for _ in range(min(count - begin, MAX_ARRAY_JOBS))]
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(f"executor slurm: {' '.join(str(error).split())}") from None
        for job in jobs:
            self.queue.jobs[job.job_id] = (self.job_name(work), "PENDING", "None")
        self.queue.read_at = float("-inf")
        return [self.job(job.job_id) for job in jobs]

    def job(self, number: str) -> SlurmJob:
        return SlurmJob(number, self.folder / JOB_FOLDER, self.queue)

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        """Sends SIGUSR1 to workers that run, which lets their runs save and then ends; removes the others from the
        queue."""
        self.queue.read_at = float("-inf")
        jobs = self.queue.read()
        numbers = [worker.number for worker in workers if isinstance(worker, SlurmJob)]
        states = {number: jobs[number][1] for number in numbers if number in jobs}
        if running := [job for job, state in states.items() if state == "RUNNING"]:
            slurm_output("scancel", "--signal=USR1", *running)
        if others := [job for job in states if job not in running]:
            slurm_output("scancel", *others)


def digest(*values: object) -> str:
    """The first 8 hex digits of a hash of the values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8]
