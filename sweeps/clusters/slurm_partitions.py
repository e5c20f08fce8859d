"""The partitions of a SLURM cluster, from sinfo, and how many of their nodes hold a run."""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from scaling.errors import InputError
from sweeps.clusters.slurm_job import COMMAND_SECONDS


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one kind in a partition: how many, and the cores and GPUs of each."""

    count: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Partition:
    """A partition. minutes: the time limit of its jobs, None when it has none. is_default: whether SLURM uses it for
    jobs that name none."""

    name: str
    nodes: tuple[NodeKind, ...]
    minutes: int | None = None
    is_default: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of the node that has most."""
        return max(kind.gpus for kind in self.nodes)

    def count_nodes(self, devices: int, cpus: int) -> int:
        """How many nodes have so many devices with so many cores each. On a partition with GPUs, devices are GPUs."""
        return sum(
            kind.count for kind in self.nodes if kind.cpus >= devices * cpus and (kind.gpus >= devices or not self.gpus)
        )

    @property
    def description(self) -> str:
        """Its nodes in words, for an error message."""
        kinds = (f"{n.count} nodes of " + (f"{n.gpus} GPUs" if n.gpus else f"{n.cpus} cores") for n in self.nodes)
        return " and ".join(kinds)


def parse_partitions(text: str) -> dict[str, Partition]:
    """Reads partitions by name from the output of `sinfo --exact --noheader --format=%P|%D|%c|%G|%l`."""
    partitions: dict[str, Partition] = {}
    for line in text.splitlines():
        name, count, cpus, gres, limit = line.split("|")
        # gres is as in gpu:h100:8(S:0-1),nvme:1
        gpus = sum(int(n) for n in re.findall(r"(?:^|,)gpu:(?:[^:,()]+:)?(\d+)", gres))
        # One line per kind of node; an asterisk marks the default partition, and a plus "at least so many cores".
        earlier = partitions.get(name.rstrip("*"))
        nodes = (*(earlier.nodes if earlier else ()), NodeKind(int(count), int(cpus.rstrip("+")), gpus))
        partitions[name.rstrip("*")] = Partition(name.rstrip("*"), nodes, parse_minutes(limit), name.endswith("*"))
    return partitions


def parse_minutes(limit: str) -> int | None:
    """Reads a time limit as SLURM writes it, [days-][[hours:]minutes:]seconds, in whole minutes; None for no limit."""
    days, _, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) < 2:
        return None
    seconds = sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
    return int(days or 0) * 24 * 60 + seconds // 60


def query_sinfo() -> str:
    """The output of sinfo on partitions. Raises InputError when no cluster answers in time."""
    command = ["sinfo", "--exact", "--noheader", "--format=%P|%D|%c|%G|%l"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True).stdout
    except subprocess.TimeoutExpired:
        reason = f"no answer to sinfo in {COMMAND_SECONDS:.0f} s"
    except (OSError, subprocess.CalledProcessError) as error:
        error_lines = (getattr(error, "stderr", "") or str(error)).splitlines()
        reason = error_lines[-1] if error_lines else str(error)
    raise InputError(f"executor slurm: no cluster reachable ({reason}); run this on a login node of a SLURM cluster")


def choose_partition(partitions: Mapping[str, Partition], name: str) -> Partition:
    """The partition of that name, or the default one when it is empty. Raises InputError when there is none such."""
    if name in partitions:
        return partitions[name]
    if name:
        near = difflib.get_close_matches(name, partitions, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"partition = {name}: no such partition; the cluster has {', '.join(partitions)}{meant}")
    default = next((partition for partition in partitions.values() if partition.is_default), None)
    if default is None:
        raise InputError(
            f"partition: the cluster has no default one; it has {', '.join(partitions)}; give one by --partition"
        )
    return default
