"""What one train step costs on chips that are not there: what the compiler said, and the roofline that follows.

A roofline is the least time that each engine of a chip needs for its part of the step: matrix products, HBM, the links
to other chips (ICI), the network between slices (DCN). It is a bound, not a measurement: real runs are slower.

Not in the design's list of modules: it keeps ahead.py to the compiling.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from scaling.accounting import counts
from scaling.accounting.chips import Topology
from scaling.accounting.flops import kernel_flops, program_flops
from scaling.config.run_config import RunConfig
from scaling.performance.hlo_costs import StepCosts
from scaling.performance.interconnect import SLICE_AXIS, collective_seconds

FLOAT32_PASSES = 6  # bfloat16 products that make one float32 product at the highest precision


@dataclass(frozen=True)
class CollectiveCost:
    """All collectives of one kind over the same mesh axes, in one step. sent: bytes that each chip sends."""

    kind: str
    axes: str
    devices: int
    count: int
    sent: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """One train step on a topology. Memory in bytes on each chip; flops of matrix products, recomputation included;
    seconds are rooflines: the least each engine needs for its part of a step.

    live: at the worst moment, arguments in it. temporaries: all that are ever made, in HBM and in VMEM; they do not
    live at once. flops: of all chips, as traced. flops_chip: of one chip, as compiled; more than its share where chips
    repeat work. useful_flops: by the convention exact_causal, without recomputation. tokens: the run's budget.
    """

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    params: int
    batch_sequences: int
    microbatch_sequences: int
    sequence_length: int
    remat: str
    compute: str
    attention: str
    tokens: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    live: int
    code: int
    hbm: int
    flops: float
    flops_chip: float
    useful_flops: float
    hbm_bytes: float
    collectives: tuple[CollectiveCost, ...]
    compute_seconds: float
    hbm_seconds: float
    ici_seconds: float
    dcn_seconds: float
    compile_seconds: float

    @property
    def peak(self) -> int:
        """Bytes of HBM on each chip at the worst moment of the step, and its code."""
        return self.live + self.code

    @property
    def engines(self) -> dict[str, float]:
        return {
            "compute": self.compute_seconds,
            "HBM": self.hbm_seconds,
            "ICI": self.ici_seconds,
            "DCN": self.dcn_seconds,
        }

    @property
    def fastest(self) -> float:
        """Seconds of a step when the engines overlap perfectly: the slowest of them."""
        return max(self.engines.values())

    @property
    def slowest(self) -> float:
        """Seconds of a step when nothing overlaps: their sum."""
        return sum(self.engines.values())

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.sequence_length

    def mfu(self, step: float) -> float:
        """Useful FLOPs over what the chips could do in a step of so many seconds; attention counted halved (causal)."""
        rate = self.flops_chip / self.compute_seconds
        return self.useful_flops / (step * rate * self.chips)

    def chip_hours(self, step: float) -> float:
        """Chip-hours of the whole token budget at so many seconds a step."""
        return self.tokens / self.batch_tokens * step * self.chips / 3600

    def facts(self) -> dict[str, Any]:
        """All of it for machines, derived figures included."""
        bounds = {"overlapped": self.fastest, "in_turn": self.slowest}
        return dataclasses.asdict(self) | {
            "peak": self.peak,
            "fits": True,
            "step_seconds": bounds,
            "bound_by": max(self.engines, key=lambda name: self.engines[name]),
            "tokens_per_second": {name: self.batch_tokens / step for name, step in bounds.items()},
            "mfu": {name: self.mfu(step) for name, step in bounds.items()},
            "chip_hours": {name: self.chip_hours(step) for name, step in bounds.items()},
        }


def make_estimate(
    config: RunConfig,
    topology: Topology,
    mesh: Mesh,
    kernel: str,
    jaxpr: Any,
    memory: Any,
    moved: StepCosts,
    took: float,
) -> Estimate:
    """The estimate of a compiled step. mesh: over all slices; kernel: of attention; jaxpr: of the step; memory: the
    compiler's memory analysis; moved: the traffic of one chip; took: seconds of compiling."""
    chip, data = topology.chip, config.data
    kernels = kernel_flops(jaxpr) / topology.chips
    per_chip = moved.flops + kernels
    rate = chip.peak_bfloat16 / (1 if config.precision.compute == "bfloat16" else FLOAT32_PASSES)
    slice_mesh = Mesh(mesh.devices[: mesh.shape["data"] // topology.slices], mesh.axis_names)
    talks = collective_costs(moved, slice_mesh, topology)
    crossing = sum(one.seconds for one in talks if one.axes == SLICE_AXIS[0])
    params = counts.count_params(config.model).total
    useful = counts.train_flops(config.model, data.sequence_length, data.batch_tokens, "exact_causal")
    return Estimate(
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        mesh=dict(mesh.shape),
        params=params,
        batch_sequences=data.batch_sequences,
        microbatch_sequences=data.microbatch_sequences or data.batch_sequences,
        sequence_length=data.sequence_length,
        remat=config.model.remat,
        compute=config.precision.compute,
        attention=kernel,
        tokens=config.tokens,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        live=memory.peak_memory_in_bytes,
        code=memory.generated_code_size_in_bytes,
        hbm=chip.memory_bytes,
        flops=program_flops(jaxpr),
        flops_chip=per_chip,
        useful_flops=useful,
        hbm_bytes=moved.memory,
        collectives=talks,
        compute_seconds=per_chip / rate,
        hbm_seconds=moved.memory / chip.hbm_bandwidth,
        ici_seconds=sum(one.seconds for one in talks) - crossing,
        dcn_seconds=crossing,
        compile_seconds=took,
    )


def collective_costs(moved: StepCosts, mesh: Mesh, topology: Topology) -> tuple[CollectiveCost, ...]:
    """Collectives gathered by kind and axes, those that take longest first. mesh: that of one slice."""
    groups = defaultdict(list)
    for one in moved.collectives:
        if one.axes:
            groups[one.kind, one.axes, one.group].append(one)
    made = [
        CollectiveCost(
            kind,
            "+".join(axes),
            math.prod(mesh.shape[name] for name in axes) if axes != SLICE_AXIS else topology.slices,
            sum(one.times for one in ones),
            sum(one.times * one.sent for one in ones),
            sum(collective_seconds(one, mesh, topology) for one in ones),
        )
        for (kind, axes, _), ones in groups.items()
    ]
    return tuple(sorted(made, key=lambda one: -one.seconds))
