"""Keeps freed memory in the process, so that a training step on a CPU does not get its temporaries as new pages.

XLA on CPUs asks malloc for all temporaries of a step at once and frees them after it. glibc gives such a block back to
the system, and the next step pays for every page again: a third of the CPU time of a step with 75 MB of temporaries
(LOG.md, 2026-11-22). Not in the design's list of modules: it concerns the process, and no other module does.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from importlib.metadata import entry_points

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Parameters of glibc's mallopt(3)."""


def is_cpu_only() -> bool:
    """Whether JAX will find no accelerator to look for: asked by name, or no plug-in is installed."""
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked == "cpu"
    return not entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def keep_freed_pages() -> bool:
    """One arena that neither maps large blocks apart nor shrinks. Returns whether it was done.

    Only where training will run on CPUs, with glibc; elsewhere nothing happens. Must be called before JAX makes its
    first array: threads keep the arena they have begun with.
    """
    if not is_cpu_only():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
