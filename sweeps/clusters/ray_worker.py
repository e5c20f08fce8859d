"""What runs on the hosts of a Ray cluster: an actor that keeps a worker alive, and the worker, a process of its own.

The worker is no part of the actor because Ray keeps the actor's signals to itself: as a process it hears SIGTERM like
any other runner (sweeps/running/runner.py). The actor is its lifeline. When the actor goes, even by SIGKILL, the pipe
between
them closes, and the worker lets its runs save and ends.

Not in the design's list of modules: ray.py is what the command does, this is what the cluster does.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from sweeps.clusters.ray_connection import HostDemand
from sweeps.clusters.ray_multihost import start_multi_host_run
from sweeps.local import processes
from sweeps.local.launch import Launcher, Slot
from sweeps.planning.plan import PLAN
from sweeps.running import fleet
from sweeps.running.cluster import WorkerSpec

LOG_FOLDER = "ray"
"""Where the workers of a sweep print, in its folder."""
"""Variables of the command's shell that its runs see too, as they would on this machine."""
SHORT_SECONDS, SHORT_LIVES, PAUSE_SECONDS = 60.0, 5, 1.0


@dataclass(frozen=True)
class WorkerJob:
    """What a worker needs to know. cpus: cores per device. address: of the cluster. hosts: what a run takes, when it
    takes several. variables: of its runs."""

    work: WorkerSpec
    cpus: int
    address: str
    hosts: HostDemand | None
    variables: Mapping[str, str]


class WorkerActor:
    """An actor that starts a worker, starts it again when a signal ended it, and goes when it is through.

    Raises in the constructor, so that Ray does not try again, when this host does not see the sweep.
    """

    def __init__(self, name: str, job: WorkerJob) -> None:
        folder = job.work.folder
        if not (folder / PLAN).exists():
            raise FileNotFoundError(
                f"host {platform.node()} does not see {folder / PLAN}: --out must be on a disk that all hosts share"
            )
        (folder / LOG_FOLDER).mkdir(exist_ok=True)
        self.job, self.log = job, folder / LOG_FOLDER / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping = False
        threading.Thread(target=self._tend, daemon=True).start()

    def where(self) -> str:
        """The host, and the actor's process: a sign of life."""
        return f"{platform.node()}, process {os.getpid()}"

    def stop(self) -> None:
        """Lets the runs save and end, and the worker with them."""
        self.stopping = True
        if self.process is not None:
            self.process.terminate()

    def _tend(self) -> None:
        import ray

        me = ray.get_runtime_context().current_actor
        short = 0
        while not self.stopping and short < SHORT_LIVES:
            began = time.monotonic()
            if self._work() >= 0:
                break
            short = short + 1 if time.monotonic() - began < SHORT_SECONDS else 0
            time.sleep(PAUSE_SECONDS)
        ray.kill(me, no_restart=True)

    def _work(self) -> int:
        """One life of the worker; its exit code."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "sweeps.clusters.ray_worker"]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(self.job))
        process.stdin.flush()
        self.process = process
        if self.stopping:
            process.terminate()
        return process.wait()


def main() -> int:
    """A worker, told by its actor what to do."""
    job: WorkerJob = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_stop_with_actor, daemon=True).start()
    os.environ.update(job.variables)
    launch: Launcher = processes.start_process
    slot = Slot(gpu=",".join(processes.visible_gpus()), devices=job.work.devices)
    if job.hosts is not None:
        launch, slot = partial(start_multi_host_run, job.address, job.hosts), Slot(devices=job.work.devices)
    elif job.cpus * job.work.devices == 1 and not slot.gpu:
        os.environ.update(processes.slot_environment(Slot(cores=(0,)), os.environ))
    return fleet.run_worker(job.work, launch, [slot])


def _stop_with_actor() -> None:
    """Stops this process as soon as its actor is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
