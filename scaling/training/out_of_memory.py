"""Running out of memory: how it is told, and what to try next.

Not in the design's list of modules: what trains and what starts training both ask, and the latter without JAX.
"""

from __future__ import annotations

import dataclasses
import errno
import re
from pathlib import Path

from scaling.config.run_config import RunConfig
from scaling.errors import InputError, exception_chain

OUT_OF_MEMORY_MESSAGE = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|_ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
"""How XLA says it of a CPU, GPU or TPU, and CUDA's libraries of a GPU."""

VMSTAT = Path("/proc/vmstat")
MAX_LINE_LENGTH = 200


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that a device or the host has too little memory.

    One that was made bad input on its way is bad input, whatever it came from.
    """
    if isinstance(error, InputError):
        return False
    return any(_says_out_of_memory(link) for link in exception_chain(error))


def _says_out_of_memory(error: BaseException) -> bool:
    """Whether this one error is Python's, the system's or XLA's for too little memory. By name, to import no JAX."""
    is_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or (is_xla and OUT_OF_MEMORY_MESSAGE.search(str(error)) is not None)
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says, shortened: those of compilers have hundreds."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= MAX_LINE_LENGTH else line[: MAX_LINE_LENGTH - 3] + "..."


def batch_shards(config: RunConfig, devices: int) -> int:
    """How many of a run's devices the sequences of a batch are dealt to."""
    mesh = config.mesh
    return (mesh.data or max(devices // (mesh.fsdp * mesh.tensor), 1)) * mesh.fsdp


def sequences_per_device(config: RunConfig, devices: int = 1) -> int:
    """Sequences that each device has at once, rounded up."""
    return -(-(config.data.microbatch_sequences or config.data.batch_sequences) // batch_shards(config, devices))


def with_smaller_microbatch(config: RunConfig, devices: int = 1) -> RunConfig | None:
    """The same run with the next smaller microbatch: about half as many sequences at once; None when none is smaller.

    devices: how many the run has. Each of those that the batch is dealt to (mesh axes data and fsdp) takes as many
    sequences as the others, and each microbatch as many as the others, so that their mean is the gradient of the batch.
    """
    batch, rows = config.data.batch_sequences, batch_shards(config, devices)
    now = config.data.microbatch_sequences or batch
    fitting = [size for size in range(rows, now // 2 + 1, rows) if batch % size == 0]
    if not fitting:
        return None
    return dataclasses.replace(config, data=dataclasses.replace(config.data, microbatch_sequences=fitting[-1]))


def count_oom_kills() -> int | None:
    """How many processes of this machine the kernel has killed for memory since it started; None where it does not say.

    More than before, and a process that ended by SIGKILL: it is likely that memory was why.
    """
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def oom_kill_since(before: int | None) -> bool:
    """Whether the kernel has killed a process of this machine for memory since `before`, an earlier `kills()`."""
    now = count_oom_kills()
    return before is not None and now is not None and now > before
