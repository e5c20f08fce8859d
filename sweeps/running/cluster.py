"""The interface between a fleet (fleet.py) and a cluster: workers that can be submitted, polled and cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sweeps.running.attempt_log import DEFAULT_BUDGETS, RetryBudgets

WorkerState = Literal["queued", "running", "ended"]


class WorkerHandle(Protocol):
    """A worker that was submitted to a cluster."""

    def state(self) -> WorkerState:
        """Where it stands now: waiting for a machine, running, or gone."""
        ...

    def describe(self) -> str:
        """Its name on the cluster and the path of its output, for the message about a worker that ended too early."""
        ...


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker does: it trains the cells of a sweep folder that need `devices` devices. Picklable.

    A worker makes a runner from it (sweeps/running/fleet.py, `make_worker_runner`).

    Args:
      folder: the sweep's folder, an absolute path that all machines see.
      devices: devices of each run.
      devices_per_run: devices of a run whose mesh leaves its data axis open, as the user gave them.
      members: most runs in one population; None for as many as memory allows.
      budgets: how many bad attempts a run may have.
      total_slots: workers that are expected to share the cells.
    """

    folder: Path
    devices: int = 1
    devices_per_run: int | None = None
    members: int | None = None
    budgets: RetryBudgets = DEFAULT_BUDGETS
    total_slots: int = 1


class Cluster(Protocol):
    """A scheduler of machines. Its workers go on when this process ends; only `cancel` ends them."""

    def check(self, devices: Sequence[int]) -> None:
        """Raises InputError unless the cluster can be reached and has machines for runs of each number of devices."""
        ...

    def workers(self, work: WorkerSpec) -> Sequence[WorkerHandle]:
        """Workers with this spec that an earlier command started and that have not ended."""
        ...

    def start(self, work: WorkerSpec, count: int) -> Sequence[WorkerHandle]:
        """Submits up to `count` more workers. Raises InputError when the cluster refuses."""
        ...

    def cancel(self, workers: Sequence[WorkerHandle]) -> None:
        """Asks workers to save their runs and end. Does not wait."""
        ...
