"""What one run of a compiled program moves and multiplies on one device: bytes of memory, products, collectives.

Read from the HLO text, loops multiplied out. Not in the design's list of modules: it keeps hlo.py to the reading.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from scaling.performance.hlo import Buffer, Computation, Instruction, Module, executed_instructions

# Bytes that a device sends, per byte of its operand, in a group of n (Thakur et al. 2005, bandwidth terms).
SENT_PER_BYTE = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
NO_BYTES = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "optimization-barrier",
    "async-start",
    "async-update",
    "add-dependency",
    "domain",
}
NO_COPY = ("AllocateBuffer", "ConcatBitcast", "AsyncCollective", "AssumeGather")
TRANSFER_TYPE = "_xla_megascale_transfer_type"
LOOKUPS = ("dynamic-slice", "slice", "gather", "slice-start")
VIEWS = ("bitcast", "reshape")


@dataclass(frozen=True)
class Collective:
    """One collective of the program. times: runs of it in a step. axes: mesh axes whose devices talk to each other.

    sent: bytes that a device sends in one run, over a ring; memory: bytes of its main memory read and written.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    times: int
    sent: float
    memory: float


@dataclass(frozen=True)
class StepCosts:
    """What one device does in one run of the program. flops: of matrix products, two a multiply-add; kernels that XLA
    cannot see into (Pallas) are not in it. memory: bytes of main memory (HBM) read and written."""

    flops: float
    memory: float
    collectives: tuple[Collective, ...]


def step_costs(module: Module, mesh: dict[str, int], slices: int = 1) -> StepCosts:
    """Totals of a module that was partitioned over a mesh (axis name -> size, in the order of the devices).

    slices: TPU slices, joined by a data-centre network. The module is then the program of one slice, and `mesh` the
    part of the mesh within it; what crosses is a send to the other slices, on the axis called `slices`.
    Raises ValueError on a loop whose trip count is not found or a collective whose groups are not understood.
    """
    if math.prod(mesh.values()) != module.partitions:
        raise ValueError(f"mesh {mesh} of a program for {module.partitions} devices")
    flops, memory = 0.0, 0.0
    collectives: list[Collective] = []
    spread = {_channel(one) for fused in module.computations.values() for one in _started_collectives(fused)}
    for inside, one, times, fused in executed_instructions(module):
        if one.opcode in ("dot", "convolution"):
            flops += times * product_flops(inside, one)
        if (kind := one.opcode.removesuffix("-start")) in SENT_PER_BYTE:
            if not fused or _channel(one) not in spread or one in _started_collectives(inside):
                collectives.append(_slice_collective(inside, one, kind, times, mesh))
        elif one.opcode == "send" and TRANSFER_TYPE in one.attributes:
            collectives.append(_cross_slice_collective(inside, one, times, slices))
        elif not fused:
            memory += times * memory_bytes(module, inside, one)
    return StepCosts(flops, memory + sum(one.times * one.memory for one in collectives), tuple(collectives))


def _channel(one: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", one.attributes)
    return found[1] if found else one.name


def _started_collectives(fused: Computation) -> list[Instruction]:
    """Collectives that this fusion starts. TPUs spread one collective over the fusions that run meanwhile, each of
    which names it again: only its start counts."""
    starts = [one for one in fused.instructions.values() if "AsyncCollectiveStart" in one.attributes]
    return [fused.instructions[name] for one in starts for name in one.operands]


def _slice_collective(inside: Computation, one: Instruction, kind: str, times: int, mesh: dict[str, int]) -> Collective:
    if kind == "all-reduce" and inside.root.opcode == "dynamic-slice":
        kind = "reduce-scatter"
    operands = [array for name in one.operands for array in inside.instructions[name].arrays]
    bytes_in = sum(array.bytes for array in operands)
    groups = replica_groups(one.attributes, mesh)
    group = max(map(len, groups))
    grows = {"all-gather": group, "reduce-scatter": 1 / group}.get(kind, 1)
    results = one.arrays[len(operands) :] if one.opcode.endswith("-start") else one.arrays
    read = sum(array.bytes for array in operands if array.memory == 0)
    written = bytes_in * grows if any(array.memory == 0 for array in results) else 0.0
    return Collective(
        kind, mesh_axes(groups, mesh), group, times, SENT_PER_BYTE[kind](group) * bytes_in, read + written
    )


def _cross_slice_collective(inside: Computation, one: Instruction, times: int, slices: int) -> Collective:
    """A collective between slices, as libtpu writes it: a send that says what the network does with it."""
    named = re.search(TRANSFER_TYPE + r'="(\w+)"', one.attributes)
    kind = named[1].lower().replace("_", "-") if named else ""
    kind = "collective-permute" if kind == "one-to-one" else kind
    if kind not in SENT_PER_BYTE:
        raise ValueError(f"transfer between slices that is not understood: {one.attributes[:400]}")
    sent = inside.instructions[one.operands[0]].arrays[0]
    return Collective(kind, ("slices",), slices, times, SENT_PER_BYTE[kind](slices) * sent.bytes, 2 * sent.bytes)


def replica_groups(attributes: str, mesh: dict[str, int]) -> list[list[int]]:
    """Groups of partitions that talk: `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)`, `mesh['a'=2,'b'=4] {'b'}`, or pairs."""
    everyone = math.prod(mesh.values())
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])] or [[0]]
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        return groups or [list(range(everyone))]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, source = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        ids = np.arange(everyone).reshape(source)
        return ids.transpose([int(n) for n in iota[3].split(",")] if iota[3] else None).reshape(shape).tolist()
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\((.*?)\))? ?\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return _named_groups(sizes, _device_order(named[2], everyone), named[3])
    raise ValueError(f"collective whose groups are not understood: {attributes[:200]}")


def _device_order(text: str | None, everyone: int) -> np.ndarray:
    """Devices in the order of a mesh: `[2,4]T(1,0)`, or those listed, or as they are."""
    ids = np.arange(everyone)
    if not text:
        return ids
    if iota := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", text):
        ids = ids.reshape([int(n) for n in iota[1].split(",")])
        return ids.transpose([int(n) for n in iota[2].split(",")] if iota[2] else None).ravel()
    return np.array([int(n) for n in text.split(",")])


def _named_groups(sizes: dict[str, int], devices: np.ndarray, used: str) -> list[list[int]]:
    """Groups along the axes `used` of a mesh in the HLO text; 'axis':(2)4 is its part of size 4 behind 2 others."""
    ids = devices.reshape(list(sizes.values()))
    along: list[int] = []
    shape: list[int] = []
    for name, size in sizes.items():
        part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", used)
        before, inner = (int(part[1]), int(part[2])) if part and part[1] else (1, size if part else 1)
        shape += [before, inner, size // (before * inner)]
        along.append(len(shape) - 2)
    across = [axis for axis in range(len(shape)) if axis not in along]
    grid = ids.reshape(shape).transpose(across + along)
    return grid.reshape(-1, math.prod(shape[axis] for axis in along)).tolist()


def mesh_axes(groups: list[list[int]], mesh: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which partitions of one group differ. Partition p is the p-th device of the mesh."""
    sizes = list(mesh.values())
    crossed = set()
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), sizes))
        crossed |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)).tolist())
    return tuple(name for index, name in enumerate(mesh) if index in crossed)


def product_flops(inside: Computation, one: Instruction) -> float:
    """FLOPs of a dot or a convolution: two for each multiply-add that meets no padding."""
    left, right = (inside.instructions[name].arrays[0] for name in one.operands[:2])
    out = one.arrays[0]
    if one.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        contracted = [int(n) for n in found[1].split(",") if n] if found else []
        return 2.0 * out.size * math.prod(left.dims[n] for n in contracted)
    return _convolution_flops(left, right, out, one.attributes)


def _convolution_flops(left: Buffer, right: Buffer, out: Buffer, attributes: str) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if not labels:
        raise ValueError(f"convolution without dim_labels: {attributes[:200]}")
    stated = re.search(r"window=\{([^}]*)\}", attributes)
    window = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\dx_\-]+)", stated[1] if stated else "")}
    spatial = sorted(label for label in labels[3] if label.isdigit())
    total = 2.0 * out.size / math.prod(out.dims[labels[3].index(label)] for label in spatial)
    total *= right.dims[labels[2].index("i")]
    for place, label in enumerate(spatial):
        base, taps, made = (
            array.dims[names.index(label)] for array, names in ((left, labels[1]), (right, labels[2]), (out, labels[3]))
        )

        def at(key: str, default: str, place: int = place) -> str:
            return window[key][place] if key in window else default

        low = int(at("pad", "0_0").split("_")[0])
        stride, spread, dilate = (int(at(key, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        met = np.arange(made)[:, None] * stride + np.arange(taps)[None, :] * dilate - low
        total *= int(((met >= 0) & (met < (base - 1) * spread + 1) & (met % spread == 0)).sum())
    return total


def memory_bytes(module: Module, inside: Computation, one: Instruction) -> float:
    """Bytes of main memory that one instruction reads and writes. A slice reads what it takes, an update in place
    writes what is new, a fusion reads of each operand what it uses."""
    if one.opcode in NO_BYTES or one.opcode.endswith("-done") or any(name in one.attributes for name in NO_COPY):
        return 0.0
    operands = [inside.instructions[name].arrays for name in one.operands]
    if one.opcode == "fusion":
        return _fusion_bytes(module, one, operands)
    if one.opcode in LOOKUPS:
        made = one.arrays[1] if one.opcode == "slice-start" else one.arrays[0]
        return made.bytes * ((made.memory == 0) + (operands[0][0].memory == 0))
    if one.opcode == "dynamic-update-slice":
        return operands[1][0].bytes * ((one.arrays[0].memory == 0) + (operands[1][0].memory == 0))
    made_arrays = one.arrays[:1] if one.opcode == "copy-start" else one.arrays
    return sum(array.bytes for arrays in (made_arrays, *operands) for array in arrays if array.memory == 0)


def _fusion_bytes(module: Module, one: Instruction, operands: list[tuple[Buffer, ...]]) -> float:
    fused = module.computations[str(one.attribute("calls"))]
    total = 0.0
    for index, arrays in enumerate(operands):
        parameter = fused.parameter(index)
        if parameter is not None and arrays and arrays[0].memory == 0:
            total += _bytes_read(module, fused, parameter)
    root = fused.root
    results = root.operands if root.opcode == "tuple" else (root.name,) * len(one.arrays)
    return total + sum(
        _bytes_written(fused, name, made) for name, made in zip(results, one.arrays, strict=False) if made.memory == 0
    )


def _bytes_read(module: Module, fused: Computation, parameter: Instruction) -> float:
    """Bytes that a fused computation reads of one of its parameters."""
    whole = parameter.arrays[0].bytes
    total = 0.0
    for user in fused.instructions.values():
        if parameter.name not in user.operands:
            continue
        if user.opcode in LOOKUPS and user.operands[0] == parameter.name:
            total += user.arrays[0].bytes
        elif user.opcode in VIEWS:
            total += _bytes_read(module, fused, user)
        elif (
            (user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name)
            or user.opcode == "tuple"
            or _is_collective_part(user)
        ):
            continue
        elif user.opcode == "fusion":
            inner = module.computations[str(user.attribute("calls"))]
            for index, name in enumerate(user.operands):
                below = inner.parameter(index) if name == parameter.name else None
                total += _bytes_read(module, inner, below) if below is not None else 0.0
        else:
            return whole
    return min(total, whole)


def _bytes_written(fused: Computation, name: str, made: Buffer) -> float:
    """Bytes that a fused computation writes of one result: of an update in place, the update; nothing of what it
    hands on, or of what a collective writes, which is counted there."""
    one = fused.instructions[name]
    while one.opcode in (*VIEWS, "dynamic-slice") and fused.instructions[one.operands[0]].opcode != "parameter":
        one = fused.instructions[one.operands[0]]
    if one.opcode == "parameter" or _is_collective_part(one):
        return 0.0
    if one.opcode == "dynamic-update-slice":
        return fused.instructions[one.operands[1]].arrays[0].bytes
    return made.bytes


def _is_collective_part(one: Instruction) -> bool:
    """Whether this is a collective, or part of one spread over fusions."""
    return one.opcode.removesuffix("-start") in SENT_PER_BYTE or "AsyncCollective" in one.attributes
