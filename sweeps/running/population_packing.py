"""Which waiting cells start together, as members of one population (scaling/training/population.py), or alone.

On an accelerator members of one shape fill a device that each of them alone would leave idle. On a CPU they take turns
in one process: it starts and loads its program once. A pack is held to what memory allows, and to a fair share of the
work that waits, so that no slot is left with a long one at the end.

Not in the design's list of modules: run.py would pass 300 lines.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable

from scaling.training.population_limits import members_that_fit, program_key
from sweeps.local.launch import Slot
from sweeps.local.processes import uses_tpu
from sweeps.planning.plan import Cell

LARGE_PARAMS, LONG_SECONDS = 150_000, 60.0
"""params_matmul and seconds of a run from which on turns in one process cost a CPU more than a start (LOG.md)."""
POPULATIONS_PER_SLOT = 2
"""Packs a slot that the work in sight is divided into, at least."""
MIB = 2**20


def choose_members(ready: Iterable[Cell], waiting: float, slot: Slot, slots: int, most: int | None) -> tuple[Cell, ...]:
    """The first of `ready` and its companions, in the order of `ready`.

    Args:
      ready: cells that could start now, longest first; not empty.
      waiting: seconds of all that have not started, ready or not: the work in sight.
      slot, slots: where they would run, and how many such there are.
      most: members at most, whatever memory allows; None for no such limit.
    """
    rest = iter(ready)
    first, second = next(rest), next(rest, None)
    big = (
        slot_platform(slot) == "cpu"
        and first.known_columns["params_matmul"] > LARGE_PARAMS
        and first.estimated_seconds > LONG_SECONDS
    )
    if second is None or most == 1 or big:
        return (first,)
    fit = max(members_that_fit(first.config, slot_memory(slot, slots), slot_platform(slot)), 1)
    most = min(most or fit, fit)
    limit = 1.001 * max(first.estimated_seconds, waiting / (POPULATIONS_PER_SLOT * slots))
    key, chosen, seconds = program_key(first.config), [first], first.estimated_seconds
    for cell in itertools.chain([second], rest):
        if len(chosen) == most:
            break
        if (
            seconds + cell.estimated_seconds <= limit
            and program_key(cell.config) == key
            and same_length(first, cell, slot)
        ):
            chosen.append(cell)
            seconds += cell.estimated_seconds
    return tuple(chosen)


def same_length(first: Cell, other: Cell, slot: Slot) -> bool:
    """Whether two cells keep step: on an accelerator a member that has ended still takes its share of the device."""
    return slot_platform(slot) == "cpu" or first.config.own_steps == other.config.own_steps


def slot_platform(slot: Slot) -> str:
    """Where a slot's runs compute: cpu, gpu or tpu."""
    if slot.gpu:
        return "gpu"
    return "tpu" if uses_tpu() else "cpu"


def slot_memory(slot: Slot, slots: int) -> float:
    """Bytes that the runs of one slot may fill; 0, hence no packs, where nobody says."""
    if slot.gpu:
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", f"--id={slot.gpu}"]
        found = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
        lines = found.stdout.split() if found is not None and found.returncode == 0 else []
        return float(lines[0]) * MIB * slot.memory_fraction if lines and lines[0].isdigit() else 0.0
    if slot_platform(slot) == "tpu" or not hasattr(os, "sysconf"):
        return 0.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / slots
