"""Workers that are actors of a Ray cluster (Ray core), for runs on GPUs of one host or on several hosts.

The actors are detached: they outlive the command that started them, and the same command, given again, finds them by
their names. Ray starts an actor again elsewhere when its process or its host dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.errors import InputError
from scaling.terminal import make_console
from sweeps.clusters.ray_connection import NAMESPACE, HostDemand, connect, forwarded_env
from sweeps.clusters.ray_worker import LOG_FOLDER, WorkerActor, WorkerJob
from sweeps.running import fleet
from sweeps.running.cluster import WorkerHandle, WorkerSpec, WorkerState

ANSWER_SECONDS, RETRY_SECONDS = 30.0, 0.5


@dataclass(frozen=True)
class Ray:
    """Actors of a Ray cluster, from a machine of it. Its hosts must see the sweep's folder at the same path.

    Args:
        address: HOST:PORT of the head, or auto: the value of RAY_ADDRESS, else the cluster that this machine is part
            of.
        cpus: cores per device.
        devices_per_host: devices of one host that runs use; larger runs take several hosts. By default the GPUs of a
            host, or 1 where there are none.
    """

    address: str = "auto"
    cpus: int = 1
    devices_per_host: int | None = None

    def __post_init__(self) -> None:
        for name in ("cpus", "devices_per_host"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} = {value}: must be 1 or more")

    def cluster(self, folder: Path) -> RayActors:
        """The cluster at the address, for the sweep in `folder`."""
        return RayActors(self, folder.absolute())


@dataclass
class RayWorker:
    """An actor that keeps a worker at work. reply: what Ray will answer to the last question to the actor; last_state:
    as of its last answer; message: where the actor is, or why it died."""

    name: str
    actor: Any
    folder: Path
    reply: Any = None
    last_state: WorkerState = "queued"
    message: str = ""

    def state(self) -> WorkerState:
        """As of the last question that the actor, or Ray in its place, has answered; does not wait."""
        import ray

        if self.last_state == "ended":
            return self.last_state
        if self.reply is None:
            self.reply = self.actor.location.remote()
        if ray.wait([self.reply], timeout=0)[0]:
            try:
                self.last_state, self.message = "running", ray.get(self.reply)
            except ray.exceptions.ActorUnavailableError:  # Ray is starting it again
                self.last_state = "queued"
            except ray.exceptions.RayActorError as error:
                self.last_state, self.message = "ended", self.message or _cause_of_death(error)
            self.reply = None if self.last_state == "ended" else self.actor.location.remote()
        return self.last_state

    def describe(self) -> str:
        message = f" ({self.message})" if self.message else ""
        return f"Ray actor {self.name}{message}; it prints to {self.folder / LOG_FOLDER / self.name}.log"


def _cause_of_death(error: Exception) -> str:
    """The line of Ray's message about a dead actor that says why it died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error:" in line), lines[-1] if lines else "")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def options_digest(work: WorkerSpec) -> str:
    """A digest of the options of the command, the same for workers of every number of devices."""
    return digest(repr((work.devices_per_run, work.members, work.budgets)))


@dataclass
class RayActors:
    """The workers of one sweep on a Ray cluster. started: those that this command started or found. cancelled: names of
    those that an earlier command with other options left."""

    options: Ray
    folder: Path
    started: list[RayWorker] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)

    def check(self, devices: Sequence[int]) -> None:
        connect(self.options.address)
        per_host = self.devices_per_host()
        for count in devices:
            if count > per_host and count % per_host:
                raise InputError(
                    f"devices = {count}: a run over several hosts takes all {per_host} devices of each: must be at "
                    f"most {per_host}, or a multiple of it"
                )
            if self.count_places(count) < 1:
                raise InputError(f"devices = {count}: more than there are; {self.describe_resources()}")

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        """Workers of a command with other options are asked to end, whatever number of devices they are for."""
        import ray

        connect(self.options.address)
        names = [named["name"] for named in ray.util.list_named_actors(True) if named["namespace"] == NAMESPACE]
        of_sweep = []
        for name in sorted(name for name in names if name.startswith(f"{self.sweep_prefix()}-")):
            with contextlib.suppress(ValueError):  # it has ended since it was listed
                of_sweep.append(RayWorker(name, ray.get_actor(name, NAMESPACE), self.folder))
        same_options = f"{self.sweep_prefix()}-{options_digest(work)}-"
        others = [each for each in of_sweep if not each.name.startswith(same_options)]
        if others := [each for each in others if each.name not in self.cancelled]:
            self.cancelled |= {each.name for each in others}
            count = f"{len(others)} worker{'s' * (len(others) > 1)}"
            fleet.print_line(make_console(), f"ending {count} of an earlier command, which had other options")
            self.cancel(others)
        kept = [each for each in of_sweep if each.name.startswith(f"{self.worker_prefix(work)}-")]
        self.started += kept
        return kept

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        """Starts at most one worker more than there is room for: that one asks an autoscaler for more hosts, and a
        thousand would not make them come sooner."""
        import ray

        prefix = self.worker_prefix(work)
        alive = sum(worker.name.startswith(prefix) and worker.state() != "ended" for worker in self.started)
        demand = self.host_demand(work.devices)
        # The processes of a run over several hosts have actors of their own; its worker needs nothing itself.
        resources = {} if demand.hosts > 1 else demand.resources
        actor_class = ray.remote(WorkerActor)
        options: dict[str, Any] = {"lifetime": "detached", "namespace": NAMESPACE, "max_restarts": -1}
        options |= {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
        address = ray.get_runtime_context().gcs_address
        job = WorkerJob(work, self.options.cpus, address, demand if demand.hosts > 1 else None, forwarded_env())
        new = []
        for _ in range(min(count, self.count_places(work.devices) + 1 - alive)):
            name = f"{prefix}-{uuid.uuid4().hex[:6]}"
            new.append(RayWorker(name, actor_class.options(name=name, **options).remote(name, job), self.folder))
        self.started += new
        return new

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        """Asks workers to let their runs save, and to end. Kills those that do not answer within ANSWER_SECONDS: they
        have not begun, or their host is gone, and they must not begin.

        While Ray starts an actor again, a call to it fails at once and never reaches it, so the call is repeated.
        """
        import ray

        calls: dict[Any, RayWorker] = {}
        for worker in workers:
            assert isinstance(worker, RayWorker)
            if worker.state() != "ended":
                calls[worker.actor.stop.remote()] = worker
        deadline = time.monotonic() + ANSWER_SECONDS
        while calls and (left := deadline - time.monotonic()) > 0:
            answered, _ = ray.wait([*calls], num_returns=len(calls), timeout=min(RETRY_SECONDS, left))
            unavailable = []
            for call in answered:
                worker = calls.pop(call)
                try:
                    ray.get(call)
                except ray.exceptions.ActorUnavailableError:
                    unavailable.append(worker)
                except ray.exceptions.RayError:  # it has died, which is an end too
                    pass
            if unavailable:
                time.sleep(RETRY_SECONDS)
                calls |= {worker.actor.stop.remote(): worker for worker in unavailable}
        for worker in calls.values():
            ray.kill(worker.actor, no_restart=True)

    def sweep_prefix(self) -> str:
        """How the names of all workers of the sweep begin: its name, and a digest of the whole path."""
        return f"{self.folder.name}-{digest(str(self.folder))}"

    def worker_prefix(self, work: WorkerSpec) -> str:
        """How the names of workers of one kind begin: the sweep, the options of the command, the devices of a run."""
        return f"{self.sweep_prefix()}-{options_digest(work)}-{work.devices}"

    def nodes(self) -> list[Mapping[str, float]]:
        """The resources of each live host."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def has_gpus(self) -> bool:
        return any(node.get("GPU", 0) >= 1 for node in self.nodes())

    def devices_per_host(self) -> int:
        if self.options.devices_per_host is not None:
            return self.options.devices_per_host
        return max([1, *(int(node.get("GPU", 0)) for node in self.nodes())])

    def host_demand(self, devices: int) -> HostDemand:
        """What a run of so many devices needs."""
        per_host = self.devices_per_host()
        share = min(devices, per_host)
        resources = {"CPU": float(self.options.cpus * share)} | ({"GPU": float(share)} if self.has_gpus() else {})
        return HostDemand(math.ceil(devices / per_host), share, resources)

    def count_places(self, devices: int) -> int:
        """How many runs of so many devices the cluster has hosts for when it is idle."""
        demand = self.host_demand(devices)
        fit = [
            min(int(node.get(name, 0) // needed) for name, needed in demand.resources.items()) for node in self.nodes()
        ]
        # A host takes one process of a run over several hosts (STRICT_SPREAD), however many would fit.
        return sum(fit) if demand.hosts == 1 else sum(count > 0 for count in fit) // demand.hosts

    def describe_resources(self) -> str:
        """The hosts, GPUs and cores of the cluster, for an error message."""
        nodes = [node for node in self.nodes() if node.get("CPU", 0) + node.get("GPU", 0) > 0]
        counts = ", ".join(f"{sum(int(node.get(kind, 0)) for node in nodes)} {kind}s" for kind in ("GPU", "CPU"))
        per = f"{self.devices_per_host()} devices a host, {self.options.cpus} cores a device"
        return f"the Ray cluster has {len(nodes)} hosts with {counts}, used as {per}"
