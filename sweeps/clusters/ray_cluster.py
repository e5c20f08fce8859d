"""Workers that are actors of a Ray cluster (Ray core): GPUs a run, and runs over several hosts.

The actors are detached: they, and Ray's memory of them, outlive the command, so a command that died is replaced by the
same command, which finds them by their names. Ray starts an actor again elsewhere when its process or its host dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling.errors import InputError
from sweeps.clusters.ray_connection import NAMESPACE, HostDemand, connect, forwarded_env
from sweeps.clusters.ray_worker import LOG_FOLDER, WorkerActor, WorkerJob
from sweeps.running import fleet
from sweeps.running.cluster import WorkerHandle, WorkerSpec, WorkerState

ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Ray:
    """Actors of a Ray cluster, from a machine of it. Its hosts must see the sweep's folder at the same path.

    Args:
        address: HOST:PORT of the head, or auto: what RAY_ADDRESS says, else the cluster that this machine is part of.
        cpus: cores per device.
        devices_per_host: the GPUs of a host, 1 where there are none, when not given. Larger runs take several hosts.
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
    """An actor that keeps a worker at work. sign: the answer it was asked for; known: what it was when last seen."""

    name: str
    actor: Any
    folder: Path
    sign: Any = None
    known: WorkerState = "queued"
    told: str = ""

    def state(self) -> WorkerState:
        """As of the last question that it answered, or that Ray did in its stead; does not wait."""
        import ray

        if self.known == "ended":
            return self.known
        if self.sign is None:
            self.sign = self.actor.where.remote()
        if ray.wait([self.sign], timeout=0)[0]:
            try:
                self.known, self.told = "running", ray.get(self.sign)
            except ray.exceptions.ActorUnavailableError:
                self.known = "queued"
            except ray.exceptions.RayActorError as error:
                self.known, self.told = "ended", self.told or _cause_of_death(error)
            self.sign = None if self.known == "ended" else self.actor.where.remote()
        return self.known

    def describe(self) -> str:
        said = f" ({self.told})" if self.told else ""
        return f"Ray actor {self.name}{said}; it prints to {self.folder / LOG_FOLDER / self.name}.log"


def _cause_of_death(error: Exception) -> str:
    """Of what Ray says of an actor that died, the line that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error:" in line), lines[-1] if lines else "")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def options_digest(work: WorkerSpec) -> str:
    """A digest of what the command asked for, whatever the kind of its workers."""
    return digest(repr((work.devices_per_run, work.members, work.budgets)))


@dataclass
class RayActors:
    """The workers of one sweep on a Ray cluster. dismissed: those of another such command."""

    options: Ray
    folder: Path
    mine: list[RayWorker] = field(default_factory=list)
    dismissed: set[str] = field(default_factory=set)

    def check(self, devices: Sequence[int]) -> None:
        connect(self.options.address)
        each = self.devices_per_host()
        for wanted in devices:
            if wanted > each and wanted % each:
                raise InputError(
                    f"devices = {wanted}: a run over several hosts takes all {each} devices of each: must be at most "
                    f"{each}, or a multiple of it"
                )
            if self.room(wanted) < 1:
                raise InputError(f"devices = {wanted}: more than there are; {self.has()}")

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        """Those of a command that asked for something else are told to end, whatever they were to do."""
        import ray

        connect(self.options.address)
        names = [named["name"] for named in ray.util.list_named_actors(True) if named["namespace"] == NAMESPACE]
        found = []
        for name in sorted(name for name in names if name.startswith(f"{self.sweep()}-")):
            with contextlib.suppress(ValueError):
                found.append(RayWorker(name, ray.get_actor(name, NAMESPACE), self.folder))
        others = [one for one in found if not one.name.startswith(f"{self.sweep()}-{options_digest(work)}-")]
        if others := [one for one in others if one.name not in self.dismissed]:
            self.dismissed |= {one.name for one in others}
            workers = f"{len(others)} worker{'s' * (len(others) > 1)}"
            fleet.print_line(Console(), f"ending {workers} of an earlier command, which asked for something else")
            self.cancel(others)
        kept = [one for one in found if one.name.startswith(f"{self.prefix(work)}-")]
        self.mine += kept
        return kept

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        """At most one more than there is room for: it asks an autoscaler for more hosts, and a thousand would not
        come sooner."""
        import ray

        alive = sum(worker.name.startswith(self.prefix(work)) and worker.state() != "ended" for worker in self.mine)
        hosts = self.hosts(work.devices)
        demand = {} if hosts.count > 1 else hosts.demand
        pilot = ray.remote(WorkerActor)
        cpus, gpus = demand.get("CPU", 0), demand.get("GPU", 0)
        wanted: dict[str, Any] = {"lifetime": "detached", "namespace": NAMESPACE, "max_restarts": -1}
        wanted |= {"num_cpus": cpus, "num_gpus": gpus}
        address = ray.get_runtime_context().gcs_address
        job = WorkerJob(work, self.options.cpus, address, hosts if hosts.count > 1 else None, forwarded_env())
        made = []
        for _ in range(min(count, self.room(work.devices) + 1 - alive)):
            name = f"{self.prefix(work)}-{uuid.uuid4().hex[:6]}"
            made.append(RayWorker(name, pilot.options(name=name, **wanted).remote(name, job), self.folder))
        self.mine += made
        return made

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        """Those that do not answer have not begun, or their host is gone: they are not to begin."""
        import ray

        asked = {}
        for worker in workers:
            assert isinstance(worker, RayWorker)
            if worker.state() != "ended":
                asked[worker.actor.stop.remote()] = worker
        _, silent = ray.wait([*asked], num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        for call in silent:
            ray.kill(asked[call].actor, no_restart=True)

    def sweep(self) -> str:
        """How the names of all workers of the sweep begin: its name, and a digest of the whole path."""
        return f"{self.folder.name}-{digest(str(self.folder))}"

    def prefix(self, work: WorkerSpec) -> str:
        """How the names of its workers begin: the sweep, what the command asked for, the devices of a run."""
        return f"{self.sweep()}-{options_digest(work)}-{work.devices}"

    def nodes(self) -> list[Mapping[str, float]]:
        """The resources of each host that is there."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def has_gpus(self) -> bool:
        return any(node.get("GPU", 0) >= 1 for node in self.nodes())

    def devices_per_host(self) -> int:
        if self.options.devices_per_host is not None:
            return self.options.devices_per_host
        return max([1, *(int(node.get("GPU", 0)) for node in self.nodes())])

    def hosts(self, devices: int) -> HostDemand:
        """What a run of so many devices takes."""
        each = self.devices_per_host()
        count = math.ceil(devices / each)
        share = min(devices, each)
        demand = {"CPU": float(self.options.cpus * share)} | ({"GPU": float(share)} if self.has_gpus() else {})
        return HostDemand(count, share, demand)

    def room(self, devices: int) -> int:
        """Runs of so many devices that the cluster has hosts for, were it free."""
        hosts = self.hosts(devices)
        fit = [min(int(node.get(name, 0) // needed) for name, needed in hosts.demand.items()) for node in self.nodes()]
        return sum(fit) if hosts.count == 1 else sum(one > 0 for one in fit) // hosts.count

    def has(self) -> str:
        """What there is, in words."""
        nodes = [node for node in self.nodes() if node.get("CPU", 0) + node.get("GPU", 0) > 0]
        counts = ", ".join(f"{sum(int(node.get(kind, 0)) for node in nodes)} {kind}s" for kind in ("GPU", "CPU"))
        per = f"{self.devices_per_host()} devices a host, {self.options.cpus} cores a device"
        return f"the Ray cluster has {len(nodes)} hosts with {counts}, used as {per}"
