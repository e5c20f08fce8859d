"""Estimates the cost of a run without its machine: compiles the train step for a TPU topology, on any CPU.

Behind `scaling compile` and `scaling sweep plan --topology`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from importlib.metadata import requires
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from scaling.accounting.chips import Topology, list_slices, parse_topology
from scaling.config.run_config import MeshConfig, RunConfig, from_dict, to_dict
from scaling.errors import InputError
from scaling.model import sharding
from scaling.performance.hlo import parse_module
from scaling.performance.hlo_costs import step_costs
from scaling.performance.roofline import CollectiveCost, Estimate, make_estimate
from scaling.record.environment import package_version
from scaling.training.memory import GIB, estimate_bytes, likely_fitting_changes, state_bytes
from scaling.training.schedule import Rates
from scaling.training.train_step import build_program

MAX_COMPILED_SUGGESTIONS = 4  # changes that suggest_fix compiles before it looks for a larger slice
STATE_LABEL = "weights and optimizer state"
SUBPROCESS_ENV = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process at a time, though none has a TPU
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # it holds such programs but does not give them back
}


class ChipMemoryExceeded(Exception):
    """A program needs more memory than a chip has. needed, available: bytes a chip; what: the part that needs it."""

    def __init__(self, needed: float, available: float, what: str) -> None:
        super().__init__(f"has {available / GIB:.2f} GiB a chip, and {needed / GIB:.2f} are needed for {what}")
        self.needed, self.available, self.what = needed, available, what


def require_libtpu() -> None:
    """Raises InputError where libtpu, the compiler for TPUs, is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed, which compiles for TPUs: pip install 'scaling-laws[tpu-aot]'")


def topology_devices(topology: Topology) -> list[Any]:
    """Descriptions of a topology's devices to compile for, one a chip; the devices need not exist."""
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.libtpu_config:
        options["chip_config_name"] = topology.chip.libtpu_config
    if math.prod(topology.dims) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)


def compile_step(config: RunConfig, topology: Topology) -> Estimate:
    """Compiles the train step of a run for a topology, in this process, and estimates its cost.

    Raises InputError when the mesh does not fit the topology or the shapes, and ChipMemoryExceeded when the memory of a
    chip is too small: before compiling where weights and optimizer state alone exceed it.
    """
    require_libtpu()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, unroll=config.model.unroll or 1))
    mesh = sharding.make_mesh(config.mesh, topology_devices(topology))
    program = build_program(config, mesh)
    state = state_bytes(program.abstract_state)
    if state > topology.chip.memory_bytes:
        raise ChipMemoryExceeded(state, topology.chip.memory_bytes, STATE_LABEL)
    data = config.data
    tokens_BS = jax.ShapeDtypeStruct(
        (data.batch_sequences, data.sequence_length + 1), jnp.int32, sharding=sharding.batch_sharding(mesh)
    )
    step: Any = program.step
    start = time.perf_counter()
    traced = step.trace(program.abstract_state, tokens_BS, Rates(1e-3, 0.1))
    try:
        executable = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        raise parse_memory_error(str(error), state, topology.chip.memory_bytes) or error from None
    compile_seconds = time.perf_counter() - start
    slices = topology.slices
    slice_mesh = {name: size // slices if name == "data" else size for name, size in mesh.shape.items()}
    costs = step_costs(parse_module(executable.as_text()), slice_mesh, slices)
    memory, kernel = executable.memory_analysis(), program.model.kernel
    return make_estimate(config, topology, mesh, kernel, traced.jaxpr, memory, costs, compile_seconds)


def parse_memory_error(message: str, state: float, memory: float) -> ChipMemoryExceeded | None:
    """A compiler's error as ChipMemoryExceeded; None where it is not about memory.

    The message says either what the whole program needs, or what the temporaries alone need, to which `state` is added.
    state, memory: bytes of weights and optimizer state, and of a chip.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number = r"([\d.]+)([KMGT]?)"
    if whole := re.search(rf"Used {number}i?B? of {number}i?B? hbm", message):
        needed, available = (float(whole[i]) * units[whole[i + 1]] for i in (1, 3))
        return ChipMemoryExceeded(needed, available, "the step")
    if part := re.search(rf"\({number}\) exceeds available HBM \({number}\)", message):
        needed, available = (float(part[i]) * units[part[i + 1]] for i in (1, 3))
        return ChipMemoryExceeded(needed + state, available, "the step")
    return ChipMemoryExceeded(memory * 1.01, memory, "the step, or more: the compiler does not say")


def compile_in_subprocess(config: RunConfig, topology: Topology) -> Estimate:
    """As `compile_step`, in a process of its own with the environment variables that libtpu needs.

    The compiler can abort its process: that raises InputError, with what may help.
    """
    require_libtpu()
    request = {"config": to_dict(config), "topology": topology.name, "slices": topology.slices}
    command = [sys.executable, "-m", "scaling.performance.compile_ahead"]
    process = subprocess.run(
        command, input=json.dumps(request), env=os.environ | SUBPROCESS_ENV, capture_output=True, text=True
    )
    if process.returncode:
        check = re.search(r"Check failed: .*", process.stderr)
        message = check[0] if check else process.stderr.strip()[-300:]
        raise InputError(
            f"{topology.name}: the compiler failed, not the run: {' '.join(message.split())}; {_compiler_advice()}"
        )
    reply = json.loads(process.stdout.splitlines()[-1])
    if "error" in reply:
        raise InputError(reply["error"])
    if "needed" in reply:
        raise ChipMemoryExceeded(**reply)
    costs = tuple(CollectiveCost(**cost) for cost in reply["collectives"])
    return Estimate(**reply | {"collectives": costs})


def _compiler_advice() -> str:
    """What may help when the compiler fails: the libtpu version that jax requires, where another is installed."""
    matches = (re.fullmatch(r"libtpu==([\d.]+)\*.*", line) for line in requires("jax") or ())
    required = next((match[1] for match in matches if match), "")
    installed = package_version("libtpu") or ""
    if not installed.startswith(required):
        return f"libtpu {installed} is not the version that this jax requires: pip install 'libtpu=={required}*'"
    return "try another --mesh, another batch or another --attention"


def subprocess_main(request: dict[str, Any]) -> dict[str, Any]:
    """The reply of the process that compiles: the fields of an Estimate, those of ChipMemoryExceeded, or an error."""
    try:
        return dataclasses.asdict(
            compile_step(from_dict(request["config"]), parse_topology(request["topology"], request["slices"]))
        )
    except ChipMemoryExceeded as error:
        return {"needed": error.needed, "available": error.available, "what": error.what}
    except InputError as error:
        return {"error": str(error)}


def estimate_step(config: RunConfig, topology: Topology) -> Estimate:
    """The cost of a run's train step on a topology, compiled in another process.

    Raises InputError where the run does not fit a chip's memory, with the smallest change that fits: the estimate of
    training/memory.py proposes it, and compiling confirms it.
    """
    try:
        return compile_in_subprocess(config, topology)
    except ChipMemoryExceeded as error:
        raise InputError(f"{topology.name} {error}; {suggest_fix(config, topology, error)}") from None


def suggest_fix(config: RunConfig, topology: Topology, error: ChipMemoryExceeded) -> str:
    """The smallest change of a run with which it fits a chip's memory, in words.

    Candidates come from the estimate of training/memory.py, corrected by what the compiler needed for this run.
    """
    sizes = sharding.axis_sizes(config.mesh, topology.chips, topology.slices)
    correction = 1.0 if error.what == STATE_LABEL else error.needed / estimate_bytes(config, sizes)
    tried: set[str] = set()
    for _ in range(MAX_COMPILED_SUGGESTIONS):
        candidates = likely_fitting_changes(config, sizes, error.available, correction, topology.slices)
        words, changed, mesh = next((each for each in candidates if each[0] not in tried), ("", config, sizes))
        if not words:
            break
        tried.add(words)
        try:
            estimate = compile_in_subprocess(dataclasses.replace(changed, mesh=MeshConfig(*mesh)), topology)
        except ChipMemoryExceeded as again:
            correction = max(correction, again.needed / estimate_bytes(changed, mesh))
        else:
            return f"{words} would fit (compiled: {estimate.peak / GIB:.2f} GiB)"
    return _suggest_larger_slice(config, topology, correction)


def _suggest_larger_slice(config: RunConfig, topology: Topology, correction: float) -> str:
    """The smallest slice on which the run fits by the estimate of memory, with one sequence a chip, full remat and
    weights and state sharded over all chips; in words."""
    chip = topology.chip
    for dims in list_slices(chip):
        chips = math.prod(dims)
        model = dataclasses.replace(config.model, remat="full")
        data = dataclasses.replace(config.data, batch_sequences=chips, microbatch_sequences=None)
        smallest = dataclasses.replace(config, model=model, data=data, tokens=max(config.tokens, data.batch_tokens))
        width_fits = config.model.width % chips == 0
        if (
            chips > topology.chips
            and width_fits
            and correction * estimate_bytes(smallest, (1, chips, 1)) <= chip.memory_bytes
        ):
            bigger = f"{chip.name}:{'x'.join(map(str, dims))}"
            return f"nothing smaller fits; by an estimate --topology {bigger} --mesh fsdp={chips} does"
    return f"by an estimate no slice of {chip.name} has enough memory: try a shorter --sequence-length or another chip"


if __name__ == "__main__":
    print(json.dumps(subprocess_main(json.loads(sys.stdin.read()))))
