"""TPU chips as their data sheets describe them, and the slices that exist: to compile and plan for absent TPUs. No
JAX."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from scaling.errors import InputError, suggest_name

SLICES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_SLICES_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
        peak_bfloat16: dense bfloat16 products, FLOP/s.
        memory_bytes: device memory (HBM); GiB on the sheets.
        hbm_bandwidth: bytes/s to and from device memory.
        ici_bandwidth: bytes/s out of the chip over all its inter-chip links, in one direction. The sheets give "GBps,
            bidirectional, per chip", which counts both directions of all links: this is half of it.
        links: number of inter-chip links.
        dcn_bandwidth: bytes/s out of the chip's share of its host's network cards (data-centre network).
        largest_slice: chips along each axis of the largest slice.
        source: the data sheet.
        libtpu_config: name of the chip configuration with which libtpu shows a chip as one device.
    """

    name: str
    peak_bfloat16: float
    memory_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    links: int
    dcn_bandwidth: float
    largest_slice: tuple[int, ...]
    source: str
    libtpu_config: str = ""

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s over one link, one direction."""
        return self.ici_bandwidth / self.links


CHIPS: dict[str, Chip] = {
    "v4": Chip(
        "v4",
        275e12,
        32 * 2**30,
        1200e9,
        300e9,
        6,
        3.125e9,
        (12, 16, 16),
        "cloud.google.com/tpu/docs/v4 and system-architecture-tpu-vm: 275 TFLOPs, 32 GiB, 1200 GBps, ICI 2400 Gbps; "
        "DCN not on the sheet: 25 Gbps a chip assumed, as v5e",
        libtpu_config="megacore",
    ),
    "v5e": Chip(
        "v5e",
        197e12,
        16 * 2**30,
        819e9,
        200e9,
        4,
        3.125e9,
        (16, 16),
        "cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB, 819 GBps, ICI 400 GBps both ways, DCN 6.4 Tbps a pod of 256",
    ),
    "v5p": Chip(
        "v5p",
        459e12,
        95 * 2**30,
        2765e9,
        600e9,
        6,
        6.25e9,
        (16, 16, 24),
        "cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GiB, 2765 GBps, ICI 1200 GBps bidirectional, DCN 50 Gbps a chip",
    ),
    "v6e": Chip(
        "v6e",
        918e12,
        32 * 2**30,
        1638e9,
        400e9,
        4,
        12.5e9,
        (16, 16),
        "cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB, 1638 GBps, ICI 800 GBps both ways, DCN 25.6 Tbps a pod",
    ),
}


@dataclass(frozen=True)
class Topology:
    """Chips that one run trains on: `slices` slices of one kind, joined by the data-centre network, each with `dims`
    chips along its physical axes."""

    chip: Chip
    dims: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As `v5e:4x4`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.dims))}"

    @property
    def chips(self) -> int:
        """Number of chips over all slices."""
        return math.prod(self.dims) * self.slices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """For each axis, whether it closes into a ring: on v5e and v6e an axis of 16, on v4 and v5p all axes from 4x4x4
        up."""
        if len(self.dims) == 2:
            return tuple(size == 16 for size in self.dims)
        return tuple(all(size >= 4 for size in self.dims) for _ in self.dims)


def list_slices(chip: Chip) -> tuple[tuple[int, ...], ...]:
    """Slices that exist, smallest first: the table of the data sheet; from 4x4x4 on, v4 and v5p are built of cubes of
    4x4x4."""
    if len(chip.largest_slice) == 2:
        return SLICES_2D
    a_max, b_max, c_max = (size // 4 for size in chip.largest_slice)
    cubes = [
        (4 * a, 4 * b, 4 * c) for a in range(1, a_max + 1) for b in range(a, b_max + 1) for c in range(b, c_max + 1)
    ]
    return SMALL_SLICES_3D + tuple(sorted(cubes, key=lambda dims: (math.prod(dims), dims)))


def parse_topology(text: str, slices: int = 1) -> Topology:
    """`v5e:4x4` as a topology. Raises InputError for text of another form or a slice that does not exist, with the
    nearest one."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    if not match:
        raise InputError(f"topology {text}: must be a chip and its slice, as v5e:4x4 or v5p:4x4x8")
    name, dims = match[1], tuple(int(size) for size in match[2].split("x"))
    if name not in CHIPS:
        raise InputError(f"topology {text}: unknown chip {name}{suggest_name(name, CHIPS)}")
    chip = CHIPS[name]
    known = list_slices(chip)
    if dims not in known:
        raise InputError(f"topology {text}: no such slice; {_alternatives(chip, dims, known)}")
    if slices < 1:
        raise InputError(f"slices = {slices}: must be 1 or more")
    return Topology(chip, dims, slices)


def _alternatives(chip: Chip, dims: tuple[int, ...], known: tuple[tuple[int, ...], ...]) -> str:
    """The slices that exist and the nearest to `dims`: by the ratio of chip counts, then by the lengths of axes."""

    def distance(other: tuple[int, ...]) -> tuple[float, float]:
        sizes = zip(sorted(other), sorted(dims), strict=False)
        chips = abs(math.log2(math.prod(other) / max(math.prod(dims), 1)))
        return chips, sum(abs(a - b) for a, b in sizes)

    names = ["x".join(map(str, shape)) for shape in known]
    close = "x".join(map(str, min(known, key=distance)))
    shown = ", ".join(names if len(names) <= 12 else [*names[:9], "...", names[-1]])
    return f"{chip.name} has {shown}; nearest is {chip.name}:{close}"
