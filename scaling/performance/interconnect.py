"""Seconds that collectives take on a TPU slice: bytes sent over the links that a mesh axis lies on.

A bound from bandwidth alone: no latency, every link in use, nothing else on them. Not in the design's list of modules:
it is what turns the bytes of traffic.py into time for ahead.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from scaling.accounting.chips import Topology
from scaling.performance.hlo_costs import Collective

SLICE_AXIS = ("slices",)


@dataclass(frozen=True)
class PhysicalSpan:
    """The physical axes that devices of one group span: (devices along it, whether it closes into a ring)."""

    spans: tuple[tuple[int, bool], ...]

    @property
    def links(self) -> int:
        """Links out of a chip, one direction each: two on a ring; one on a line, there and back being one ring."""
        return sum(2 if ring and size > 2 else 1 for size, ring in self.spans)

    @property
    def hops(self) -> float:
        """Mean distance between two of the group: a quarter of each ring, a third of each line."""
        return sum(size / 4 if ring else (size * size - 1) / (3 * size) for size, ring in self.spans)


def physical_span(mesh: Mesh, axes: tuple[str, ...], topology: Topology) -> PhysicalSpan:
    """The physical axes along which the devices of the first group of these mesh axes lie."""
    first = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    coords = np.array([device.coords for device in mesh.devices[first].flat])
    spans = []
    for axis, (size, wraps) in enumerate(zip(topology.dims, topology.wraps, strict=True)):
        met = len(np.unique(coords[:, axis]))
        if met > 1:
            spans.append((met, wraps and met == size))
    return PhysicalSpan(tuple(spans) or ((1, False),))


def collective_seconds(one: Collective, mesh: Mesh, topology: Topology) -> float:
    """Seconds of all runs of a collective in a step, mesh: that of one slice.

    Every chip sends at the rate of the links its group lies on. Chips that exchange all with all send each byte over
    as many links as lie between; a permutation uses two links, one neighbour on each side.
    """
    chip = topology.chip
    sent = one.times * one.sent
    if one.axes == SLICE_AXIS:
        return sent / chip.dcn_bandwidth
    path = physical_span(mesh, one.axes, topology)
    if one.kind == "collective-permute":
        return sent / (min(path.links, 2) * chip.link_bandwidth)
    if one.kind.endswith("all-to-all"):
        return sent * max(path.hops, 1.0) / (path.links * chip.link_bandwidth)
    return sent / (path.links * chip.link_bandwidth)
