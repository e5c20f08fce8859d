"""Keeps freed memory in the process, so that a training step on a CPU does not get its temporaries as new pages.

XLA on CPUs asks malloc for all temporaries of a step at once and frees them after it. glibc returns such a block to the
system, and in the next step the kernel must map and zero every page again: a third of the CPU time of a step with 75 MB
of temporaries (LOG.md, 2026-11-22).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from importlib.metadata import entry_points

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Parameters of glibc's mallopt(3), by their numbers in malloc.h."""


def is_cpu_only() -> bool:
    """Whether JAX will run on CPUs alone: JAX_PLATFORMS says so, or no plug-in for an accelerator is installed."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def keep_freed_pages() -> bool:
    """Sets glibc's malloc to keep freed memory in the process. Returns whether it was set.

    Does nothing unless training will run on CPUs and the C library is glibc. Must be called before JAX makes its first
    array, because a thread keeps the arena in which it first allocated.
    """
    if not is_cpu_only():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (M_ARENA_MAX, 1),  # one heap for all threads: a block that one frees serves the next that asks
        (M_MMAP_MAX, 0),  # large blocks come from the heap; a mapping of their own would be returned when freed
        (M_TRIM_THRESHOLD, 2**31 - 1),  # never shrink the heap (the largest int)
        (M_TOP_PAD, 64 * 2**20),  # grow it by 64 MiB at a time
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
