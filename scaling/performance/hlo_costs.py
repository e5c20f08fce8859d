"""What one run of a compiled program costs on one device: FLOPs of products, bytes of memory, collectives.

It is counted in the HLO text (hlo.py), each instruction times the iterations of the loops around it.
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
# Instructions that read and write no memory of their own.
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
# Custom calls of TPUs, by a word of their attributes, that move no data.
NO_COPY = ("AllocateBuffer", "ConcatBitcast", "AsyncCollective", "AssumeGather")
# The attribute of a send that says which collective between TPU slices it is part of.
TRANSFER_TYPE = "_xla_megascale_transfer_type"
LOOKUPS = ("dynamic-slice", "slice", "gather", "slice-start")
VIEWS = ("bitcast", "reshape")


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    axes: mesh axes over which devices exchange data; group_size: devices that do so together. sent_bytes: what a device
    sends in one run, over a ring; memory_bytes: what it reads and writes of its main memory in one run.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    runs_per_step: int
    sent_bytes: float
    memory_bytes: float


@dataclass(frozen=True)
class StepCosts:
    """What one device does in one run of the program.

    flops: of matrix products, two a multiply-add, without those in Pallas kernels, whose content XLA does not see.
    memory_bytes: of main memory (HBM) read and written.
    """

    flops: float
    memory_bytes: float
    collectives: tuple[Collective, ...]


def step_costs(module: Module, mesh: dict[str, int], slices: int = 1) -> StepCosts:
    """The costs of a module that was partitioned over a mesh (axis name -> size, in the order of the devices).

    slices: number of TPU slices, joined by a data-centre network. With several, the module is the program of one slice
    and `mesh` the part of the mesh within it; collectives between slices have the axis `slices`. Raises ValueError on
    a loop whose trip count is not found and on a collective whose groups are not understood.
    """
    if math.prod(mesh.values()) != module.partitions:
        raise ValueError(f"mesh {mesh}: must have the {module.partitions} devices of the program")
    flops, memory = 0.0, 0.0
    collectives: list[Collective] = []
    # Channels of collectives that a TPU spreads over several fusions: only the fusion that starts one counts.
    spread_channels = {
        _channel(instruction) for fused in module.computations.values() for instruction in _started_collectives(fused)
    }
    for computation, instruction, times, is_fused in executed_instructions(module):
        if instruction.opcode in ("dot", "convolution"):
            flops += times * product_flops(computation, instruction)
        if (kind := instruction.opcode.removesuffix("-start")) in SENT_PER_BYTE:
            if (
                not is_fused
                or _channel(instruction) not in spread_channels
                or instruction in _started_collectives(computation)
            ):
                collectives.append(_slice_collective(computation, instruction, kind, times, mesh))
        elif instruction.opcode == "send" and TRANSFER_TYPE in instruction.attributes:
            collectives.append(_cross_slice_collective(computation, instruction, times, slices))
        elif not is_fused:
            memory += times * instruction_bytes(module, computation, instruction)
    return StepCosts(
        flops,
        memory + sum(collective.runs_per_step * collective.memory_bytes for collective in collectives),
        tuple(collectives),
    )


def _channel(instruction: Instruction) -> str:
    """The channel of a collective, or its name where it has none."""
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    return match[1] if match else instruction.name


def _started_collectives(fused: Computation) -> list[Instruction]:
    """The collectives that a fusion starts. TPUs spread one collective over the fusions that run meanwhile, and each of
    these contains it again."""
    starts = [
        instruction for instruction in fused.instructions.values() if "AsyncCollectiveStart" in instruction.attributes
    ]
    return [fused.instructions[name] for instruction in starts for name in instruction.operands]


def _slice_collective(
    computation: Computation, instruction: Instruction, kind: str, times: int, mesh: dict[str, int]
) -> Collective:
    """A collective within one slice, from the instruction that starts it."""
    # An all-reduce of which the fusion keeps one slice is a reduce-scatter.
    if kind == "all-reduce" and computation.root.opcode == "dynamic-slice":
        kind = "reduce-scatter"
    operands = [array for name in instruction.operands for array in computation.instructions[name].arrays]
    bytes_in = sum(array.bytes for array in operands)
    groups = replica_groups(instruction.attributes, mesh)
    group = max(map(len, groups))
    grows = {"all-gather": group, "reduce-scatter": 1 / group}.get(kind, 1)
    results = instruction.arrays[len(operands) :] if instruction.opcode.endswith("-start") else instruction.arrays
    read = sum(array.bytes for array in operands if array.memory_space == 0)
    written = bytes_in * grows if any(array.memory_space == 0 for array in results) else 0.0
    return Collective(
        kind, mesh_axes(groups, mesh), group, times, SENT_PER_BYTE[kind](group) * bytes_in, read + written
    )


def _cross_slice_collective(computation: Computation, instruction: Instruction, times: int, slices: int) -> Collective:
    """A collective between slices. libtpu writes it as a send with an attribute that says what the network does."""
    named = re.search(TRANSFER_TYPE + r'="(\w+)"', instruction.attributes)
    kind = named[1].lower().replace("_", "-") if named else ""
    kind = "collective-permute" if kind == "one-to-one" else kind
    if kind not in SENT_PER_BYTE:
        raise ValueError(f"a transfer between slices of an unknown kind: {instruction.attributes[:400]}")
    sent = computation.instructions[instruction.operands[0]].arrays[0]
    return Collective(kind, ("slices",), slices, times, SENT_PER_BYTE[kind](slices) * sent.bytes, 2 * sent.bytes)


def replica_groups(attributes: str, mesh: dict[str, int]) -> list[list[int]]:
    """Groups of partitions that exchange data, from the attributes of a collective.

    HLO writes them as lists `{{0,1},{2,3}}`, as a reshaped and transposed range `[2,4]<=[4,2]T(1,0)`, by mesh axes
    `mesh['a'=2,'b'=4] {'b'}`, or as pairs of source and target. Raises ValueError on anything else.
    """
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
    raise ValueError(f"a collective with groups in an unknown form: {attributes[:200]}")


def _device_order(text: str | None, everyone: int) -> np.ndarray:
    """Partition numbers in the order of a mesh: a transposed range `[2,4]T(1,0)`, a list, or 0 to n - 1."""
    ids = np.arange(everyone)
    if not text:
        return ids
    if iota := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", text):
        ids = ids.reshape([int(n) for n in iota[1].split(",")])
        return ids.transpose([int(n) for n in iota[2].split(",")] if iota[2] else None).ravel()
    return np.array([int(n) for n in text.split(",")])


def _named_groups(sizes: dict[str, int], devices: np.ndarray, used: str) -> list[list[int]]:
    """Groups along the axes that `used` names of a mesh in the HLO text. 'axis':(2)4 is the part of size 4 of an axis
    whose first part has size 2."""
    ids = devices.reshape(list(sizes.values()))
    along: list[int] = []
    shape: list[int] = []
    for name, size in sizes.items():
        part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", used)
        before, inner = (int(part[1]), int(part[2])) if part and part[1] else (1, size if part else 1)
        # Every axis becomes three: the parts before, in and after the part that is used.
        shape += [before, inner, size // (before * inner)]
        along.append(len(shape) - 2)
    across = [axis for axis in range(len(shape)) if axis not in along]
    grid = ids.reshape(shape).transpose(across + along)
    return grid.reshape(-1, math.prod(shape[axis] for axis in along)).tolist()


def mesh_axes(groups: list[list[int]], mesh: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the partitions of one group differ. Partition p is the p-th device of the mesh."""
    sizes = list(mesh.values())
    crossed = set()
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), sizes))
        crossed |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)).tolist())
    return tuple(name for index, name in enumerate(mesh) if index in crossed)


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a dot or a convolution: two for each multiply-add with an element that is not padding."""
    left, right = (computation.instructions[name].arrays[0] for name in instruction.operands[:2])
    out = instruction.arrays[0]
    if instruction.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(n) for n in match[1].split(",") if n] if match else []
        return 2.0 * out.size * math.prod(left.dims[n] for n in contracted)
    return _convolution_flops(left, right, out, instruction.attributes)


def _convolution_flops(left: Buffer, right: Buffer, out: Buffer, attributes: str) -> float:
    """FLOPs of a convolution, from its window and dim_labels. TPUs write batched products as such convolutions."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if not labels:
        raise ValueError(f"convolution without dim_labels: {attributes[:200]}")
    stated = re.search(r"window=\{([^}]*)\}", attributes)
    window = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\dx_\-]+)", stated[1] if stated else "")}
    spatial = sorted(label for label in labels[3] if label.isdigit())
    total = 2.0 * out.size / math.prod(out.dims[labels[3].index(label)] for label in spatial)
    total *= right.dims[labels[2].index("i")]
    for place, label in enumerate(spatial):
        base, taps, outputs = (
            array.dims[names.index(label)] for array, names in ((left, labels[1]), (right, labels[2]), (out, labels[3]))
        )

        def at(key: str, default: str, place: int = place) -> str:
            return window[key][place] if key in window else default

        low = int(at("pad", "0_0").split("_")[0])
        stride, base_dilation, tap_dilation = (int(at(key, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        # base_position[output, tap]: where a tap reads; only positions inside the base and on its dilated grid count.
        base_position = np.arange(outputs)[:, None] * stride + np.arange(taps)[None, :] * tap_dilation - low
        total *= int(
            (
                (base_position >= 0)
                & (base_position < (base - 1) * base_dilation + 1)
                & (base_position % base_dilation == 0)
            ).sum()
        )
    return total


def instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes of main memory that one instruction reads and writes.

    A slice reads only what it takes, an update in place writes only the update, and a fusion reads of each operand only
    what it uses.
    """
    if (
        instruction.opcode in NO_BYTES
        or instruction.opcode.endswith("-done")
        or any(name in instruction.attributes for name in NO_COPY)
    ):
        return 0.0
    operands = [computation.instructions[name].arrays for name in instruction.operands]
    if instruction.opcode == "fusion":
        return _fusion_bytes(module, instruction, operands)
    if instruction.opcode in LOOKUPS:
        result = instruction.arrays[1] if instruction.opcode == "slice-start" else instruction.arrays[0]
        return result.bytes * ((result.memory_space == 0) + (operands[0][0].memory_space == 0))
    if instruction.opcode == "dynamic-update-slice":
        return operands[1][0].bytes * ((instruction.arrays[0].memory_space == 0) + (operands[1][0].memory_space == 0))
    results = instruction.arrays[:1] if instruction.opcode == "copy-start" else instruction.arrays
    return sum(array.bytes for arrays in (results, *operands) for array in arrays if array.memory_space == 0)


def _fusion_bytes(module: Module, instruction: Instruction, operands: list[tuple[Buffer, ...]]) -> float:
    """Bytes that a fusion reads of its operands and writes of its results."""
    fused = module.computations[str(instruction.attribute("calls"))]
    total = 0.0
    for index, arrays in enumerate(operands):
        parameter = fused.parameter(index)
        if parameter is not None and arrays and arrays[0].memory_space == 0:
            total += _bytes_read(module, fused, parameter)
    root = fused.root
    results = root.operands if root.opcode == "tuple" else (root.name,) * len(instruction.arrays)
    return total + sum(
        _bytes_written(fused, name, result)
        for name, result in zip(results, instruction.arrays, strict=False)
        if result.memory_space == 0
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


def _bytes_written(fused: Computation, name: str, result: Buffer) -> float:
    """Bytes that a fused computation writes of one result: the update alone where it updates in place, nothing where it
    passes a parameter on or where a collective writes the result, which is counted there."""
    instruction = fused.instructions[name]
    while (
        instruction.opcode in (*VIEWS, "dynamic-slice")
        and fused.instructions[instruction.operands[0]].opcode != "parameter"
    ):
        instruction = fused.instructions[instruction.operands[0]]
    if instruction.opcode == "parameter" or _is_collective_part(instruction):
        return 0.0
    if instruction.opcode == "dynamic-update-slice":
        return fused.instructions[instruction.operands[1]].arrays[0].bytes
    return result.bytes


def _is_collective_part(instruction: Instruction) -> bool:
    """Whether this is a collective, or a part of one that is spread over fusions."""
    return instruction.opcode.removesuffix("-start") in SENT_PER_BYTE or "AsyncCollective" in instruction.attributes
