"""One run over several hosts of a Ray cluster: a process a host, one fate.

    python -m sweeps.clusters.ray_multihost ADDRESS HOSTS FOLDER COMMAND...        HOSTS as JSON

The process that is started for a run (`start_gang`) stands for all of it. It takes a placement group with one bundle a
host, starts the command on each with what jax.distributed needs (scaling/training/multihost.py), and ends as they
end. When one of
them dies all are killed; the runner then starts the gang again, from the last checkpoint, on the hosts that there are.
What it holds on the cluster is Ray's to clear away when it dies, and its signals are a run's: SIGTERM saves and ends.
SIGUSR1 kills; Ray has SIGINT blocked in what it starts.

Not in the design's list of modules: ray.py and ray_worker.py deal in workers, this deals in the processes of one run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaling.exit_codes import PROCESS_LOST, STOPPED, combined_exit_code
from sweeps.clusters.ray_connection import HostDemand
from sweeps.local import processes
from sweeps.local.launch import ProcessHandle, Slot

RAY_LOG_FILE = "gang.txt"
POLL_SECONDS, SETTLE_SECONDS, FAREWELL_SECONDS, KILL_SECONDS = 0.2, 3.0, 120.0, 30.0
PORTS = range(20_000, 32_000)
"""Below those that Linux gives to outgoing connections."""


@dataclass
class MultiHostHandle:
    """A run over several hosts, by the process that stands for it."""

    process: processes.Process

    def poll(self) -> int | None:
        return self.process.poll()

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """Has all its processes killed; where that takes too long, leaves it to Ray, which sees its owner die."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.popen.send_signal(signal.SIGUSR1)
            self.process.popen.wait(KILL_SECONDS)
        self.process.kill()


def start_multi_host_run(
    address: str, hosts: HostDemand, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()
) -> ProcessHandle:
    """Starts a run over several hosts; of the slot it needs nothing, Ray says where there is room."""
    told = [address, json.dumps(asdict(hosts)), str(folder)]
    stands = [sys.executable, "-m", "sweeps.clusters.ray_multihost", *told, *command]
    return MultiHostHandle(processes.start_process(stands, folder, Slot(), inherit))


class HostActor:
    """An actor on one of the hosts, for the process there."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        self.process: processes.Process | None = None

    def address(self) -> str:
        """Where the first process can listen for the others."""
        import ray

        while True:
            port = random.choice(PORTS)
            with socket.socket() as found, contextlib.suppress(OSError):
                found.bind(("", port))
                return f"{ray.util.get_node_ip_address()}:{port}"

    def start(self, command: Sequence[str], folder: Path, devices: int, peers: Mapping[str, str]) -> None:
        """Starts the command in all that Ray gave this actor."""
        told = [f"{name}={value}" for name, value in peers.items()]
        self.process = processes.start_process(["env", *told, *command], folder, processes.whole_machine_slot(devices))

    def poll(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()


@dataclass
class MultiHostRun:
    """The processes of a run, by their actors; a code for each that has ended. terminations and kills: signals that
    came for the run, asked: whether they were passed on."""

    hosts: Sequence[Any]
    codes: list[int | None] = field(default_factory=list)
    first_ended: float = 0.0
    terminations: int = 0
    kills: int = 0
    asked: bool = False

    def hear(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.kills += 1
        else:
            self.terminations += 1

    def tell(self, method: str) -> list[Any]:
        """Calls a method of every host whose process runs; PROCESS_LOST for those that do not answer."""
        import ray

        self.codes = self.codes or [None] * len(self.hosts)
        calls = [
            getattr(h, method).remote() if c is None else None for h, c in zip(self.hosts, self.codes, strict=True)
        ]
        found = []
        for call in calls:
            try:
                found.append(ray.get(call) if call is not None else None)
            except ray.exceptions.RayActorError:
                found.append(PROCESS_LOST)
        return found

    def watch(self) -> int:
        """Until all processes have ended; none outlives another for long. Returns the exit code of the run."""
        while True:
            found = self.tell("poll")
            self.codes = [known if known is not None else now for known, now in zip(self.codes, found, strict=True)]
            ended = [code for code in self.codes if code is not None]
            if len(ended) == len(self.codes):
                return combined_exit_code(ended)
            if ended:
                self.first_ended = self.first_ended or time.monotonic()
            agreed = all(code in (0, STOPPED) for code in ended)
            grace = FAREWELL_SECONDS if agreed else SETTLE_SECONDS
            if self.kills or (ended and time.monotonic() - self.first_ended > grace):
                self.tell("kill")
            elif self.terminations and not self.asked:
                self.asked = True
                self.tell("terminate")
            time.sleep(POLL_SECONDS)


def run_on_hosts(address: str, hosts: HostDemand, folder: Path, command: Sequence[str]) -> int:
    """The run from its hosts to its end. Returns its exit code, negative for a signal."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from sweeps.clusters.ray_connection import connect, forwarded_env

    connect(address)
    gang = MultiHostRun(())
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, gang.hear)
    group = ray.util.placement_group([dict(hosts.demand)] * hosts.count, strategy="STRICT_SPREAD")
    while not group.wait(POLL_SECONDS):
        if gang.terminations or gang.kills:
            return STOPPED
    cpus, gpus = hosts.demand.get("CPU", 0), hosts.demand.get("GPU", 0)
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(HostActor)
    places = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in range(hosts.count)]
    gang.hosts = [actor.options(scheduling_strategy=place).remote(forwarded_env()) for place in places]
    try:
        peers = {"JAX_COORDINATOR_ADDRESS": ray.get(gang.hosts[0].address.remote()), "JAX_NUM_PROCESSES": hosts.count}
        told = [
            {name: str(value) for name, value in (peers | {"JAX_PROCESS_ID": i}).items()} for i in range(hosts.count)
        ]
        ray.get([h.start.remote(command, folder, hosts.devices, t) for h, t in zip(gang.hosts, told, strict=True)])
    except ray.exceptions.RayActorError:
        return PROCESS_LOST
    return gang.watch()


def main(arguments: Sequence[str]) -> None:
    """Ends as the run does. What Ray says of its own goes beside the run's log."""
    address, hosts, folder, *command = arguments
    with (Path(folder) / RAY_LOG_FILE).open("ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    code = run_on_hosts(address, HostDemand(**json.loads(hosts)), Path(folder), command)
    if code < 0:
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    from sweeps.clusters import ray_multihost

    ray_multihost.main(sys.argv[1:])  # of the module that has a name: Ray takes the class of its actors from there
