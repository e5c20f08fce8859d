"""Seconds that collectives take on a TPU slice: bytes sent, over the bandwidth of the links that a mesh axis spans.

A lower bound from bandwidth alone: no latency, every link in use, nothing else on the links.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from scaling.accounting.chips import Topology
from scaling.performance.hlo_costs import Collective

SLICE_AXIS = ("slices",)  # the axes of a collective between slices (hlo_costs.step_costs)


@dataclass(frozen=True)
class PhysicalSpan:
    """The physical axes that the devices of a group span, each as (devices along it, whether it closes into a ring)."""

    spans: tuple[tuple[int, bool], ...]

    @property
    def links(self) -> int:
        """Links out of a chip that the group uses: two along a ring, one along a line (a ring there and back)."""
        return sum(2 if ring and size > 2 else 1 for size, ring in self.spans)

    @property
    def hops(self) -> float:
        """Mean number of links between two devices of the group: a quarter of each ring, a third of each line."""
        return sum(size / 4 if ring else (size * size - 1) / (3 * size) for size, ring in self.spans)


def physical_span(mesh: Mesh, axes: tuple[str, ...], topology: Topology) -> PhysicalSpan:
    """The physical axes along which the devices of the first group of these mesh axes lie."""
    first = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    coords = np.array([device.coords for device in mesh.devices[first].flat])
    spans = []
    for axis, (size, wraps) in enumerate(zip(topology.dims, topology.wraps, strict=True)):
        devices_along = len(np.unique(coords[:, axis]))
        if devices_along > 1:
            spans.append((devices_along, wraps and devices_along == size))
    return PhysicalSpan(tuple(spans) or ((1, False),))


def collective_seconds(collective: Collective, mesh: Mesh, topology: Topology) -> float:
    """Seconds of all runs of a collective in one step. mesh: that of one slice.

    Every chip sends at the rate of the links that its group spans. In an all-to-all each byte crosses as many links as
    lie between the two chips; a permutation uses at most two links, to the neighbours on both sides.
    """
    chip = topology.chip
    sent_bytes = collective.runs_per_step * collective.sent_bytes
    if collective.axes == SLICE_AXIS:
        return sent_bytes / chip.dcn_bandwidth
    span = physical_span(mesh, collective.axes, topology)
    if collective.kind == "collective-permute":
        return sent_bytes / (min(span.links, 2) * chip.link_bandwidth)
    if collective.kind.endswith("all-to-all"):
        return sent_bytes * max(span.hops, 1.0) / (span.links * chip.link_bandwidth)
    return sent_bytes / (span.links * chip.link_bandwidth)
