"""A run costed without the machine: its train step compiled ahead of time for a TPU topology, on any CPU.

Not in the design's list of modules: it is the module behind `scaling compile`.
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
from scaling.training.optimizer import Rates
from scaling.training.train_step import build_program

MAX_COMPILED_SUGGESTIONS = 4
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
    """The program needs more memory than a chip has. needed, available: bytes of one chip; what: needs them."""

    def __init__(self, needed: float, available: float, what: str) -> None:
        super().__init__(f"has {available / GIB:.2f} GiB a chip, and {needed / GIB:.2f} are needed for {what}")
        self.needed, self.available, self.what = needed, available, what


def require_libtpu() -> None:
    """Raises InputError where libtpu, which compiles for TPUs, is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed, which compiles for TPUs: pip install 'scaling-laws[tpu-aot]'")


def topology_devices(topology: Topology) -> list[Any]:
    """The devices of a topology that need not be there, one a chip."""
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.libtpu_config:
        options["chip_config_name"] = topology.chip.libtpu_config
    if math.prod(topology.dims) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)


def compile_step(config: RunConfig, topology: Topology) -> Estimate:
    """Compiles the train step of a run for a topology, in this process, and costs it.

    Raises InputError when the mesh does not fit the topology or the shapes; ChipMemoryExceeded, before
    compiling, where weights and optimizer state alone are too many.
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
    took = time.perf_counter() - start
    slices = topology.slices
    within = {name: size // slices if name == "data" else size for name, size in mesh.shape.items()}
    moved = step_costs(parse_module(executable.as_text()), within, slices)
    memory, kernel = executable.memory_analysis(), program.model.kernel
    return make_estimate(config, topology, mesh, kernel, traced.jaxpr, memory, moved, took)


def parse_memory_error(said: str, state: float, memory: float) -> ChipMemoryExceeded | None:
    """What the compiler said of too little memory, as ChipMemoryExceeded; None where it said something else.

    It says either what the whole program needs, or the temporaries alone, to which `state` is added; bytes.
    """
    if "RESOURCE_EXHAUSTED" not in said:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number = r"([\d.]+)([KMGT]?)"
    if whole := re.search(rf"Used {number}i?B? of {number}i?B? hbm", said):
        needed, available = (float(whole[i]) * units[whole[i + 1]] for i in (1, 3))
        return ChipMemoryExceeded(needed, available, "the step")
    if part := re.search(rf"\({number}\) exceeds available HBM \({number}\)", said):
        needed, available = (float(part[i]) * units[part[i + 1]] for i in (1, 3))
        return ChipMemoryExceeded(needed + state, available, "the step")
    return ChipMemoryExceeded(memory * 1.01, memory, "the step, or more: the compiler does not say")


def compile_in_subprocess(config: RunConfig, topology: Topology) -> Estimate:
    """As `compiled`, in a process of its own, where libtpu is quiet and finds the variables it wants. The compiler
    itself can fail, by abort: InputError."""
    require_libtpu()
    asked = {"config": to_dict(config), "topology": topology.name, "slices": topology.slices}
    command = [sys.executable, "-m", "scaling.performance.compile_ahead"]
    done = subprocess.run(
        command, input=json.dumps(asked), env=os.environ | SUBPROCESS_ENV, capture_output=True, text=True
    )
    if done.returncode:
        failed = re.search(r"Check failed: .*", done.stderr)
        said = failed[0] if failed else done.stderr.strip()[-300:]
        raise InputError(
            f"{topology.name}: the compiler failed, not the run: {' '.join(said.split())}; {_compiler_advice()}"
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise InputError(answer["error"])
    if "needed" in answer:
        raise ChipMemoryExceeded(**answer)
    return Estimate(**answer | {"collectives": tuple(CollectiveCost(**one) for one in answer["collectives"])})


def _compiler_advice() -> str:
    """What may help when the compiler fails: the libtpu that jax names, where another is installed."""
    named = (re.fullmatch(r"libtpu==([\d.]+)\*.*", line) for line in requires("jax") or ())
    wanted = next((found[1] for found in named if found), "")
    libtpu = package_version("libtpu") or ""
    if not libtpu.startswith(wanted):
        return f"libtpu {libtpu} is not that of this jax: pip install 'libtpu=={wanted}*'"
    return "another mesh, batch or --attention may pass"


def subprocess_main(asked: dict[str, Any]) -> dict[str, Any]:
    """What the other process says: the fields of an Estimate, of ChipMemoryExceeded, or an error."""
    try:
        return dataclasses.asdict(
            compile_step(from_dict(asked["config"]), parse_topology(asked["topology"], asked["slices"]))
        )
    except ChipMemoryExceeded as error:
        return {"needed": error.needed, "available": error.available, "what": error.what}
    except InputError as error:
        return {"error": str(error)}


def estimate_step(config: RunConfig, topology: Topology) -> Estimate:
    """As `apart`, but a run that does not fit is an InputError that names the smallest change that would: found by the
    estimate of memory.py, then compiled to be sure."""
    try:
        return compile_in_subprocess(config, topology)
    except ChipMemoryExceeded as error:
        raise InputError(f"{topology.name} {error}; {suggest_fix(config, topology, error)}") from None


def suggest_fix(config: RunConfig, topology: Topology, error: ChipMemoryExceeded) -> str:
    sizes = sharding.axis_sizes(config.mesh, topology.chips, topology.slices)
    scale = 1.0 if error.what == STATE_LABEL else error.needed / estimate_bytes(config, sizes)
    tried: set[str] = set()
    for _ in range(MAX_COMPILED_SUGGESTIONS):
        guesses = likely_fitting_changes(config, sizes, error.available, scale, topology.slices)
        words, changed, mesh = next((one for one in guesses if one[0] not in tried), ("", config, sizes))
        if not words:
            break
        tried.add(words)
        try:
            fits = compile_in_subprocess(dataclasses.replace(changed, mesh=MeshConfig(*mesh)), topology)
        except ChipMemoryExceeded as again:
            scale = max(scale, again.needed / estimate_bytes(changed, mesh))
        else:
            return f"{words} would fit (compiled: {fits.peak / GIB:.2f} GiB)"
    return _suggest_larger_slice(config, topology, scale)


def _suggest_larger_slice(config: RunConfig, topology: Topology, scale: float) -> str:
    """The smallest slice on which the run would fit, by the estimate, one sequence a chip and everything sharded."""
    chip = topology.chip
    for dims in list_slices(chip):
        chips = math.prod(dims)
        model = dataclasses.replace(config.model, remat="full")
        data = dataclasses.replace(config.data, batch_sequences=chips, microbatch_sequences=None)
        alone = dataclasses.replace(config, model=model, data=data, tokens=max(config.tokens, data.batch_tokens))
        width_fits = config.model.width % chips == 0
        if chips > topology.chips and width_fits and scale * estimate_bytes(alone, (1, chips, 1)) <= chip.memory_bytes:
            bigger = f"{chip.name}:{'x'.join(map(str, dims))}"
            return f"nothing smaller fits: --topology {bigger} --mesh fsdp={chips} would, by an estimate"
    return (
        f"no slice of {chip.name} would hold it, by an estimate: a shorter --sequence-length, or chips with more memory"
    )


if __name__ == "__main__":
    print(json.dumps(subprocess_main(json.loads(sys.stdin.read()))))
