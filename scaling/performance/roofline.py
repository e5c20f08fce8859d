"""The cost of one train step on chips that are compiled for and absent: memory, FLOPs, and the roofline.

A roofline is the least time that each engine of a chip needs for its part of the step: matrix products, HBM, the links
to other chips (ICI), the network between slices (DCN). It is a bound, not a measurement: real runs are slower.
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
    """All collectives of one kind over the same mesh axes in one step.

    devices: size of a group; count: collectives; sent: bytes that each chip sends; seconds: see collective_seconds.
    """

    kind: str
    axes: str
    devices: int
    count: int
    sent: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """The cost of one train step on a topology.

    Memory is in bytes on each chip. FLOPs are those of matrix products, recomputation included. Seconds are rooflines:
    the least that each engine needs for its part of a step.

    live: memory at the worst moment, arguments included. temporaries: all that are ever allocated, in HBM and VMEM,
    not all at once. code: of the program. hbm: what a chip has. flops: of all chips, as traced. flops_chip: of one
    chip, as compiled; more than its share where chips repeat work. useful_flops: by the convention exact_causal,
    without recomputation. tokens: the run's budget. compile_seconds: what compiling took.
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
        """Bytes of HBM on each chip at the worst moment of the step, the program's code included."""
        return self.live + self.code

    @property
    def engines(self) -> dict[str, float]:
        """Roofline seconds of a step by engine."""
        return {
            "compute": self.compute_seconds,
            "HBM": self.hbm_seconds,
            "ICI": self.ici_seconds,
            "DCN": self.dcn_seconds,
        }

    @property
    def overlapped_seconds(self) -> float:
        """Seconds of a step when the engines overlap perfectly: the slowest of them."""
        return max(self.engines.values())

    @property
    def sequential_seconds(self) -> float:
        """Seconds of a step when nothing overlaps: their sum."""
        return sum(self.engines.values())

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_sequences * self.sequence_length

    def mfu(self, step: float) -> float:
        """Model FLOPs utilisation of a step of `step` seconds: useful FLOPs over what the chips could do in that time.
        Attention counts half of the positions (causal)."""
        rate = self.flops_chip / self.compute_seconds
        return self.useful_flops / (step * rate * self.chips)

    def chip_hours(self, step: float) -> float:
        """Chip-hours of the whole token budget at `step` seconds a step."""
        return self.tokens / self.batch_tokens * step * self.chips / 3600

    def facts(self) -> dict[str, Any]:
        """All fields and derived figures, for JSON."""
        bounds = {"overlapped": self.overlapped_seconds, "in_turn": self.sequential_seconds}
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
    costs: StepCosts,
    compile_seconds: float,
) -> Estimate:
    """The estimate of a compiled step.

    mesh: over all slices; kernel: of attention; jaxpr: of the step; memory: the compiler's memory analysis; costs: of
    one chip, from the compiled program; compile_seconds: what compiling took.
    """
    chip, data = topology.chip, config.data
    # XLA does not see into Pallas kernels, so their FLOPs come from the traced program.
    flops_per_chip = costs.flops + kernel_flops(jaxpr) / topology.chips
    peak = chip.peak_bfloat16 / (1 if config.precision.compute == "bfloat16" else FLOAT32_PASSES)
    slice_mesh = Mesh(mesh.devices[: mesh.shape["data"] // topology.slices], mesh.axis_names)
    collectives = collective_costs(costs, slice_mesh, topology)
    between_slices = sum(cost.seconds for cost in collectives if cost.axes == SLICE_AXIS[0])
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
        flops_chip=flops_per_chip,
        useful_flops=useful,
        hbm_bytes=costs.memory_bytes,
        collectives=collectives,
        compute_seconds=flops_per_chip / peak,
        hbm_seconds=costs.memory_bytes / chip.hbm_bandwidth,
        ici_seconds=sum(cost.seconds for cost in collectives) - between_slices,
        dcn_seconds=between_slices,
        compile_seconds=compile_seconds,
    )


def collective_costs(costs: StepCosts, mesh: Mesh, topology: Topology) -> tuple[CollectiveCost, ...]:
    """The collectives of a step by kind and mesh axes, those that take longest first. mesh: that of one slice."""
    groups = defaultdict(list)
    for collective in costs.collectives:
        if collective.axes:
            groups[collective.kind, collective.axes, collective.group_size].append(collective)
    summed = [
        CollectiveCost(
            kind,
            "+".join(axes),
            math.prod(mesh.shape[name] for name in axes) if axes != SLICE_AXIS else topology.slices,
            sum(each.runs_per_step for each in group),
            sum(each.runs_per_step * each.sent_bytes for each in group),
            sum(collective_seconds(each, mesh, topology) for each in group),
        )
        for (kind, axes, _), group in groups.items()
    ]
    return tuple(sorted(summed, key=lambda cost: -cost.seconds))
