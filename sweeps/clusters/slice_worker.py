"""A worker on several hosts of a TPU slice, started by a scheduler that only starts and restarts all hosts together.

    python -m sweeps.clusters.slice_worker FOLDER NAME RANK HOSTS DEVICES

Every host runs this command with its own RANK; NAME identifies the slice, DEVICES counts those of all hosts together.
Host 0 is a worker like any other (sweeps/running/fleet.py): it alone holds claims and leases. To launch a run it sends
the command over TCP to the other hosts; each starts one process, and jax.distributed joins them. The file
FOLDER/hosts/NAME.json tells the others where host 0 listens. A connection that closes is a lost host: the run ends, the
worker ends, and the scheduler starts the slice again, which goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.errors import InputError
from scaling.exit_codes import FAILED, PROCESS_LOST, STOPPED, combined_exit_code
from scaling.files import read_json, write_json
from scaling.signals import handle_signals
from scaling.terminal import printable
from sweeps.clusters.process_supervision import ProcessSupervisor
from sweeps.local import processes
from sweeps.local.launch import Launcher, ProcessHandle, Slot
from sweeps.running import fleet
from sweeps.running.claims import HEARTBEAT_SECONDS, LEASE_SECONDS, is_claimable
from sweeps.running.cluster import WorkerSpec
from sweeps.running.runner import Runner

HOSTS_FOLDER = "hosts"
POLL_SECONDS, LEASE_POLL_SECONDS = 0.2, 1.0
MEET_SECONDS = 1800.0
"""Seconds that the hosts of a slice wait for each other at the start."""
ANSWER_SECONDS = 10.0
"""Seconds to connect to another host, and for its first answer."""
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}
"""Linux closes a connection to a host that has not answered for 60 s (the last value is in milliseconds)."""


class HostConnection:
    """JSON messages, one a line, between two hosts."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(None)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # macOS lacks some
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.socket, self.buffer = connected, b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError when the other host is gone."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float = 0.0) -> dict[str, Any] | None:
        """The next message; None when none arrives within so many seconds. Raises OSError when the other host is
        gone."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not select.select([self.socket], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                return None
            received = self.socket.recv(65_536)
            if not received:
                raise ConnectionResetError("the other host closed the connection")
            self.buffer += received
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)


@dataclass
class HostFollower:
    """Another host as host 0 sees it. exit_codes: {number of a run: how its process on that host ended}. is_gone: its
    connection is closed, or it is about to end."""

    connection: HostConnection
    exit_codes: dict[int, int] = field(default_factory=dict)
    is_gone: bool = False

    def send(self, message: Mapping[str, Any]) -> None:
        try:
            self.connection.send(message)
        except OSError:
            self.is_gone = True

    def poll(self, number: int) -> int | None:
        """The exit code of the process of a run, given by its number, on that host: None while it runs, PROCESS_LOST
        when the host is gone."""
        try:
            while (message := self.connection.receive()) is not None:
                self.exit_codes[message["number"]] = message["exit_code"]
                self.is_gone |= message["is_leaving"]
        except OSError:
            self.is_gone = True
        return self.exit_codes.get(number, PROCESS_LOST if self.is_gone else None)


@dataclass
class HostLeader:
    """Launches runs on all hosts of the slice, from host 0. followers: hosts 1, 2, ... launched: number of runs so far.
    has_stopped_worker: whether this worker was asked to end because a host is gone."""

    followers: Sequence[HostFollower]
    devices_per_host: int
    launched: int = 0
    has_stopped_worker: bool = False

    def __call__(self, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()) -> ProcessHandle:
        """Starts one process on every host. When a host is gone, it starts none, and the run ends as STOPPED."""
        self.launched += 1
        hosts = len(self.followers) + 1
        run = SliceRun(self, self.launched, [None] * hosts)
        if any(follower.poll(run.number) is not None for follower in self.followers):
            run.exit_codes = [STOPPED] * hosts
            self.stop_worker_without_hosts()
            return run
        with socket.socket() as free:
            free.bind((own_address(), 0))
            coordinator = "{}:{}".format(*free.getsockname())
        peers = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(hosts)}
        order = {"order": "start", "number": run.number, "command": [*command], "folder": str(folder), "peers": peers}
        self.send(order)
        own_slot = dataclasses.replace(slot, devices=self.devices_per_host)
        run.own_process = start_peer(command, folder, own_slot, peers, 0, inherit)
        return run

    def send(self, order: Mapping[str, Any]) -> None:
        """To all followers."""
        for follower in self.followers:
            follower.send(order)

    def stop_worker_without_hosts(self) -> None:
        """Ends this worker when a host is gone, for no run can start any more; the scheduler starts all hosts again."""
        if not self.has_stopped_worker and any(follower.is_gone for follower in self.followers):
            self.has_stopped_worker = True
            os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class SliceRun:
    """A run on all hosts of the slice. exit_codes: by rank, None while a process runs."""

    leader: HostLeader
    number: int
    exit_codes: list[int | None]
    own_process: processes.Process | None = None
    supervisor: ProcessSupervisor = field(default_factory=ProcessSupervisor)

    def poll(self) -> int | None:
        if self.own_process is not None and None in self.exit_codes:
            others = [follower.poll(self.number) for follower in self.leader.followers]
            self.exit_codes = [self.own_process.poll(), *others]
            if self.supervisor.must_kill(self.exit_codes):
                self.kill_processes()
            self.leader.stop_worker_without_hosts()
        ended = [code for code in self.exit_codes if code is not None]
        return combined_exit_code(ended) if len(ended) == len(self.exit_codes) else None

    def kill_processes(self) -> None:
        self.leader.send({"order": "kill"})
        if self.own_process is not None:
            self.own_process.kill()

    def terminate(self) -> None:
        """Asks the process of this host, which makes all others save too (scaling/training/multihost.py)."""
        if self.own_process is not None:
            self.own_process.terminate()

    def kill(self) -> None:
        """Returns when no process is left, or its host is gone."""
        self.kill_processes()
        while self.poll() is None:
            time.sleep(POLL_SECONDS)


@dataclass
class PeerHost:
    """A host other than host 0: starts what host 0 orders. number: of the run whose process it has, or had last."""

    connection: HostConnection
    rank: int
    devices: int
    number: int = 0
    process: processes.Process | None = None
    is_stopping: bool = False

    def __call__(self) -> int:
        """Follows host 0 until it has no more work. Returns 0, PROCESS_LOST when host 0 is gone, STOPPED after a signal
        to this host; no process of a run is left."""
        try:
            while not (self.is_stopping and self.process is None):
                order = self.connection.receive(POLL_SECONDS)
                if order is not None and order["order"] == "end":
                    return 0
                if order is not None:
                    self.obey(order)
                if self.process is not None and (code := self.process.poll()) is not None:
                    self.process = None
                    ended = {"number": self.number, "exit_code": code, "is_leaving": self.is_stopping}
                    self.connection.send(ended)
            return STOPPED
        except OSError:
            return STOPPED if self.is_stopping else PROCESS_LOST
        finally:
            if self.process is not None:
                self.process.kill()

    def obey(self, order: Mapping[str, Any]) -> None:
        """Starts or kills the process of a run. A run ends on all hosts before the next one starts."""
        if order["order"] == "start":
            self.number = order["number"]
            slot = processes.whole_machine_slot(self.devices)
            self.process = start_peer(order["command"], Path(order["folder"]), slot, order["peers"], self.rank)
        elif self.process is not None:
            self.process.kill()

    def stop(self, number: int) -> None:
        """On a signal to this host: the run saves on all hosts, and this host then leaves the slice."""
        self.is_stopping = True
        if self.process is not None:
            self.process.terminate()


def own_address() -> str:
    """The address of this host on the network by which it reaches others. Its host name may stand for 127.0.1.1.

    Connecting a datagram socket sends nothing: it makes the kernel choose the route, and so the own address.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address that belongs to nobody (RFC 5737)
        return probe.getsockname()[0]
    return socket.gethostbyname(socket.gethostname())


def start_peer(
    command: Sequence[str], folder: Path, slot: Slot, peers: Mapping[str, str], rank: int, inherit: Sequence[int] = ()
) -> processes.Process:
    """Starts the process of this host in a run. peers: variables by which jax.distributed joins all hosts."""
    variables = [f"{name}={value}" for name, value in {**peers, "JAX_PROCESS_ID": str(rank)}.items()]
    return processes.start_process(["env", *variables, *command], folder, slot, inherit)


def accept_followers(address_file: Path, hosts: int) -> list[HostFollower]:
    """On host 0: waits until all other hosts have connected. Raises OSError when they do not within MEET_SECONDS.

    The random key in the file tells this start of the slice from earlier ones, whose file other hosts may still read.
    """
    key, connections = uuid.uuid4().hex, dict[int, HostConnection]()
    deadline = time.monotonic() + MEET_SECONDS
    with socket.create_server((own_address(), 0), backlog=hosts) as server:
        host, port = server.getsockname()
        write_json(address_file, {"host": host, "port": port, "key": key})
        while len(connections) < hosts - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            connection = HostConnection(server.accept()[0])
            with contextlib.suppress(OSError, ValueError):  # whoever does not speak this protocol is not a host
                hello = connection.receive(ANSWER_SECONDS) or {}
                if hello.get("key") == key:
                    connection.send({"accepted": key})
                    connections[hello["rank"]] = connection
    return [HostFollower(connections[rank]) for rank in range(1, hosts)]


def connect_to_leader(address_file: Path, rank: int) -> HostConnection:
    """On every other host: connects to host 0. Raises OSError when it is not there within MEET_SECONDS."""
    deadline = time.monotonic() + MEET_SECONDS
    while time.monotonic() < deadline:
        # The file may be absent, or of an earlier start of the slice: then nobody answers there with its key.
        with contextlib.suppress(OSError, InputError, ValueError):
            leader = read_json(address_file)
            connection = HostConnection(socket.create_connection((leader["host"], leader["port"]), ANSWER_SECONDS))
            connection.send({"key": leader["key"], "rank": rank})
            if connection.receive(ANSWER_SECONDS) == {"accepted": leader["key"]}:
                return connection
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"{address_file}: host 0 of this slice did not answer within {MEET_SECONDS:.0f} s")


def lead(work: WorkerSpec, address_file: Path, hosts: int) -> int:
    """Host 0: a worker whose runs start on all hosts. A slice of one host is a worker like any other."""
    if hosts == 1:
        return run_until_free(work, processes.start_process)
    leader = HostLeader(accept_followers(address_file, hosts), work.devices // hosts)
    code = run_until_free(work, leader)
    leader.send({"order": "end"})
    return code


def run_until_free(work: WorkerSpec, launch: Launcher) -> int:
    """Runs a worker until nothing is left to do. Returns its exit code.

    When other workers hold all that is left, it waits until their leases are renewed or stale: no fleet would start
    another worker, and the holder may be this worker before its restart.
    """
    while True:
        worker = fleet.make_worker_runner(work, launch)
        with worker.handling_signals():
            code = worker()
            if worker.stops or not any_released(worker):
                return STOPPED if worker.stops else code


def any_released(worker: Runner) -> bool:
    """Whether one of the runs that others hold becomes free, within the time after which an unrenewed lease is
    stale."""
    deadline = time.monotonic() + LEASE_SECONDS + 2 * HEARTBEAT_SECONDS
    while not worker.stops and time.monotonic() < deadline:
        left = [worker.run_folder(cell) for cell in worker.pending if not worker.has_ended(cell)]
        if not left or any(map(is_claimable, left)):
            return bool(left)
        time.sleep(LEASE_POLL_SECONDS)
    return False


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code of this host: 0 when nothing is left to do, also when a run failed: its result says so, and
    starting the slice again would not help. PROCESS_LOST or STOPPED make the scheduler start the slice again."""
    folder, name = Path(arguments[0]), arguments[1]
    rank, hosts, devices = map(int, arguments[2:])
    address_file = folder / HOSTS_FOLDER / f"{name}.json"
    try:
        if rank == 0:
            code = lead(WorkerSpec(folder.absolute(), devices, devices), address_file, hosts)
            return 0 if code == FAILED else code
        peer = PeerHost(connect_to_leader(address_file, rank), rank, devices // hosts)
    except TimeoutError as error:
        print(printable(f"error: {error}; start all hosts of the slice again"), file=sys.stderr)
        return PROCESS_LOST
    with handle_signals((signal.SIGTERM, signal.SIGINT), peer.stop):
        return peer()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
