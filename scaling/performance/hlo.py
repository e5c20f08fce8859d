"""Compiled HLO text: computations, instructions, and how often each computation runs.

XLA's own cost analysis counts the body of a loop once. Here each loop has its trip count: the one XLA wrote down, or
else the one found by running the loop's scalar counters. A loop whose count is not found raises, it is never 1.

Not in the design's list of modules: what is read from a compiled program, for ahead.py.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
MAX_TRIPS = 1_000_000
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "and": operator.and_,
    "minimum": min,
    "maximum": max,
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "NE": operator.ne,
    "EQ": operator.eq,
}
PASS_THROUGH = ("copy", "convert", "bitcast", "reshape", "optimization-barrier")


@dataclass(frozen=True)
class Buffer:
    """One array: element type, dimensions, memory space. 0 is the device's main memory (HBM); 1 on TPUs its VMEM."""

    dtype: str
    dims: tuple[int, ...]
    memory: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Unpadded: TPUs tile the last two axes, and narrow arrays take more."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS[self.dtype] if self.dtype in BITS else int(digits[0]) if digits else 0
        return self.size * bits / 8


@dataclass(frozen=True)
class Instruction:
    """One line of HLO. arrays: what it makes, a tuple flattened. argument: the text between its parentheses."""

    name: str
    opcode: str
    arrays: tuple[Buffer, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """`name=%x` or `name=x` of the attributes, without the percent sign."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.root)

    def parameter(self, index: int) -> Instruction | None:
        found = (one for one in self.instructions.values() if one.opcode == "parameter" and one.argument == str(index))
        return next(found, None)


@dataclass(frozen=True)
class Module:
    """partitions: devices that one copy of the program runs on; of several TPU slices, those of one slice."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


def parse_module(text: str) -> Module:
    """The text of a compiled module. Raises ValueError where it is not HLO.

    An instruction is a line; what Pallas writes into the attributes of its kernels has more, which are left out.
    """
    computations, entry = {}, ""
    body: dict[str, Instruction] | None = None
    for raw in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", raw)
        if body is None:
            opened = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
            if opened:
                body = {}
                computations[opened[2]] = Computation(opened[2], body)
                entry = opened[2] if opened[1] else entry
        elif re.match(r"\}(, |$)", line):
            body = None
        elif re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
            one = _parse_instruction(line)
            body[one.name] = one
    if not entry:
        raise ValueError("no ENTRY computation: not the text of an HLO module")
    partitions = re.search(r"\bnum_partitions=(\d+)", text[: text.index("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _parse_instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    end = _closing_index(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].strip()
    opcode, opening = rest[: rest.index("(")], rest.index("(")
    closing = _closing_index(rest, opening)
    argument = rest[opening + 1 : closing]
    operands = re.findall(r"%([\w.\-]+)", argument)
    root = left.startswith("ROOT ")
    return Instruction(
        left.removeprefix("ROOT ").lstrip("%"),
        opcode,
        tuple(parse_buffers(shape)),
        tuple(operands),
        argument.strip(),
        rest[closing + 1 :],
        root,
    )


def _closing_index(text: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def parse_buffers(shape: str) -> Iterator[Buffer]:
    """The arrays of a shape, tuples flattened: `(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`."""
    for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?", shape):
        memory = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        yield Buffer(dtype, sizes, int(memory[1]) if memory else 0)


def trip_count(module: Module, inside: Computation, loop: Instruction) -> int:
    """How often the body of a while runs. Raises ValueError when that cannot be found."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if stated:
        return int(stated[1])
    condition = module.computations[str(loop.attribute("condition"))]
    body = module.computations[str(loop.attribute("body"))]
    initial = inside.instructions[loop.operands[0]]
    state: dict[int, int | None] = {}
    if initial.opcode == "tuple":
        state = {index: _scalar_value(module, inside, name, {}) for index, name in enumerate(initial.operands)}
    for count in range(MAX_TRIPS):
        going = _scalar_value(module, condition, condition.root.name, {0: state})
        if going is None:
            break
        if not going:
            return count
        changed = {
            index: _scalar_value(module, body, name, {0: state}) for index, name in enumerate(body.root.operands)
        }
        state = {index: value for index, value in changed.items() if value is not None}
    raise ValueError(f"loop {loop.name}: its trip count was not found")


Scalars = dict[int, "dict[int, int | None] | int | None"]


def _scalar_value(module: Module, inside: Computation, name: str, given: Scalars) -> int | None:
    """The value of a scalar that follows from constants and the parameters given; None when it does not."""
    one = inside.instructions[name]
    get = functools.partial(_scalar_value, module, inside, given=given)
    if one.opcode == "constant":
        text = {"true": "1", "false": "0"}.get(one.argument, one.argument)
        return int(text) if re.fullmatch(r"-?\d+", text) else None
    if one.opcode == "parameter":
        value = given.get(int(one.argument))
        return value if isinstance(value, int) else None
    if one.opcode == "get-tuple-element":
        source = inside.instructions[one.operands[0]]
        held = given.get(int(source.argument)) if source.opcode == "parameter" else None
        return held.get(int(str(one.attribute("index")))) if isinstance(held, dict) else None
    if one.opcode in PASS_THROUGH:
        return get(one.operands[0])
    if one.opcode == "fusion":
        fused = module.computations[str(one.attribute("calls"))]
        inputs: Scalars = {index: get(operand) for index, operand in enumerate(one.operands)}
        return _scalar_value(module, fused, fused.root.name, inputs)
    if one.opcode in OPERATIONS or one.opcode == "compare":
        left, right = (get(operand) for operand in one.operands)
        function = COMPARISONS[str(one.attribute("direction"))] if one.opcode == "compare" else OPERATIONS[one.opcode]
        return None if left is None or right is None else int(function(left, right))
    return None


def executed_instructions(module: Module) -> Iterator[tuple[Computation, Instruction, int, bool]]:
    """Every instruction that runs: its computation, itself, how often a step runs it, and whether inside a fusion.

    Of a conditional, every branch counts once. Reducers and comparators of a single number are left out.
    """

    def walk(name: str, times: int, fused: bool) -> Iterator[tuple[Computation, Instruction, int, bool]]:
        inside = module.computations[name]
        for one in inside.instructions.values():
            yield inside, one, times, fused
            if one.opcode == "while":
                yield from walk(str(one.attribute("body")), times * trip_count(module, inside, one), fused)
            elif one.opcode == "fusion":
                yield from walk(str(one.attribute("calls")), times, True)
            elif one.opcode in ("call", "async-start"):
                callee = one.attribute("to_apply") or one.attribute("calls") or one.attribute("called_computation")
                yield from walk(str(callee), times, fused)
            elif one.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
                named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.attributes)
                for branch in re.findall(r"[\w.\-]+", branches[1]) if branches else named:
                    yield from walk(branch, times, fused)

    yield from walk(module.entry, 1, False)
