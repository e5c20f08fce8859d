"""One run over several hosts of a Ray cluster, with one process on each host.

    python -m sweeps.clusters.ray_multihost ADDRESS DEMAND FOLDER COMMAND...        DEMAND: a HostDemand as JSON

`start_multi_host_run` starts this program for a run; it stands for all processes of the run. It takes a placement group
with one bundle per host, starts the command on each host with the variables that jax.distributed needs
(scaling/training/multihost.py), and ends with their combined exit code. When one process dies it kills the others; the
runner then starts the run again from its last checkpoint, on the hosts that are left. When this program itself dies,
Ray clears what it holds on the cluster. SIGTERM makes the run save and end; SIGUSR1 kills it, because Ray blocks SIGINT
in the processes that it starts.
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
from sweeps.clusters.process_supervision import ProcessSupervisor
from sweeps.clusters.ray_connection import HostDemand
from sweeps.local import processes
from sweeps.local.launch import ProcessHandle, Slot

RAY_LOG_FILE = "ray.txt"
"""In the run folder: what Ray itself prints. The run prints to its log.txt."""
POLL_SECONDS, KILL_SECONDS = 0.2, 30.0
NOTICE_SECONDS = 60.0
"""Seconds between two lines that say that the run waits for hosts."""
PORTS = range(20_000, 32_000)
"""Below those that Linux gives to outgoing connections."""


@dataclass
class MultiHostHandle:
    """A run over several hosts, by the local process that stands for it."""

    process: processes.Process

    def poll(self) -> int | None:
        return self.process.poll()

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """Kills all processes of the run. After KILL_SECONDS kills the local process alone: Ray then ends its actors,
        and with them their processes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.popen.send_signal(signal.SIGUSR1)
            self.process.popen.wait(KILL_SECONDS)
        self.process.kill()


def start_multi_host_run(
    address: str, demand: HostDemand, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()
) -> ProcessHandle:
    """Starts a run over several hosts. The slot is ignored: Ray decides where there is room."""
    arguments = [address, json.dumps(asdict(demand)), str(folder), *command]
    argv = [sys.executable, "-m", "sweeps.clusters.ray_multihost", *arguments]
    return MultiHostHandle(processes.start_process(argv, folder, Slot(), inherit))


class HostActor:
    """A Ray actor on one of the hosts, which starts and watches the process there. variables: for its environment."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        self.process: processes.Process | None = None

    def address(self) -> str:
        """IP:PORT at which the first process can listen for the others."""
        import ray

        while True:
            port = random.choice(PORTS)
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("", port))  # a try: nothing listens here
                return f"{ray.util.get_node_ip_address()}:{port}"

    def start(self, command: Sequence[str], folder: Path, devices: int, peers: Mapping[str, str]) -> None:
        """Starts the command on everything that Ray gave this actor. peers: the variables of jax.distributed."""
        variables = [f"{name}={value}" for name, value in peers.items()]
        self.process = processes.start_process(
            ["env", *variables, *command], folder, processes.whole_machine_slot(devices)
        )

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
    """The processes of a run, by their actors. exit_codes: of each process, None while it runs. terminations, kills:
    signals received for the run. is_terminated: whether the processes were asked to save and end."""

    actors: Sequence[Any]
    exit_codes: list[int | None] = field(default_factory=list)
    terminations: int = 0
    kills: int = 0
    is_terminated: bool = False

    def receive_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.kills += 1
        else:
            self.terminations += 1

    def call_all(self, method: str) -> list[Any]:
        """Calls a method of every actor whose process runs, and returns the results: None for the other actors,
        PROCESS_LOST for those that have died."""
        import ray

        self.exit_codes = self.exit_codes or [None] * len(self.actors)
        calls = [
            getattr(actor, method).remote() if code is None else None
            for actor, code in zip(self.actors, self.exit_codes, strict=True)
        ]
        results = []
        for call in calls:
            try:
                results.append(ray.get(call) if call is not None else None)
            except ray.exceptions.RayActorError:
                results.append(PROCESS_LOST)
        return results

    def watch(self) -> int:
        """Waits until all processes have ended, and kills those that outlive another for too long. Returns the exit
        code of the run."""
        supervisor = ProcessSupervisor()
        while True:
            now = self.call_all("poll")
            self.exit_codes = [old if old is not None else new for old, new in zip(self.exit_codes, now, strict=True)]
            ended = [code for code in self.exit_codes if code is not None]
            if len(ended) == len(self.exit_codes):
                return combined_exit_code(ended)
            if self.kills or supervisor.must_kill(self.exit_codes):
                self.call_all("kill")
            elif self.terminations and not self.is_terminated:
                self.is_terminated = True
                self.call_all("terminate")
            time.sleep(POLL_SECONDS)


def run_on_hosts(address: str, demand: HostDemand, folder: Path, command: Sequence[str]) -> int:
    """Waits for hosts, then trains the run on them to its end. Returns its exit code, negative for a signal."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from sweeps.clusters.ray_connection import connect, forwarded_env

    connect(address)
    run = MultiHostRun(())
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, run.receive_signal)
    group = ray.util.placement_group([dict(demand.resources)] * demand.hosts, strategy="STRICT_SPREAD")
    said_at = time.monotonic()
    while not group.wait(POLL_SECONDS):
        if run.terminations or run.kills:
            return STOPPED
        # The line tells the runner that this run is not stuck (sweeps/running/progress_watch.py).
        if time.monotonic() - said_at > NOTICE_SECONDS:
            print(f"waiting for {demand.hosts} hosts of the Ray cluster", flush=True)
            said_at = time.monotonic()
    cpus, gpus = demand.resources.get("CPU", 0), demand.resources.get("GPU", 0)
    actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus)(HostActor)
    strategies = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in range(demand.hosts)]
    run.actors = [actor_class.options(scheduling_strategy=each).remote(forwarded_env()) for each in strategies]
    try:
        peers = {
            "JAX_COORDINATOR_ADDRESS": ray.get(run.actors[0].address.remote()),
            "JAX_NUM_PROCESSES": str(demand.hosts),
        }
        starts = [
            actor.start.remote(command, folder, demand.devices_per_host, peers | {"JAX_PROCESS_ID": str(rank)})
            for rank, actor in enumerate(run.actors)
        ]
        ray.get(starts)
    except ray.exceptions.RayActorError:
        return PROCESS_LOST
    return run.watch()


def main(arguments: Sequence[str]) -> None:
    """Ends as the run does: with its exit code, or by the signal that ended it. Ray's own output goes to RAY_LOG_FILE,
    beside the log of the run."""
    address, demand, folder, *command = arguments
    with (Path(folder) / RAY_LOG_FILE).open("ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    code = run_on_hosts(address, HostDemand(**json.loads(demand)), Path(folder), command)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP take no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    # Ray imports the class of an actor from its module, so it must not be that of __main__.
    from sweeps.clusters import ray_multihost

    ray_multihost.main(sys.argv[1:])
