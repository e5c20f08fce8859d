"""Where runs go: this machine, a SLURM cluster, a Ray cluster.

Two interfaces, both small, and everything else about a sweep is above them and the same everywhere:

    Launch     starts one attempt at a run, or at a population: local.start, and how a cluster starts one over hosts.
               The runner (sweeps/runner.py) uses it; it holds the claims and judges how an attempt ended.
    Cluster    brings up workers elsewhere, each of which is a runner on what it was given. The fleet
               (sweeps/fleet.py) uses it; it decides how many there should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sweeps.ledger import USUAL, Budgets


@dataclass(frozen=True)
class Slot:
    """Room for one run: these cores (none: any), or these GPUs, as CUDA_VISIBLE_DEVICES names them, of which it may
    take a fraction of the memory. devices: how many the run is to see."""

    cores: tuple[int, ...] = ()
    gpu: str = ""
    memory_fraction: float = 1.0
    devices: int = 1


class Handle(Protocol):
    """An attempt that was started."""

    def poll(self) -> int | None:
        """None while it runs; else its exit code, negative for a signal, as subprocess has it."""
        ...

    def terminate(self) -> None:
        """Asks it to save and end; does not wait."""
        ...

    def kill(self) -> None:
        """Ends it and all that it started. Returns when nothing of it runs; over several hosts it may return after some
        seconds, and `poll` says when that is so."""
        ...


class Launch(Protocol):
    """Starts a command for a run folder in a slot. What it prints goes to the folder's log.txt.

    inherit: descriptors that it keeps open where it can, such as its claim's lock. Raises OSError where it cannot.
    """

    def __call__(self, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()) -> Handle: ...


WorkerState = Literal["queued", "running", "ended"]


class Worker(Protocol):
    """A runner that a cluster was asked for."""

    def state(self) -> WorkerState: ...

    def describe(self) -> str:
        """Its name on the cluster, and where its own output is: for a message about a worker that ended too early."""
        ...


@dataclass(frozen=True)
class Work:
    """What the workers of one kind are to do: the cells of a sweep folder that need `devices` devices.

    Picklable; a worker makes a runner of it (sweeps/fleet.py, `hire`). asked: devices of a run whose mesh leaves its
    data axis open. members: of a population, at most. crew: workers expected to share the work.
    """

    folder: Path
    devices: int = 1
    asked: int | None = None
    members: int | None = None
    budgets: Budgets = USUAL
    crew: int = 1


class Cluster(Protocol):
    """A scheduler of machines. Its workers live on when this process ends; `cancel` ends them."""

    def check(self, devices: Sequence[int]) -> None:
        """Raises InputError, one line, unless the cluster is reachable and has room for runs of so many devices."""
        ...

    def workers(self, work: Work) -> Sequence[Worker]:
        """Workers of this work that an earlier command left there and that have not ended."""
        ...

    def start(self, work: Work, count: int) -> Sequence[Worker]:
        """Asks for `count` workers more."""
        ...

    def cancel(self, workers: Sequence[Worker]) -> None:
        """Asks workers to let their runs save, and to end."""
        ...
