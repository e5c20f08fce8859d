"""The mesh (data, fsdp, tensor), and one table of (path pattern, PartitionSpec) that raises on no match.

The batch is sharded over data and fsdp, never replicated; weights and optimizer state over fsdp and tensor.
pjit is `jax.jit` with `NamedSharding` today; axes are Auto, so the compiler places what the table leaves open.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.config import MeshConfig, RunConfig
from scaling.strict import InputError

START_SECONDS = 1800
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

RULES: tuple[tuple[str, P], ...] = (
    (r"embedding", P(None, ("fsdp", "tensor"))),
    (r"head/kernel", P(("fsdp", "tensor"), None)),
    (r"blocks/attention/[qkv]/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/attention/o/kernel", P(None, "tensor", "fsdp")),
    (r"blocks/ff/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/ff/down/kernel", P(None, "tensor", "fsdp")),
    (r"(blocks/)?(\w+/)?\w*norm/scale", P()),
)


def initialize_processes() -> None:
    """Joins the other processes of a run. A process alone does nothing, and so does a second call.

    srun, mpirun and TPU pods tell JAX who they are. Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say it, all three: InputError otherwise. Large jobs start slowly: the time limit is half an hour.
    """
    environment = os.environ
    if jax.distributed.is_initialized():
        return
    if given := [name for name in PROCESS_VARIABLES if name in environment]:
        if len(given) < len(PROCESS_VARIABLES):
            raise InputError(f"{', '.join(given)} without the others: set {', '.join(PROCESS_VARIABLES)}, or none")
        address, count, index = (environment[name] for name in PROCESS_VARIABLES)
        jax.distributed.initialize(address, int(count), int(index), initialization_timeout=START_SECONDS)
    elif (
        int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize(initialization_timeout=START_SECONDS)


def any_process(flag: bool) -> bool:
    """Whether the flag is up on any process; all must ask at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh over all devices. Raises InputError when the axes do not multiply to the device count."""
    devices = jax.device_count()
    data = config.data or max(devices // (config.fsdp * config.tensor), 1)
    if data * config.fsdp * config.tensor != devices:
        raise InputError(
            f"mesh data={data} x fsdp={config.fsdp} x tensor={config.tensor} = {data * config.fsdp * config.tensor}: "
            f"must be the number of devices, {devices}"
        )
    return jax.make_mesh((data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def check_fits(config: RunConfig, mesh: Mesh) -> None:
    """Raises InputError, before anything is spent, when a batch or a weight does not divide over the mesh."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    micro = config.data.microbatch_sequences or config.data.batch_sequences
    if micro % rows:
        field = "microbatch_sequences" if config.data.microbatch_sequences else "batch_sequences"
        raise InputError(f"data.{field} = {micro}: must be a multiple of the {rows} devices of mesh axes data and fsdp")
    model, tensor = config.model, mesh.shape["tensor"]
    for name, value in (("heads", model.heads), ("kv_heads", model.num_kv_heads), ("ff_width", model.num_ff)):
        if value % tensor:
            raise InputError(f"model.{name} = {value}: must be a multiple of mesh.tensor = {tensor}")
    if model.width % (mesh.shape["fsdp"] * tensor):
        raise InputError(
            f"model.width = {model.width}: must be a multiple of fsdp x tensor = {mesh.shape['fsdp'] * tensor}"
        )


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as text, `blocks/attention/q/kernel`."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def spec_of(path: str) -> P:
    """The spec of one parameter path. Raises LookupError unless exactly one rule matches."""
    matches = [spec for pattern, spec in RULES if re.fullmatch(pattern, path)]
    if len(matches) != 1:
        raise LookupError(f"{path}: {len(matches)} sharding rules match, one must")
    return matches[0]


def shard_state(abstract_state: Any, mesh: Mesh) -> Any:
    """Shardings of a whole training state: scalars replicated, each copy of a parameter as that parameter.

    A parameter is found below any key named `params`, `mu` or `nu` (Adam's moments have the parameters' tree).
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        name = re.sub(r"^.*?(^|/)(params|mu|nu)/(params/)?", "", path_name(path))
        return NamedSharding(mesh, spec_of(name))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; further axes whole."""
    return NamedSharding(mesh, BATCH)


def put_batch(rows_of: Callable[[slice], np.ndarray], shape: tuple[int, ...], mesh: Mesh) -> jax.Array:
    """A global array of `shape` whose every shard is made where it lives: rows_of(slice) -> that slice's rows."""

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return rows_of(slice(*index[0].indices(shape[0])))

    return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)
