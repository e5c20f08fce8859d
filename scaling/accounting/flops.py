"""FLOPs of a program, counted in its jaxpr over all devices: each matrix product times the loops around it.

counts.py counts a model by formula; this counts what a program really computes, recomputation (remat) included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Jaxpr = Any


def program_flops(jaxpr: Jaxpr) -> float:
    """FLOPs of the matrix products of a jaxpr, open or closed, and of all that it calls; a multiply-add is two.

    A scan counts times its length, a cond as its costliest branch, a while once (its count is not known), a shard_map
    times the devices of its axes. A pallas_call counts as its author's cost estimate, or else its body times its grid;
    of splash attention, whose mask is causal here, only the blocks on and below the diagonal.
    """
    total = 0.0
    for equation in _open_jaxpr(jaxpr).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot_flops(equation)
        elif name == "pallas_call":
            total += _kernel_flops(equation)
        elif name in ("scan", "shard_map"):
            total += _repetitions(equation) * program_flops(equation.params["jaxpr"])
        elif name == "cond":
            total += max(program_flops(branch) for branch in equation.params["branches"])
        else:
            total += sum(program_flops(inner) for inner in _inner_jaxprs(equation.params))
    return total


def kernel_flops(jaxpr: Jaxpr) -> float:
    """The part of `program_flops` inside Pallas kernels, which XLA's cost analysis does not count."""
    total = 0.0
    for equation in _open_jaxpr(jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "pallas_call":
            total += _kernel_flops(equation)
        else:
            total += _repetitions(equation) * sum(kernel_flops(inner) for inner in _inner_jaxprs(params))
    return total


def _open_jaxpr(jaxpr: Jaxpr) -> Jaxpr:
    """The jaxpr inside a closed one, or itself."""
    return jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Jaxprs among the parameters of an equation: of a call, a checkpoint, a custom derivative, a while."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                yield item


def _dot_flops(equation: Any) -> float:
    """2 x the size of the result x the contracted dimensions."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _kernel_flops(equation: Any) -> float:
    params = equation.params
    if params.get("cost_estimate") is not None:
        return float(params["cost_estimate"].flops)
    grid = params["grid_mapping"].grid
    blocks = grid[-1]
    # Of n x n blocks, n (n + 1) / 2 lie on or below the diagonal.
    causal = (blocks + 1) / (2 * blocks) if str(params.get("name")).startswith("splash") else 1.0
    return causal * math.prod(grid) * program_flops(params["jaxpr"])


def _repetitions(equation: Any) -> int:
    """How often the body of an equation runs: steps of a scan, devices of a shard_map's manual axes."""
    params, name = equation.params, equation.primitive.name
    if name == "scan":
        return params["length"]
    if name != "shard_map":
        return 1
    manual = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
    return math.prod(params["mesh"].shape[axis] for axis in manual)
