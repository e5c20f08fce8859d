"""A worker on several hosts that share nothing but the sweep's folder: those of a TPU slice, as pods or machines.

    python -m sweeps.clusters.shared_disk_hosts FOLDER NAME RANK HOSTS DEVICES

Every host runs this, with its rank; NAME is the slice's own, DEVICES of all hosts together. The first is a worker as
any other (sweeps/running/fleet.py). For each run it gives an order, a file, which the other hosts follow: each starts
one
process, and jax.distributed joins them. A host that is silent for a while, or begins anew, is lost, and with it the
run; its worker ends when the first host does, so that who started them starts them all again.

Not in the design's list of modules: the scheduler of such hosts gives no way from one to the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.exit_codes import FAILED, PROCESS_LOST, STOPPED, combined_exit_code
from scaling.signals import handle_signals
from sweeps.clusters.heartbeats import BEAT_SECONDS, Speaker, Voice
from sweeps.local import processes
from sweeps.local.launch import Launcher, ProcessHandle, Slot
from sweeps.running import fleet
from sweeps.running.claims import HEARTBEAT_SECONDS, LEASE_SECONDS, is_claimable
from sweeps.running.cluster import WorkerSpec
from sweeps.running.runner import Runner

HOSTS = "hosts"
POLL_SECONDS = 0.2
SETTLE_SECONDS, FAREWELL_SECONDS = 3.0, 120.0


@dataclass
class Leader:
    """Launches a run over all hosts, from the first."""

    place: Path
    hosts: int
    devices: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    orders: int = 0
    speaker: Speaker = field(init=False)
    others: list[Voice] = field(init=False)

    def __post_init__(self) -> None:
        self.speaker = Speaker(self.place / "leader.json", {"id": self.id})
        self.others = [Voice(self.place / f"{rank}.json") for rank in range(1, self.hosts)]

    def __call__(self, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()) -> ProcessHandle:
        self.orders += 1
        mine = dataclasses.replace(slot, devices=self.devices // self.hosts)
        return Run(self, self.orders, command, folder, mine, inherit)

    def lives(self, over: threading.Event) -> None:
        """Lets the others hear it until the work is over."""
        while not over.wait(BEAT_SECONDS / 2):
            self.speaker.beat()


@dataclass
class Run:
    """A run over all hosts. It starts when each of them is there; until then it can be stopped, and has no process."""

    leader: Leader
    number: int
    command: Sequence[str]
    folder: Path
    slot: Slot
    inherit: Sequence[int]
    crew: list[str] = field(default_factory=list)
    own: processes.Process | None = None
    stopped: bool = False
    first_ended: float = 0.0
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            said = [other.listen() for other in self.leader.others]
            if self.own is not None:
                self.code = self.ended(self.own, [self.told(i, one) for i, one in enumerate(said)])
            elif self.stopped:
                self.code = STOPPED
            elif any(other.silent for other in self.leader.others):
                self.stopped = True
                os.kill(os.getpid(), signal.SIGTERM)  # the worker ends: it has no hosts
            elif all(map(self.idle, said)):
                self.begin([one["id"] for one in said])
        return self.code

    def idle(self, said: Mapping[str, Any]) -> bool:
        """Whether another host waits for this leader's orders."""
        return said.get("leader") == self.leader.id and not said["busy"]

    def told(self, index: int, said: Mapping[str, Any]) -> int | None:
        """The exit code of another host's process; None while it runs."""
        if self.leader.others[index].silent or said["id"] != self.crew[index]:
            return PROCESS_LOST
        return said["code"] if said["number"] == self.number else None

    def begin(self, crew: list[str]) -> None:
        self.crew = crew
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        peers = {"JAX_COORDINATOR_ADDRESS": f"{address()}:{port}", "JAX_NUM_PROCESSES": str(self.leader.hosts)}
        self.say({"command": [*self.command], "folder": str(self.folder), "peers": peers})
        self.own = start(self.command, self.folder, self.slot, peers, 0, self.inherit)

    def say(self, order: Mapping[str, Any]) -> None:
        self.leader.speaker.say({"id": self.leader.id, "number": self.number, "crew": self.crew, **order})

    def ended(self, own: processes.Process, others: list[int | None]) -> int | None:
        """The exit code of the run when all of its processes have ended; none outlives another for long."""
        codes = [own.poll(), *others]
        known = [code for code in codes if code is not None]
        if len(known) == len(codes):
            return combined_exit_code(known)
        if known:
            self.first_ended = self.first_ended or time.monotonic()
            agreed = all(code in (0, STOPPED) for code in known)
            if time.monotonic() - self.first_ended > (FAREWELL_SECONDS if agreed else SETTLE_SECONDS):
                self.say({"kill": True})
                own.kill()
        return None

    def terminate(self) -> None:
        """One process asks, all save (scaling/training/multihost.py)."""
        self.stopped = True
        if self.own is not None:
            self.own.terminate()

    def kill(self) -> None:
        """Returns when no process is left, or its host is silent."""
        self.stopped = True
        if self.own is not None:
            self.say({"kill": True})
            self.own.kill()
        while self.poll() is None:
            time.sleep(POLL_SECONDS)


@dataclass
class Follower:
    """A host that is not the first. busy: it has a process."""

    place: Path
    rank: int
    hosts: int
    devices: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: processes.Process | None = None
    leader: str = ""
    number: int = 0
    code: int | None = None
    stops: int = 0

    def __call__(self) -> int:
        """Follows the first host until its work is over, or it is lost. Returns the exit code."""
        order, speaker = Voice(self.place / "leader.json"), Speaker(self.place / f"{self.rank}.json")
        try:
            while True:
                now = order.listen()
                if order.silent or (self.stops and self.process is None):
                    return STOPPED if self.stops else PROCESS_LOST
                if now.get("over") == "work" and now["id"] == self.leader:
                    return 0
                self.follow(now)
                said = {"id": self.id, "leader": self.leader, "busy": self.process is not None}
                said |= {"number": self.number, "code": self.code}
                if said == speaker.says:
                    speaker.beat()
                else:
                    speaker.say(said)
                time.sleep(POLL_SECONDS)
        finally:
            if self.process is not None:
                self.process.kill()

    def follow(self, order: Mapping[str, Any]) -> None:
        """Does what the order says, once."""
        if self.process is not None:
            if order.get("id") != self.leader or order.get("kill"):
                self.process.kill()
            self.code = self.process.poll()
            if self.code is not None:
                self.process = None
        elif order.get("id", "") != self.leader:
            self.leader, self.number, self.code = order["id"], 0, None
        elif self.id in order.get("crew", ()) and order["number"] > self.number and not self.stops:
            self.number, self.code = order["number"], None
            if order.get("kill"):
                self.code = -signal.SIGKILL
                return
            slot = processes.whole_machine_slot(self.devices // self.hosts)
            self.process = start(order["command"], Path(order["folder"]), slot, order["peers"], self.rank)

    def hear(self) -> None:
        """A signal to this host: the run saves on all."""
        self.stops += 1
        if self.process is not None:
            self.process.terminate()


def address() -> str:
    """This host's, as others on its network reach it: that of the way out, for a name may stand for 127.0.1.1."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))
        return way.getsockname()[0]
    return socket.gethostbyname(socket.gethostname())


def start(
    command: Sequence[str], folder: Path, slot: Slot, peers: Mapping[str, str], rank: int, inherit: Sequence[int] = ()
) -> processes.Process:
    """One process of a run."""
    told = [f"{name}={value}" for name, value in {**peers, "JAX_PROCESS_ID": str(rank)}.items()]
    return processes.start_process(["env", *told, *command], folder, slot, inherit)


def lead(work: WorkerSpec, place: Path, hosts: int) -> int:
    """The first host: a worker whose runs are started on all. Alone it is as any other."""
    if hosts == 1:
        return persevere(work, processes.start_process)
    leader, over = Leader(place, hosts, work.devices), threading.Event()
    beating = threading.Thread(target=leader.lives, args=(over,), daemon=True)
    beating.start()
    try:
        code = persevere(work, leader)
        leader.speaker.say({"id": leader.id, "over": "work"})
        return code
    finally:
        over.set()
        beating.join()


def persevere(work: WorkerSpec, launch: Launcher) -> int:
    """A worker. Where others hold all that is left, it first sees that they live: no fleet would start another, and the
    other may be this one before it was started again."""
    while True:
        worker = fleet.make_worker_runner(work, launch)
        with worker.handling_signals():
            code = worker()
            if worker.stops or not freed(worker):
                return STOPPED if worker.stops else code


def freed(worker: Runner) -> bool:
    """Whether one of the runs that others hold becomes free, before each lease must be stale if nobody renews it."""
    late = time.monotonic() + LEASE_SECONDS + 2 * HEARTBEAT_SECONDS
    while not worker.stops and time.monotonic() < late:
        left = [worker.run_folder(cell) for cell in worker.pending if not worker.has_ended(cell)]
        if not left or any(map(is_claimable, left)):
            return bool(left)
        time.sleep(BEAT_SECONDS)
    return False


def main(arguments: Sequence[str]) -> int:
    """Ends with 0 when nothing is left to do, also where a run failed, which its row says: no reason to start again."""
    folder, name, rank, hosts, devices = arguments
    place = Path(folder) / HOSTS / name
    if int(rank):
        follower = Follower(place, int(rank), int(hosts), int(devices))
        with handle_signals((signal.SIGTERM, signal.SIGINT), lambda number: follower.hear()):
            return follower()
    code = lead(WorkerSpec(Path(folder).absolute(), int(devices), int(devices)), place, int(hosts))
    return 0 if code == FAILED else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
