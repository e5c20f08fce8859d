"""Reads a profiler's trace of training steps: when the devices were busy, with which operations, and when idle.

jax.profiler.ProfileData reads the trace, so TensorBoard is not needed. Operations have the names of the compiled
program's instructions, whose text gives the kind of each. Used by `scaling profile`.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jax.profiler import ProfileData

from scaling.errors import InputError
from scaling.performance import hlo

Kind = Literal["product", "attention", "elementwise", "collective", "copy"]
Interval = tuple[float, float]

CONTAINERS = ("while", "call", "conditional")
"""Instructions that only contain others, whose own operations are in the trace too."""
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
DATA_MOVEMENT = {
    *("copy", "copy-start", "copy-done", "transpose", "bitcast", "reshape", "broadcast", "slice", "dynamic-slice"),
    *("dynamic-update-slice", "concatenate", "pad", "reverse", "gather", "iota", "tuple", "get-tuple-element"),
    *("parameter", "constant"),
}
ATTENTION = re.compile(r"/attention/(?!([qkvo]|[qk]_norm)/)")
"""Matches the op_name of all that runs in the module Attention except its projections and norms; RoPE is part."""
KIND_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("collective", "nccl|" + "|".join(COLLECTIVES)),
    ("attention", "fmha|flash|sdpa|splash|attention"),
    ("product", "gemm|cutlass|nvjet|xmma|cublas|matmul|dot|conv"),
    ("copy", "memcpy|memset|copy|transpose|slice|concatenate|gather|broadcast"),
)
"""Kinds by the name of a kernel, for operations that the program does not name, such as those in a CUDA graph."""
BUSY_SHARE = 0.9  # from this busy share of the wall time on, a run is compute-bound
COMPUTE_BOUND, WAITING_FOR_HOST, IDLE_WITHIN_STEP = "compute-bound", "waiting for the host", "idle within the step"
"""The words that a verdict begins with."""


@dataclass(frozen=True)
class Op:
    """One execution of one operation; start and end in nanoseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Trace:
    """Operations by device, without loops and calls, cut to the window; and the window, in nanoseconds."""

    devices: dict[str, tuple[Op, ...]]
    window: Interval


@dataclass(frozen=True)
class OpShare:
    """One operation's part of a step. share: of the time of all operations; milliseconds, calls: a step and device."""

    name: str
    kind: Kind
    share: float
    milliseconds: float
    calls: float


@dataclass(frozen=True)
class Activity:
    """What the devices did in a step. Times are in milliseconds a step.

    wall: wall time. busy: share of it in which some operation ran, mean over devices; least_busy: that of the idlest
    device. gap: the longest idle stretch of a step, which is the wait for the host when the host is late: median over
    steps, mean over devices, None where steps cannot be told apart. op_time: time of all operations, a device. kinds:
    shares of op_time.
    """

    wall: float
    busy: float
    least_busy: float
    gap: float | None
    op_time: float
    kinds: dict[Kind, float]
    ops: tuple[OpShare, ...]

    @property
    def verdict(self) -> str:
        """One sentence on what limits the step."""
        idle = self.wall * (1 - self.busy)
        if self.busy >= BUSY_SHARE:
            return f"{COMPUTE_BOUND}: the devices are busy {self.busy:.0%} of the time"
        if self.gap is not None and self.gap >= idle / 2:
            return f"{WAITING_FOR_HOST}: {self.gap:.3f} of {idle:.3f} idle ms a step lie between steps"
        return f"{IDLE_WITHIN_STEP}: {idle:.3f} ms a step, in many short stretches"


def read_trace(folder: Path, window: str, containers: Iterable[str] = ()) -> Trace:
    """The newest trace under `folder`.

    window: name of the TraceAnnotation around the steps; containers: names of operations that only contain others,
    which are left out. Raises InputError when the folder has no trace, or the trace no operation or no such annotation.
    """
    traces = sorted(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise InputError(f"{folder}: has no trace (*.xplane.pb)")
    return parse_profile(ProfileData.from_file(str(traces[-1])), window, containers)


def parse_profile(profile: ProfileData, window: str, containers: Iterable[str] = ()) -> Trace:
    """As `read_trace`, from a profile that is read already."""
    windows = [
        (event.start_ns, event.end_ns)
        for plane in profile.planes
        if plane.name.startswith("/host:")
        for line in plane.lines
        for event in line.events
        if event.name == window
    ]
    if not windows:
        raise InputError(f"the trace has no annotation {window!r}: the profiler did not see the steps")
    start, end = windows[-1]
    skipped, devices = set(containers), defaultdict(list)
    for device, op in _operations(profile):
        if op.name not in skipped and op.end > start and op.start < end:
            devices[device].append(Op(op.name, max(op.start, start), min(op.end, end)))
    if not devices:
        raise InputError("the trace has no operation of a device: the profiler does not see this one")
    return Trace({device: tuple(sorted(ops, key=lambda op: op.start)) for device, ops in devices.items()}, (start, end))


def _operations(profile: ProfileData) -> Iterator[tuple[str, Op]]:
    """Every operation with its device. In a trace GPUs have a line for each stream, TPUs one line of operations, CPUs
    the threads of XLA."""
    planes = list(profile.planes)
    accelerators = [plane for plane in planes if re.match(r"/device:(GPU|TPU):\d+$", plane.name)]
    for plane in accelerators:
        for line in plane.lines:
            if line.name.startswith("Stream") or line.name == "XLA Ops":
                for event in line.events:
                    yield plane.name, Op(_operation_name(event), event.start_ns, event.end_ns)
    if not accelerators:
        yield from (pair for plane in planes if plane.name == "/host:CPU" for pair in _host_operations(plane))


def _operation_name(event: Any) -> str:
    """The name of an event's instruction. A GPU's kernel has it as a stat, a TPU writes `%fusion.1 = ...`."""
    hlo_op = dict(event.stats).get("hlo_op")
    return str(hlo_op) if hlo_op else event.name.split(" = ")[0].lstrip("%")


def _host_operations(plane: Any) -> Iterator[tuple[str, Op]]:
    """Operations of XLA on CPUs. A product runs on other threads: its own event ends at once, and the event
    "end: NAME" marks when it was done."""
    started: dict[str, tuple[str, Op]] = {}
    ended: dict[str, float] = {}
    for line in plane.lines:
        for event in line.events:
            if event.name.startswith("ThreadpoolListener"):
                continue
            stats = dict(event.stats)
            if "hlo_op" in stats:
                op = Op(str(stats["hlo_op"]), event.start_ns, event.end_ns)
                started[str(stats.get("_p", len(started)))] = (f"CPU:{stats.get('device_ordinal', 0)}", op)
            elif event.name.startswith("end: "):
                ended[str(stats.get("_c"))] = event.start_ns
    for key, (device, op) in started.items():
        yield device, Op(op.name, op.start, max(op.end, ended.get(key, op.end)))


def operation_kinds(program: str) -> tuple[dict[str, Kind], frozenset[str]]:
    """From the text of a compiled program: the kind of each operation, and the names of those that contain others."""
    module = hlo.parse_module(program)
    kinds: dict[str, Kind] = {}
    containers: set[str] = set()
    for instruction in itertools.chain(*(c.instructions.values() for c in module.computations.values())):
        if instruction.opcode in CONTAINERS:
            containers.add(instruction.name)
        else:
            kinds[instruction.name] = _operation_kind(module, instruction)
    return kinds, frozenset(containers)


def _operation_kind(module: hlo.Module, instruction: hlo.Instruction) -> Kind:
    """The first that applies: a collective, part of attention, a custom call by its name, with a product in it, a copy
    where it only moves numbers, else elementwise."""
    opcodes = set(_opcodes(module, instruction))
    if any(opcode.startswith(COLLECTIVES) for opcode in opcodes):
        return "collective"
    op_name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    if op_name and ATTENTION.search(op_name[1]):
        return "attention"
    if instruction.opcode == "custom-call":
        return kind_from_name(instruction.attribute("custom_call_target") or _quoted(instruction, "custom_call_target"))
    if opcodes & {"dot", "convolution"}:
        return "product"
    return "copy" if opcodes <= DATA_MOVEMENT else "elementwise"


def _opcodes(module: hlo.Module, instruction: hlo.Instruction) -> Iterator[str]:
    """The opcode of an instruction, or those of the computation that it fuses or starts."""
    callee = instruction.attribute("calls") if instruction.opcode in ("fusion", "async-start") else None
    if callee is None:
        yield instruction.opcode
    else:
        for inner in module.computations[callee].instructions.values():
            yield from _opcodes(module, inner)


def _quoted(instruction: hlo.Instruction, name: str) -> str:
    """The value of the attribute `name="x"`; the instruction's name where it is absent."""
    match = re.search(rf'\b{name}="([^"]*)"', instruction.attributes)
    return match[1] if match else instruction.name


def kind_from_name(name: str) -> Kind:
    """The kind of a kernel, from its name alone."""
    return next((kind for kind, pattern in KIND_PATTERNS if re.search(pattern, name.lower())), "elementwise")


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals, as disjoint intervals in order."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def measure_activity(trace: Trace, of_kind: Mapping[str, Kind], steps: int) -> Activity:
    """What the devices did in a window of `steps` steps. of_kind: operation -> kind, from `operation_kinds`."""
    start, end = trace.window
    covered = {device: merge_intervals((op.start, op.end) for op in ops) for device, ops in trace.devices.items()}
    busy = [sum(b - a for a, b in intervals) / (end - start) for intervals in covered.values()]
    gaps = [_idle_gap(trace.devices[device], intervals, steps) for device, intervals in covered.items()]
    step_gaps = [gap for gap in gaps if gap is not None]
    per_step = 1e6 * steps * len(covered)  # nanoseconds of all devices -> milliseconds a step and device
    time: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for op in (op for ops in trace.devices.values() for op in ops):
        time[op.name] += op.end - op.start
        calls[op.name] += 1
    total = sum(time.values())
    ops = [
        OpShare(
            name,
            of_kind.get(name) or kind_from_name(name),
            spent / total,
            spent / per_step,
            calls[name] * 1e6 / per_step,
        )
        for name, spent in sorted(time.items(), key=lambda item: -item[1])
    ]
    shares: defaultdict[Kind, float] = defaultdict(float)
    for op in ops:
        shares[op.kind] += op.share
    return Activity(
        wall=(end - start) / 1e6 / steps,
        busy=statistics.fmean(busy),
        least_busy=min(busy),
        gap=statistics.fmean(step_gaps) / 1e6 if step_gaps else None,
        op_time=total / per_step,
        kinds=dict(sorted(shares.items(), key=lambda item: -item[1])),
        ops=tuple(ops),
    )


def _idle_gap(ops: tuple[Op, ...], covered: list[Interval], steps: int) -> float | None:
    """Nanoseconds of the longest idle stretch of a step of one device, median over steps; None where steps cannot be
    told apart. A step is taken to start with the first operation that runs once a step."""
    counts = Counter(op.name for op in ops)
    once_a_step = next((op.name for op in ops if counts[op.name] == steps), None)
    if once_a_step is None or steps < 2:
        return None
    starts = [op.start for op in ops if op.name == once_a_step]
    idle = [(a[1], b[0]) for a, b in itertools.pairwise(covered)]
    longest = [
        max((b - a for a, b in idle if begin <= a and b <= finish), default=0.0)
        for begin, finish in itertools.pairwise(starts)
    ]
    return statistics.median(longest)
