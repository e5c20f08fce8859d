"""A run costed without the machine: its train step compiled ahead of time for a TPU topology, on any CPU.

The compiler says whether it fits and what moves; the chip's data sheet turns that into a roofline, the least time that
a step can take. It is a bound, not a measurement: real runs are slower.

Not in the design's list of modules: it is the module behind `scaling compile`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from scaling import accounting, sharding
from scaling.chips import Topology
from scaling.config import MeshConfig, RunConfig
from scaling.flops import kernel_flops, program_flops
from scaling.hlo import parse
from scaling.memory import GIB, check_memory, estimated_bytes, likely_fit
from scaling.network import SLICES, seconds
from scaling.step import Program, build
from scaling.strict import InputError
from scaling.traffic import Traffic, traffic

CONFIRMATIONS = 3
FLOAT32_PASSES = 6  # bfloat16 products that make one float32 product at the highest precision
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


class DoesNotFit(Exception):
    """The program needs more memory than a chip has; bytes, as the compiler says."""

    def __init__(self, needed: float, available: float) -> None:
        super().__init__(f"needs {needed / GIB:.2f} GiB on each chip, which has {available / GIB:.2f}")
        self.needed, self.available = needed, available


@dataclass(frozen=True)
class Talk:
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

    flops: of all chips, as traced. flops_chip: of one chip, as compiled; more than its share where chips repeat work.
    useful_flops: by the convention exact_causal, without recomputation. tokens: the run's budget.
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
    tokens: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    hbm: int
    flops: float
    flops_chip: float
    useful_flops: float
    hbm_bytes: float
    collectives: tuple[Talk, ...]
    compute_seconds: float
    hbm_seconds: float
    ici_seconds: float
    dcn_seconds: float
    compile_seconds: float

    @property
    def peak(self) -> int:
        """Bytes on each chip while the step runs: what it is given, makes on the way, returns anew, and its code."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.code

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


def ready() -> None:
    """Makes this process able to compile for TPUs, quietly and without looking for any.

    Raises InputError where libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed, which compiles for TPUs: pip install 'scaling-laws[tpu-aot]'")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a topology that need not be there, one a chip. After `ready`."""
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.config:
        options["chip_config_name"] = topology.chip.config
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)


def compiled(config: RunConfig, topology: Topology) -> Estimate:
    """Compiles the train step of a run for a topology and costs it.

    Raises InputError when the mesh does not fit the topology or the shapes, DoesNotFit when the memory does not.
    """
    ready()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, unroll=config.model.unroll or 1))
    mesh = sharding.make_mesh(config.mesh, devices_of(topology))
    program = build(config, mesh)
    data = config.data
    tokens_BS = jax.ShapeDtypeStruct(
        (data.batch_sequences, data.sequence_length + 1), jnp.int32, sharding=sharding.batch_sharding(mesh)
    )
    step: Any = program.step
    start = time.perf_counter()
    traced = step.trace(program.abstract_state, tokens_BS, 1e-3)
    try:
        executable = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise _memory_error(error, topology) or error from None
    took = time.perf_counter() - start
    slices = topology.slices
    within = {name: size // slices if name == "data" else size for name, size in mesh.shape.items()}
    moved = traffic(parse(executable.as_text()), within, slices)
    return _estimate(config, topology, mesh, program, traced.jaxpr, executable.memory_analysis(), moved, took)


def _memory_error(error: Exception, topology: Topology) -> DoesNotFit | None:
    """`Used 20.36G of 15.75G hbm` of the compiler, as DoesNotFit; None for any other error."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return None
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", str(error))
    if not found:
        return DoesNotFit(math.inf, topology.chip.memory)
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return DoesNotFit(float(found[1]) * units[found[2]], float(found[3]) * units[found[4]])


def _estimate(
    config: RunConfig,
    topology: Topology,
    mesh: Mesh,
    program: Program,
    jaxpr: Any,
    memory: Any,
    moved: Traffic,
    took: float,
) -> Estimate:
    chip, data = topology.chip, config.data
    kernels = kernel_flops(jaxpr) / topology.chips
    per_chip = moved.flops + kernels
    rate = chip.bfloat16 / (1 if config.precision.compute == "bfloat16" else FLOAT32_PASSES)
    slice_mesh = Mesh(mesh.devices[: mesh.shape["data"] // topology.slices], mesh.axis_names)
    talks = talk(moved, slice_mesh, topology)
    crossing = sum(one.seconds for one in talks if one.axes == SLICES[0])
    params = accounting.params(config.model).total
    useful = accounting.train_flops(config.model, data.sequence_length, data.batch_tokens, "exact_causal")
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
        tokens=config.tokens,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        hbm=chip.memory,
        flops=program_flops(jaxpr),
        flops_chip=per_chip,
        useful_flops=useful,
        hbm_bytes=moved.memory,
        collectives=talks,
        compute_seconds=per_chip / rate,
        hbm_seconds=moved.memory / chip.hbm,
        ici_seconds=sum(one.seconds for one in talks) - crossing,
        dcn_seconds=crossing,
        compile_seconds=took,
    )


def talk(moved: Traffic, mesh: Mesh, topology: Topology) -> tuple[Talk, ...]:
    """Collectives gathered by kind and axes, those that take longest first. mesh: that of one slice."""
    groups = defaultdict(list)
    for one in moved.collectives:
        if one.axes:
            groups[one.kind, one.axes, one.group].append(one)
    made = [
        Talk(
            kind,
            "+".join(axes),
            math.prod(mesh.shape[name] for name in axes) if axes != SLICES else topology.slices,
            sum(one.times for one in ones),
            sum(one.times * one.sent for one in ones),
            sum(seconds(one, mesh, topology) for one in ones),
        )
        for (kind, axes, _), ones in groups.items()
    ]
    return tuple(sorted(made, key=lambda one: -one.seconds))


def estimate(config: RunConfig, topology: Topology) -> Estimate:
    """As `compiled`, but a run that does not fit is an InputError that names the smallest change that would: found by
    the estimate of memory.py, then compiled to be sure."""
    ready()
    sizes = sharding.axis_sizes(config.mesh, topology.chips, topology.slices)
    try:
        check_state(config, topology)
        return compiled(config, topology)
    except (DoesNotFit, InputError) as error:
        if isinstance(error, InputError) and "optimizer state" not in str(error):
            raise
        raise InputError(f"{topology.name}: {error}; {_way_out(config, sizes, topology, error)}") from None


def check_state(config: RunConfig, topology: Topology) -> None:
    """Raises InputError when the state alone is more than a chip holds, before anything is compiled."""
    mesh = sharding.make_mesh(config.mesh, devices_of(topology))
    check_memory(build(config, mesh).abstract_state, topology.chip.memory)


def _way_out(config: RunConfig, sizes: tuple[int, int, int], topology: Topology, error: Exception) -> str:
    estimated = estimated_bytes(config, sizes)
    needed = error.needed if isinstance(error, DoesNotFit) and math.isfinite(error.needed) else estimated
    available = error.available if isinstance(error, DoesNotFit) else topology.chip.memory
    for _ in range(CONFIRMATIONS):
        found = likely_fit(config, sizes, available, needed / estimated)
        if found is None:
            break
        words, config, sizes = found
        changed = dataclasses.replace(config, mesh=MeshConfig(*sizes))
        try:
            fits = compiled(changed, topology)
        except DoesNotFit as again:
            needed, estimated = again.needed, estimated_bytes(config, sizes)
        else:
            return f"{words} would fit, compiled: {fits.peak / GIB:.2f} GiB"
    return "no smaller batch or further sharding fits: more chips, or chips with more memory"
