"""Chooses which waiting cells start together, as members of one population (scaling/training/population.py).

On an accelerator the members run in one vmapped program and fill a device that a small model alone would leave idle. On
a CPU they take turns in one process, which starts and compiles once for all. The size of a population is limited by
memory, and by a fair share of the waiting work, so that no slot still has a long population when the others are done.
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
"""params_matmul and estimated seconds above which a run on a CPU gets a process of its own: there taking turns costs
more than it saves of start-up (measured, see LOG.md)."""
POPULATIONS_PER_SLOT = 2
"""The waiting work is divided into at least this many populations a slot."""
MIB = 2**20


def choose_members(
    ready: Iterable[Cell], waiting_seconds: float, slot: Slot, slots: int, most: int | None
) -> tuple[Cell, ...]:
    """The first of `ready` and the cells that start with it, in the order of `ready`.

    Args:
      ready: cells that could start now, longest first; not empty.
      waiting_seconds: estimated wall time of all cells that have not started, ready or not.
      slot: where they would run.
      slots: how many such slots there are.
      most: most members, whatever memory allows; None for no limit but memory.
    """
    rest = iter(ready)
    first, second = next(rest), next(rest, None)
    too_large_to_share = (
        slot_platform(slot) == "cpu"
        and first.known_columns["params_matmul"] > LARGE_PARAMS
        and first.estimated_seconds > LONG_SECONDS
    )
    if second is None or most == 1 or too_large_to_share:
        return (first,)
    fit = max(members_that_fit(first.config, slot_memory(slot, slots), slot_platform(slot)), 1)
    most = min(most or fit, fit)
    # A population takes at most its fair share of the waiting time, but always its first member. 1.001: the estimates
    # are rounded, and members that fill the share exactly must fit.
    limit = 1.001 * max(first.estimated_seconds, waiting_seconds / (POPULATIONS_PER_SLOT * slots))
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
    """Whether two cells train for equally many steps, or are on a CPU, where it does not matter.

    In a vmapped program a member that has ended goes on taking its share of the device until the last one ends.
    """
    return slot_platform(slot) == "cpu" or first.config.own_steps == other.config.own_steps


def slot_platform(slot: Slot) -> str:
    """The kind of device that the runs of a slot use: cpu, gpu or tpu."""
    if slot.gpu:
        return "gpu"
    return "tpu" if uses_tpu() else "cpu"


def slot_memory(slot: Slot, slots: int) -> float:
    """Bytes of memory that the runs of one slot may fill; 0 where that is unknown, so that every run is alone."""
    if slot.gpu:
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", f"--id={slot.gpu}"]
        done = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
        lines = done.stdout.split() if done is not None and done.returncode == 0 else []
        return float(lines[0]) * MIB * slot.memory_fraction if lines and lines[0].isdigit() else 0.0
    if slot_platform(slot) == "tpu" or not hasattr(os, "sysconf"):
        return 0.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / slots
