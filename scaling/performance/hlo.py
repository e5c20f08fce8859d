"""Reads the text of a compiled HLO module: computations, instructions, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once. Here each loop has its trip count: the one that XLA wrote down,
or else the one found by running the loop's scalar counters. A loop whose count cannot be found raises ValueError.
Used by hlo_costs.py and trace.py.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Bits of an element, for the types whose name does not state them.
BITS = {"pred": 8, "token": 0, "opaque": 0}
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
# Instructions whose result is the value of their operand.
PASS_THROUGH = ("copy", "convert", "bitcast", "reshape", "optimization-barrier")


@dataclass(frozen=True)
class Buffer:
    """One array. memory_space: 0 is the device's main memory (HBM), 1 on TPUs its VMEM."""

    dtype: str
    dims: tuple[int, ...]
    memory_space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without padding. TPUs tile the last two axes, so narrow arrays take more in fact."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS[self.dtype] if self.dtype in BITS else int(digits[0]) if digits else 0
        return self.size * bits / 8


@dataclass(frozen=True)
class Instruction:
    """One line of HLO. arrays: its results, a tuple flattened. argument: the text between its parentheses."""

    name: str
    opcode: str
    arrays: tuple[Buffer, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The value of the attribute `name=%x` or `name=x`, without the percent sign; None where it is absent."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None


@dataclass(frozen=True)
class Computation:
    """A function of the module; its instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(instruction for instruction in self.instructions.values() if instruction.is_root)

    def parameter(self, index: int) -> Instruction | None:
        """The parameter of this number, None where the computation has none."""
        parameters = (each for each in self.instructions.values() if each.opcode == "parameter")
        return next((each for each in parameters if each.argument == str(index)), None)


@dataclass(frozen=True)
class Module:
    """A compiled program. partitions: devices that it is partitioned over; with several TPU slices, those of one."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


def parse_module(text: str) -> Module:
    """Reads the text of a compiled module. Raises ValueError where it is not HLO.

    An instruction is one line. The attributes of Pallas kernels go on over further lines, which are skipped.
    """
    computations, entry = {}, ""
    body: dict[str, Instruction] | None = None
    for raw_line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", raw_line)
        if body is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
            if header:
                body = {}
                computations[header[2]] = Computation(header[2], body)
                entry = header[2] if header[1] else entry
        elif re.match(r"\}(, |$)", line):
            body = None
        elif re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
            instruction = _parse_instruction(line)
            body[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: not the text of an HLO module")
    partitions = re.search(r"\bnum_partitions=(\d+)", text[: text.index("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _parse_instruction(line: str) -> Instruction:
    """Reads one line, `[ROOT ]%name = shape opcode(operands), attributes`."""
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
    """Index of the parenthesis that closes the one at `opening`. Raises ValueError where there is none."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def parse_buffers(shape: str) -> Iterator[Buffer]:
    """The arrays of a shape such as `(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`, tuples flattened; S(1) is memory space 1."""
    for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?", shape):
        memory = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        yield Buffer(dtype, sizes, int(memory[1]) if memory else 0)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int:
    """How often the body of a while loop of `computation` runs. Raises ValueError when that cannot be found."""
    stated_count = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if stated_count:
        return int(stated_count[1])
    condition = module.computations[str(loop.attribute("condition"))]
    body = module.computations[str(loop.attribute("body"))]
    # XLA did not write the count down: run the scalars of the loop's state until its condition is false.
    initial = computation.instructions[loop.operands[0]]
    state: dict[int, int | None] = {}
    if initial.opcode == "tuple":
        state = {index: _scalar_value(module, computation, name, {}) for index, name in enumerate(initial.operands)}
    for count in range(MAX_TRIPS):
        continues = _scalar_value(module, condition, condition.root.name, {0: state})
        if continues is None:
            break
        if not continues:
            return count
        next_state = {
            index: _scalar_value(module, body, name, {0: state}) for index, name in enumerate(body.root.operands)
        }
        state = {index: value for index, value in next_state.items() if value is not None}
    raise ValueError(f"loop {loop.name}: its trip count cannot be found, neither stated nor from its scalar counters")


Scalars = dict[int, "dict[int, int | None] | int | None"]


def _scalar_value(module: Module, computation: Computation, name: str, parameters: Scalars) -> int | None:
    """The value of an integer scalar, from constants and the values of parameters; None where they do not give it.

    parameters: value by number; of a tuple, a dict of the values of its elements.
    """
    instruction = computation.instructions[name]
    get = functools.partial(_scalar_value, module, computation, parameters=parameters)
    if instruction.opcode == "constant":
        text = {"true": "1", "false": "0"}.get(instruction.argument, instruction.argument)
        return int(text) if re.fullmatch(r"-?\d+", text) else None
    if instruction.opcode == "parameter":
        value = parameters.get(int(instruction.argument))
        return value if isinstance(value, int) else None
    if instruction.opcode == "get-tuple-element":
        source = computation.instructions[instruction.operands[0]]
        elements = parameters.get(int(source.argument)) if source.opcode == "parameter" else None
        return elements.get(int(str(instruction.attribute("index")))) if isinstance(elements, dict) else None
    if instruction.opcode in PASS_THROUGH:
        return get(instruction.operands[0])
    if instruction.opcode == "fusion":
        fused = module.computations[str(instruction.attribute("calls"))]
        inputs: Scalars = {index: get(operand) for index, operand in enumerate(instruction.operands)}
        return _scalar_value(module, fused, fused.root.name, inputs)
    if instruction.opcode in OPERATIONS or instruction.opcode == "compare":
        left, right = (get(operand) for operand in instruction.operands)
        function = (
            COMPARISONS[str(instruction.attribute("direction"))]
            if instruction.opcode == "compare"
            else OPERATIONS[instruction.opcode]
        )
        return None if left is None or right is None else int(function(left, right))
    return None


def executed_instructions(module: Module) -> Iterator[tuple[Computation, Instruction, int, bool]]:
    """Every instruction that runs, as (its computation, itself, runs in one run of the program, whether in a fusion).

    Every branch of a conditional counts once. Functions of single numbers, which reductions and sorts call, are left
    out.
    """

    def walk(name: str, times: int, is_fused: bool) -> Iterator[tuple[Computation, Instruction, int, bool]]:
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            yield computation, instruction, times, is_fused
            if instruction.opcode == "while":
                yield from walk(
                    str(instruction.attribute("body")), times * trip_count(module, computation, instruction), is_fused
                )
            elif instruction.opcode == "fusion":
                yield from walk(str(instruction.attribute("calls")), times, True)
            elif instruction.opcode in ("call", "async-start"):
                names = (instruction.attribute(key) for key in ("to_apply", "calls", "called_computation"))
                yield from walk(str(next(filter(None, names), None)), times, is_fused)
            elif instruction.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
                for branch in re.findall(r"[\w.\-]+", branches[1]) if branches else named:
                    yield from walk(branch, times, is_fused)

    yield from walk(module.entry, 1, False)
