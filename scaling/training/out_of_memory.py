"""Recognizes that a run ran out of memory, and finds the next smaller microbatch to try. Imports no JAX, because the
sweep runner uses it too."""

from __future__ import annotations

import dataclasses
import errno
import math
import re
from pathlib import Path

from scaling.config.run_config import RunConfig
from scaling.errors import InputError, exception_chain

OUT_OF_MEMORY_MESSAGE = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|_ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
"""In messages of XLA about a CPU, GPU or TPU, and of CUDA's libraries."""

VMSTAT = Path("/proc/vmstat")
MAX_LINE_LENGTH = 200


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one in its chain, says that a device or the host has too little memory.

    False for an InputError, whatever it was raised from.
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
    """The first line of an error's message, at most MAX_LINE_LENGTH characters: a compiler's may have hundreds of
    lines."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= MAX_LINE_LENGTH else line[: MAX_LINE_LENGTH - 3] + "..."


def expected_batch_shards(config: RunConfig, devices: int) -> int:
    """Over how many of a run's devices the sequences of a batch are sharded (mesh axes data and fsdp)."""
    mesh = config.mesh
    return (mesh.data or max(devices // (mesh.fsdp * mesh.tensor), 1)) * mesh.fsdp


def sequences_per_device(config: RunConfig, devices: int = 1) -> int:
    """Sequences of a microbatch that each device holds at once, rounded up."""
    microbatch = config.data.microbatch_sequences or config.data.batch_sequences
    return math.ceil(microbatch / expected_batch_shards(config, devices))


def with_smaller_microbatch(config: RunConfig, devices: int = 1) -> RunConfig | None:
    """The same run with the next smaller microbatch, of at most half as many sequences; None when there is none.

    devices: how many the run has. Every microbatch has as many sequences as the others, and every device as many of
    them as the others, so that the mean over both is the gradient of the batch.
    """
    batch, shards = config.data.batch_sequences, expected_batch_shards(config, devices)
    current = config.data.microbatch_sequences or batch
    smaller = [size for size in range(shards, current // 2 + 1, shards) if batch % size == 0]
    if not smaller:
        return None
    return dataclasses.replace(config, data=dataclasses.replace(config.data, microbatch_sequences=smaller[-1]))


def count_oom_kills() -> int | None:
    """How many processes the kernel has killed for memory since the machine started; None where it does not tell.

    When the count has risen and a process ended by SIGKILL, memory was probably the cause.
    """
    try:
        match = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None


def oom_kill_since(before: int | None) -> bool:
    """Whether the kernel has killed a process of this machine for memory since `before`, an earlier
    `count_oom_kills()`."""
    now = count_oom_kills()
    return before is not None and now is not None and now > before
