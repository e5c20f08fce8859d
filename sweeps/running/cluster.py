"""What a cluster offers a sweep: workers that can be submitted, polled and cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sweeps.running.attempt_log import DEFAULT_BUDGETS, RetryBudgets

WorkerState = Literal["queued", "running", "ended"]


class WorkerHandle(Protocol):
    """A runner that a cluster was asked for."""

    def state(self) -> WorkerState: ...

    def describe(self) -> str:
        """Its name on the cluster, and where its own output is: for a message about a worker that ended too early."""
        ...


@dataclass(frozen=True)
class WorkerSpec:
    """What the workers of one kind are to do: the cells of a sweep folder that need `devices` devices.

    Picklable; a worker makes a runner of it (sweeps/running/fleet.py, `hire`). asked: devices of a run whose mesh
    leaves its
    data axis open. members: of a population, at most. crew: workers expected to share the work.
    """

    folder: Path
    devices: int = 1
    devices_per_run: int | None = None
    members: int | None = None
    budgets: RetryBudgets = DEFAULT_BUDGETS
    total_slots: int = 1


class Cluster(Protocol):
    """A scheduler of machines. Its workers live on when this process ends; `cancel` ends them."""

    def check(self, devices: Sequence[int]) -> None:
        """Raises InputError, one line, unless the cluster is reachable and has room for runs of so many devices."""
        ...

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        """Workers of this work that an earlier command left there and that have not ended."""
        ...

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        """Asks for `count` workers more."""
        ...

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        """Asks workers to let their runs save, and to end."""
        ...
