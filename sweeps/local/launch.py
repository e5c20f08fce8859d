"""How the runner starts a run: the interface `Launcher`, and the `Slot` that a run gets.

The runner (sweeps/running/runner.py) holds the claims and decides what follows from the exit code of an attempt; a
launcher only starts its process, on this machine (sweeps/local/processes.py) or on several hosts (sweeps/clusters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Slot:
    """Room for one run on this machine.

    Args:
        cores: the cores that the run may use; none means any.
        gpu: names of its GPUs as in CUDA_VISIBLE_DEVICES, joined by commas; empty for a run on cores.
        memory_fraction: the part of the memory of each GPU that the run may take, below 1 when runs share a GPU.
        devices: number of devices that the run sees.
    """

    cores: tuple[int, ...] = ()
    gpu: str = ""
    memory_fraction: float = 1.0
    devices: int = 1


class ProcessHandle(Protocol):
    """The process, or the processes on several hosts, of one attempt at a run."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal as in subprocess; None while it runs."""
        ...

    def terminate(self) -> None:
        """Asks the run to save and end; does not wait."""
        ...

    def kill(self) -> None:
        """Ends the run and every process that it started. Returns when none of them runs; over several hosts it may
        return some seconds earlier, and `poll` then returns None until none of them runs."""
        ...


class Launcher(Protocol):
    """Starts a command for a run folder in a slot. The command's output is appended to log.txt of the folder.

    inherit: file descriptors that stay open in the new process where possible, such as the lock of its claim. Raises
    OSError when the process cannot be started.
    """

    def __call__(
        self, command: Sequence[str], folder: Path, slot: Slot, inherit: Sequence[int] = ()
    ) -> ProcessHandle: ...
