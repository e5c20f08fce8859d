"""The device mesh (data, fsdp, tensor), and how the batch and the training state are sharded over it.

The batch is sharded over data and fsdp, never replicated; weights and optimizer state over fsdp and tensor, as the
table of weights.py says. The axes are Auto: the compiler chooses the sharding of everything in between.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.config.run_config import MeshConfig, ModelConfig, RunConfig
from scaling.errors import InputError
from scaling.model.weights import path_name, weight_kind

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BATCH_SPEC = P(BATCH_AXES)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, or over those given (of a topology that is compiled for and absent).

    Devices that are neighbours on the mesh are neighbours in the machine. Over several TPU slices, which only a
    data-centre network joins, the data axis runs over the slices; fsdp and tensor stay within one. Raises InputError
    when the axes do not multiply to the number of devices, or data is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = sizes = axis_sizes(config, len(devices), slices := slice_count(devices))
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def compiler_options(mesh: Mesh) -> dict[str, bool] | None:
    """XLA options for programs on a mesh: where one process has several CPU devices, fewer operations that are split
    over threads; else None.

    Such devices share one pool of threads, and their collectives wait for one another in it. A device whose operations
    take every thread leaves the others none, and XLA aborts the process after a minute. XLA splits matrix products in
    spite of the option (seen with jax 0.10.2), so this makes such an abort rarer and does not exclude it. What else
    helps is that the training loop has two steps in flight at most.
    """
    several = sum(d.process_index == jax.process_index() for d in mesh.devices.flat) > 1
    return {"xla_cpu_multi_thread_eigen": False} if several and mesh.devices.flat[0].platform == "cpu" else None


def slice_count(devices: Sequence[Any]) -> int:
    """Number of TPU slices that the devices belong to; 1 for other devices (a GPU's slice index is its host)."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


def axis_sizes(config: MeshConfig, devices: int, slices: int = 1) -> tuple[int, int, int]:
    """Devices along data, fsdp and tensor. Raises InputError, with the nearest mesh that fits, where their product is
    not `devices` or the slices do not divide data."""
    data = config.data or max(devices // (config.fsdp * config.tensor), 1)
    sizes = (data, config.fsdp, config.tensor)
    if math.prod(sizes) != devices:
        raise InputError(
            f"mesh data={data} x fsdp={config.fsdp} x tensor={config.tensor} = {math.prod(sizes)}: must be the number "
            f"of devices, {devices}; {_suggest_mesh(sizes, devices, slices)}"
        )
    if data % slices:
        raise InputError(
            f"mesh data={data}: must be a multiple of the {slices} slices, which only the data axis crosses; "
            f"{_suggest_mesh(sizes, devices, slices)}"
        )
    return sizes


def _suggest_mesh(
    sizes: tuple[int, int, int], devices: int, slices: int, fits: Callable[[tuple[int, int, int]], bool] | None = None
) -> str:
    """In words, the valid mesh over all devices that changes the fewest axes, and those by the least.

    fits: a further condition on (data, fsdp, tensor).
    """

    def difference(other: tuple[int, int, int]) -> tuple[int, float, int]:
        """Axes that change, by how many factors of two in all, and last the smaller tensor axis."""
        doublings = [abs(math.log2(a / b)) for a, b in zip(sizes, other, strict=True)]
        return sum(d > 0 for d in doublings), sum(doublings), other[2]

    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [(devices // (f * t), f, t) for t in divisors for f in divisors if devices % (f * t) == 0]
    valid = [mesh for mesh in meshes if mesh[0] % slices == 0 and (fits is None or fits(mesh))]
    if not valid:
        return "no mesh over these devices would fit"
    best = min(valid, key=difference)
    return "nearest that fits: " + ",".join(f"{axis}={size}" for axis, size in zip(AXES, best, strict=True))


def check_divisibility(config: RunConfig, mesh: Mesh) -> None:
    """Raises InputError, before anything is compiled, when the batch or a weight does not divide over the mesh.

    The error names the smallest change that fits: the nearest batch, or the nearest mesh of as many devices.
    """
    sizes = (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"])
    rows = sizes[0] * sizes[1]
    micro = config.data.microbatch_sequences or config.data.batch_sequences
    if micro % rows:
        field = "microbatch_sequences" if config.data.microbatch_sequences else "batch_sequences"
        nearest = max(round(micro / rows), 1) * rows
        raise InputError(
            f"data.{field} = {micro}: must be a multiple of the {rows} devices of mesh axes data and fsdp; "
            f"nearest that fits: {nearest}"
        )
    reason = _divisibility_error(config.model, sizes)
    if reason:
        suggestion = _suggest_mesh(
            sizes,
            math.prod(sizes),
            1,
            lambda mesh: not _divisibility_error(config.model, mesh) and micro % (mesh[0] * mesh[1]) == 0,
        )
        raise InputError(f"{reason}; {suggestion}")


def _divisibility_error(model: ModelConfig, sizes: tuple[int, int, int]) -> str:
    """Which size of a model does not divide over a mesh, in words for an error; empty when all do."""
    _, fsdp, tensor = sizes
    for name, value in (("heads", model.heads), ("kv_heads", model.num_kv_heads), ("ff_width", model.num_ff)):
        if value % tensor:
            return f"model.{name} = {value}: must be a multiple of mesh.tensor = {tensor}"
    if model.width % (fsdp * tensor):
        return f"model.width = {model.width}: must be a multiple of fsdp x tensor = {fsdp * tensor}"
    return ""


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a training state: scalars are replicated, weights follow the table of weights.

    Adam's moments, under the keys `mu` and `nu`, have the tree of the parameters and are sharded as these. Raises
    LookupError on a leaf that the table does not have.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        # What follows params, mu or nu in the path of a leaf is the path of a weight.
        path_of_weight = re.sub(r"^.*?(^|/)(params|mu|nu)/(params/)?", "", path_name(path))
        return NamedSharding(mesh, weight_kind(path_of_weight).spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def batch_shards(mesh: Mesh | None) -> int:
    """Number of devices over which the rows of a batch are split; 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows over data and fsdp, further axes not split."""
    return NamedSharding(mesh, BATCH_SPEC)


def put_batch(load_rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], mesh: Mesh) -> jax.Array:
    """A global array of `shape`, sharded by rows; each process makes only the rows of its own devices.

    load_rows: slice of rows -> those rows, [rows, ...].
    """

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return load_rows(slice(*index[0].indices(shape[0])))

    return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)
