"""Where runs go: this machine, a SLURM cluster, a Ray cluster.

Two interfaces, both small, and everything else about a sweep is above them and the same everywhere:

    Launcher   starts one attempt at a run, or at a population: local.start, and how a cluster starts one over hosts.
               The runner (sweeps/running/runner.py) uses it; it holds the claims and judges how an attempt ended.
    Cluster    brings up workers elsewhere, each of which is a runner on what it was given. The fleet
               (sweeps/running/fleet.py) uses it; it decides how many there should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Slot:
    """Room for one run: these cores (none: any), or these GPUs, as CUDA_VISIBLE_DEVICES names them, of which it may
    take a fraction of the memory. devices: how many the run is to see."""

    cores: tuple[int, ...] = ()
    gpu: str = ""
    memory_fraction: float = 1.0
    devices: int = 1


class ProcessHandle(Protocol):
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


class Launcher(Protocol):
    """Starts a command for a run folder in a slot. What it prints goes to the folder's log.txt.

    inherit: descriptors that it keeps open where it can, such as its claim's lock. Raises OSError where it cannot.
    """

    def __call__(
        self, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()
    ) -> ProcessHandle: ...
