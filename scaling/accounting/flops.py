"""FLOPs of a traced function, counted in its jaxpr: every matrix product times the loops around it.

Recomputation (remat) is in it, since the jaxpr holds it. What accounting.py counts by formula for a model, this counts
in the program, over all devices.

Not in the design's list of modules: accounting.py is a function of the config alone, and imports no JAX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Jaxpr = Any


def program_flops(jaxpr: Jaxpr) -> float:
    """FLOPs of the matrix products of a (closed) jaxpr and of all it calls, two a multiply-add.

    scan: times its length; cond: its costliest branch; while: once, since its count is not known; shard_map: times the
    devices of its axes. pallas_call: the estimate that its author gave, else its body times its grid; of splash
    attention, whose mask here is causal, the blocks on and under the diagonal.
    """
    total = 0.0
    for equation in _open(jaxpr).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot_flops(equation)
        elif name == "pallas_call":
            total += _kernel_flops(equation)
        elif name in ("scan", "shard_map"):
            total += _times(equation) * program_flops(equation.params["jaxpr"])
        elif name == "cond":
            total += max(program_flops(branch) for branch in equation.params["branches"])
        else:
            total += sum(program_flops(inner) for inner in _inner(equation.params))
    return total


def kernel_flops(jaxpr: Jaxpr) -> float:
    """The part of `program_flops` that lies in Pallas kernels, into which XLA cannot see."""
    total = 0.0
    for equation in _open(jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "pallas_call":
            total += _kernel_flops(equation)
        else:
            total += _times(equation) * sum(kernel_flops(inner) for inner in _inner(params))
    return total


def _open(jaxpr: Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Jaxprs among the parameters of an equation: of a call, a checkpoint, a custom derivative, a while."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
                yield one


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _kernel_flops(equation: Any) -> float:
    params = equation.params
    if params.get("cost_estimate") is not None:
        return float(params["cost_estimate"].flops)
    grid = params["grid_mapping"].grid
    blocks = grid[-1]
    causal = (blocks + 1) / (2 * blocks) if str(params.get("name")).startswith("splash") else 1.0
    return causal * math.prod(grid) * program_flops(params["jaxpr"])


def _times(equation: Any) -> int:
    """How often the body of an equation runs, over the devices of the axes that are written out."""
    params, name = equation.params, equation.primitive.name
    if name == "scan":
        return params["length"]
    if name != "shard_map":
        return 1
    manual = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
    return math.prod(params["mesh"].shape[axis] for axis in manual)
