"""What a SLURM cluster has: its partitions, as sinfo tells them, and whether a run has room in one.

Not in the design's list of modules: slurm.py would pass 300 lines.
"""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from scaling.errors import InputError
from sweeps.clusters.slurm_job import ASK_SECONDS


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one kind in a partition: how many, and the cores and GPUs of each."""

    count: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Partition:
    """minutes: the longest that a job may last; None for any."""

    name: str
    nodes: tuple[NodeKind, ...]
    minutes: int | None = None
    default: bool = False

    @property
    def gpus(self) -> int:
        """Of a node that has most."""
        return max(kind.gpus for kind in self.nodes)

    def room(self, devices: int, cpus: int) -> int:
        """Nodes that have so many devices, of so many cores each."""
        return sum(
            kind.count for kind in self.nodes if kind.cpus >= devices * cpus and (kind.gpus >= devices or not self.gpus)
        )

    @property
    def has(self) -> str:
        """What it has, in words."""
        words = (f"{n.count} nodes of " + (f"{n.gpus} GPUs" if n.gpus else f"{n.cpus} cores") for n in self.nodes)
        return " and ".join(words)


def parse_partitions(text: str) -> dict[str, Partition]:
    """Partitions by name, from `sinfo --exact --noheader --format=%P|%D|%c|%G|%l`."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, count, cpus, gres, limit = line.split("|")
        gpus = sum(int(n) for n in re.findall(r"(?:^|,)gpu:(?:[^:,()]+:)?(\d+)", gres))
        known = found.get(name.rstrip("*"))
        nodes = (*(known.nodes if known else ()), NodeKind(int(count), int(cpus.rstrip("+")), gpus))
        found[name.rstrip("*")] = Partition(name.rstrip("*"), nodes, parse_minutes(limit), name.endswith("*"))
    return found


def parse_minutes(limit: str) -> int | None:
    """Whole minutes of a time limit as SLURM writes it, [days-][[hours:]minutes:]seconds; None when there is none."""
    days, _, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) < 2:
        return None
    seconds = sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
    return int(days or 0) * 24 * 60 + seconds // 60


def query_sinfo() -> str:
    """What sinfo says of the partitions. Raises InputError when no cluster answers in time."""
    command = ["sinfo", "--exact", "--noheader", "--format=%P|%D|%c|%G|%l"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True).stdout
    except subprocess.TimeoutExpired:
        why = f"no answer to sinfo in {ASK_SECONDS:.0f} s"
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).splitlines()
        why = said[-1] if said else str(error)
    raise InputError(f"executor slurm: no cluster reachable ({why})")


def choose_partition(partitions: Mapping[str, Partition], asked: str) -> Partition:
    """The partition of that name, or the default one. Raises InputError, with the nearest and all that there are."""
    if asked in partitions:
        return partitions[asked]
    if asked:
        near = difflib.get_close_matches(asked, partitions, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"partition = {asked}: no such partition; the cluster has {', '.join(partitions)}{meant}")
    default = next((one for one in partitions.values() if one.default), None)
    if default is None:
        raise InputError(f"partition: the cluster has no default one; it has {', '.join(partitions)}")
    return default
