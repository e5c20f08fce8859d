"""What runs on the hosts of a Ray cluster: an actor that keeps a worker alive, and the worker, a process of its own.

The worker is a separate process because Ray handles the signals of an actor itself; as a process it takes SIGTERM like
any other runner (sweeps/running/runner.py). The actor holds one end of a pipe to it. When the actor dies, even by
SIGKILL, the pipe closes, and the worker lets its runs save and ends.
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

from scaling.record.run_folder import PLAN
from sweeps.clusters.ray_connection import HostDemand
from sweeps.clusters.ray_multihost import start_multi_host_run
from sweeps.local import processes
from sweeps.local.launch import Launcher, Slot
from sweeps.running import fleet
from sweeps.running.cluster import WorkerSpec

LOG_FOLDER = "ray"
"""In the sweep's folder: what its workers print."""
SHORT_SECONDS, MAX_SHORT_LIVES, PAUSE_SECONDS = 60.0, 5, 1.0
"""A worker that signals end within SHORT_SECONDS so many times in a row is not started again."""


@dataclass(frozen=True)
class WorkerJob:
    """What a worker needs to know. cpus: cores per device. address: of the cluster. demand: what a run needs when it
    takes several hosts, else None. variables: for the environment of its runs."""

    work: WorkerSpec
    cpus: int
    address: str
    demand: HostDemand | None
    variables: Mapping[str, str]


class WorkerActor:
    """An actor that starts a worker, starts it again when a signal ended it, and ends when the worker is done.

    The constructor raises when this host does not see the sweep, so that Ray does not start the actor again.
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
        threading.Thread(target=self._keep_worker_alive, daemon=True).start()

    def location(self) -> str:
        """The host, and the process of the actor. An answer means that the actor is alive."""
        return f"{platform.node()}, process {os.getpid()}"

    def stop(self) -> None:
        """Lets the runs save and end, and the worker with them."""
        self.stopping = True
        if self.process is not None:
            self.process.terminate()

    def _keep_worker_alive(self) -> None:
        import ray

        me = ray.get_runtime_context().current_actor
        short_lives = 0
        while not self.stopping and short_lives < MAX_SHORT_LIVES:
            began = time.monotonic()
            if self._run_worker() >= 0:  # an exit code; a negative one is a signal
                break
            short_lives = short_lives + 1 if time.monotonic() - began < SHORT_SECONDS else 0
            time.sleep(PAUSE_SECONDS)
        ray.kill(me, no_restart=True)

    def _run_worker(self) -> int:
        """Starts the worker, waits for its end, and returns its exit code."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "sweeps.clusters.ray_worker"]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(self.job))
        process.stdin.flush()
        self.process = process
        if self.stopping:  # `stop` may have come before there was a process
            process.terminate()
        return process.wait()


def main() -> int:
    """A worker; its job comes on standard input, which then stays open as long as its actor lives."""
    job: WorkerJob = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_stop_with_actor, daemon=True).start()
    os.environ.update(job.variables)
    launch: Launcher = processes.start_process
    slot = Slot(gpu=",".join(processes.visible_gpus()), devices=job.work.devices)
    if job.demand is not None:
        launch, slot = partial(start_multi_host_run, job.address, job.demand), Slot(devices=job.work.devices)
    elif job.cpus * job.work.devices == 1 and not slot.gpu:
        # Ray gave one core but pins nothing: the variables of a one-core slot keep the run to one thread.
        os.environ.update(processes.slot_environment(Slot(cores=(0,)), os.environ))
    return fleet.run_worker(job.work, launch, [slot])


def _stop_with_actor() -> None:
    """Asks this process to stop as soon as its actor is gone: reading then returns nothing."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
