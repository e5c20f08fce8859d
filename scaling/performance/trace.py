"""What a profiler's trace says of a training step: when the devices were busy, with which operations, and when not.

Read with jax.profiler.ProfileData, so without TensorBoard. Operations are named as in the compiled program, whose text
says of what kind each is. Not in the design's list of modules: the reading half of `scaling profile`.
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
"""Their bodies are in the trace too."""
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
DATA_MOVEMENT = {
    *("copy", "copy-start", "copy-done", "transpose", "bitcast", "reshape", "broadcast", "slice", "dynamic-slice"),
    *("dynamic-update-slice", "concatenate", "pad", "reverse", "gather", "iota", "tuple", "get-tuple-element"),
    *("parameter", "constant"),
}
ATTENTION = re.compile(r"/attention/(?!([qkvo]|[qk]_norm)/)")
"""In the names that JAX gives operations: all of the module but its projections and norms. RoPE counts."""
KIND_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("collective", "nccl|" + "|".join(COLLECTIVES)),
    ("attention", "fmha|flash|sdpa|splash|attention"),
    ("product", "gemm|cutlass|nvjet|xmma|cublas|matmul|dot|conv"),
    ("copy", "memcpy|memset|copy|transpose|slice|concatenate|gather|broadcast"),
)
"""For operations that the program does not name, such as kernels inside a CUDA graph."""
BUSY_SHARE = 0.9
COMPUTE_BOUND, WAITING_FOR_HOST, IDLE_WITHIN_STEP = "compute-bound", "waiting for the host", "idle within the step"
"""What a verdict begins with."""


@dataclass(frozen=True)
class Op:
    """One execution of one operation. Nanoseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Trace:
    """Operations by device, loops and calls left out, cut to the window; and the window, in nanoseconds."""

    devices: dict[str, tuple[Op, ...]]
    window: Interval


@dataclass(frozen=True)
class OpShare:
    """share: of the time of all operations. milliseconds and calls: of one step of one device."""

    name: str
    kind: Kind
    share: float
    milliseconds: float
    calls: float


@dataclass(frozen=True)
class Activity:
    """busy: share of the wall in which an operation ran, mean over devices; least_busy: of the idlest one. gap: the
    longest idle stretch of a step, hence what the host leaves between two when it is late, median of steps, mean over
    devices; None where steps cannot be told apart. kinds: shares of the time of all operations. Milliseconds a step."""

    wall: float
    busy: float
    least_busy: float
    gap: float | None
    op_time: float
    kinds: dict[Kind, float]
    ops: tuple[OpShare, ...]

    @property
    def verdict(self) -> str:
        idle = self.wall * (1 - self.busy)
        if self.busy >= BUSY_SHARE:
            return f"{COMPUTE_BOUND}: the devices are busy {self.busy:.0%} of the time"
        if self.gap is not None and self.gap >= idle / 2:
            return f"{WAITING_FOR_HOST}: {self.gap:.3f} of {idle:.3f} idle ms a step lie between steps"
        return f"{IDLE_WITHIN_STEP}: {idle:.3f} ms a step, in many short stretches"


def read_trace(folder: Path, window: str, left_out: Iterable[str] = ()) -> Trace:
    """The newest trace under `folder`. window: name of the TraceAnnotation around the steps. left_out: operations that
    only contain others. Raises InputError when there is no trace in it, or no operation, or no such annotation."""
    found = sorted(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"{folder}: holds no trace (*.xplane.pb)")
    return parse_profile(ProfileData.from_file(str(found[-1])), window, left_out)


def parse_profile(profile: ProfileData, window: str, left_out: Iterable[str] = ()) -> Trace:
    """See `read`."""
    marks = [
        (event.start_ns, event.end_ns)
        for plane in profile.planes
        if plane.name.startswith("/host:")
        for line in plane.lines
        for event in line.events
        if event.name == window
    ]
    if not marks:
        raise InputError(f"the trace has no annotation {window!r}: the profiler did not see the steps")
    start, end = marks[-1]
    skipped, devices = set(left_out), defaultdict(list)
    for device, op in _operations(profile):
        if op.name not in skipped and op.end > start and op.start < end:
            devices[device].append(Op(op.name, max(op.start, start), min(op.end, end)))
    if not devices:
        raise InputError("the trace has no operation of a device: the profiler does not see this one")
    return Trace({device: tuple(sorted(ops, key=lambda op: op.start)) for device, ops in devices.items()}, (start, end))


def _operations(profile: ProfileData) -> Iterator[tuple[str, Op]]:
    """GPUs have a line for each stream, TPUs one of operations, CPUs the threads of XLA."""
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
    """As in the program. A TPU writes the whole instruction, `%fusion.1 = ...`; a GPU's kernel carries a stat."""
    named = dict(event.stats).get("hlo_op")
    return str(named) if named else event.name.split(" = ")[0].lstrip("%")


def _host_operations(plane: Any) -> Iterator[tuple[str, Op]]:
    """XLA:CPU. A product is handed to other threads: its own event ends at once, "end: NAME" is when it was done."""
    begun: dict[str, tuple[str, Op]] = {}
    done: dict[str, float] = {}
    for line in plane.lines:
        for event in line.events:
            if event.name.startswith("ThreadpoolListener"):
                continue
            stats = dict(event.stats)
            if "hlo_op" in stats:
                op = Op(str(stats["hlo_op"]), event.start_ns, event.end_ns)
                begun[str(stats.get("_p", len(begun)))] = (f"CPU:{stats.get('device_ordinal', 0)}", op)
            elif event.name.startswith("end: "):
                done[str(stats.get("_c"))] = event.start_ns
    for key, (device, op) in begun.items():
        yield device, Op(op.name, op.start, max(op.end, done.get(key, op.end)))


def operation_kinds(program: str) -> tuple[dict[str, Kind], frozenset[str]]:
    """From the text of a compiled program: the kind of each operation, and the names of those that contain others."""
    module = hlo.parse_module(program)
    every = [one for computation in module.computations.values() for one in computation.instructions.values()]
    contain = frozenset(one.name for one in every if one.opcode in CONTAINERS)
    return {one.name: _operation_kind(module, one) for one in every if one.name not in contain}, contain


def _operation_kind(module: hlo.Module, one: hlo.Instruction) -> Kind:
    """Collectives first, then all of attention, then what holds a product; what only moves numbers is a copy."""
    opcodes = set(_opcodes(module, one))
    if any(opcode.startswith(COLLECTIVES) for opcode in opcodes):
        return "collective"
    op_name = re.search(r'op_name="([^"]*)"', one.attributes)
    if op_name and ATTENTION.search(op_name[1]):
        return "attention"
    if one.opcode == "custom-call":
        return kind_from_name(one.attribute("custom_call_target") or _quoted(one, "custom_call_target"))
    if opcodes & {"dot", "convolution"}:
        return "product"
    return "copy" if opcodes <= DATA_MOVEMENT else "elementwise"


def _opcodes(module: hlo.Module, one: hlo.Instruction) -> Iterator[str]:
    """Its own, or those of what it fuses or starts."""
    called = one.attribute("calls") if one.opcode in ("fusion", "async-start") else None
    if called is None:
        yield one.opcode
    else:
        for inner in module.computations[called].instructions.values():
            yield from _opcodes(module, inner)


def _quoted(one: hlo.Instruction, name: str) -> str:
    found = re.search(rf'\b{name}="([^"]*)"', one.attributes)
    return found[1] if found else one.name


def kind_from_name(name: str) -> Kind:
    """The kind of a kernel of which only the name is known."""
    return next((kind for kind, pattern in KIND_PATTERNS if re.search(pattern, name.lower())), "elementwise")


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """Their union as disjoint intervals in order."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def measure_activity(trace: Trace, of_kind: Mapping[str, Kind], steps: int) -> Activity:
    """What the devices did in a window of `steps` steps."""
    start, end = trace.window
    covered = {device: merge_intervals((op.start, op.end) for op in ops) for device, ops in trace.devices.items()}
    busy = [sum(b - a for a, b in intervals) / (end - start) for intervals in covered.values()]
    gaps = [_idle_gap(trace.devices[device], intervals, steps) for device, intervals in covered.items()]
    known = [gap for gap in gaps if gap is not None]
    per_step = 1e6 * steps * len(covered)
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
        gap=statistics.fmean(known) / 1e6 if known else None,
        op_time=total / per_step,
        kinds=dict(sorted(shares.items(), key=lambda item: -item[1])),
        ops=tuple(ops),
    )


def _idle_gap(ops: tuple[Op, ...], covered: list[Interval], steps: int) -> float | None:
    """Median over steps of the longest idle stretch between the starts of two, in nanoseconds. A step starts with the
    first operation that runs once in each."""
    often = Counter(op.name for op in ops)
    once = next((op.name for op in ops if often[op.name] == steps), None)
    if once is None or steps < 2:
        return None
    starts = [op.start for op in ops if op.name == once]
    idle = [(a[1], b[0]) for a, b in itertools.pairwise(covered)]
    longest = [
        max((b - a for a, b in idle if begin <= a and b <= finish), default=0.0)
        for begin, finish in itertools.pairwise(starts)
    ]
    return statistics.median(longest)
