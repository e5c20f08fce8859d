"""A sweep is a tuple of configs: overlays say what varies, combinators say how the variations meet.

axis("seed", 0, 1, 2)                        three overlays
product(axis(...), axis(...))                every pair
zipped(axis(...), axis(...))                 first with first, second with second
chain(axis(...), axis(...))                  one after the other
apply(base, overlays)                        the configs
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from scaling.config.overrides import Overlay, flatten, overlay
from scaling.config.run_config import RunConfig
from scaling.errors import InputError
from scaling.recipes.derive import Recipe, optimal_params, resolve_size

__all__ = [
    "Axis",
    "Overlay",
    "Sweep",
    "apply",
    "axis",
    "chain",
    "flatten",
    "geometric",
    "grid",
    "isoflop",
    "overlay",
    "product",
    "scan_learning_rates",
    "zipped",
]
Axis = tuple[Overlay, ...]
Size = TypeVar("Size")


@dataclass(frozen=True)
class Sweep:
    """Many runs and the reason for them. description: what is varied; why: what the result will tell."""

    name: str
    cells: tuple[RunConfig, ...]
    description: str
    why: str = ""


def axis(path: str, *values: Any) -> Axis:
    """One overlay per value of one field."""
    return tuple({path: value} for value in values)


def product(*axes: Axis) -> Axis:
    """Every combination, the last axis varying fastest. Raises InputError when two axes set one field."""
    return tuple(_merge(parts) for parts in itertools.product(*axes))


def zipped(*axes: Axis) -> Axis:
    """First with first, second with second. Raises InputError on axes of different lengths, or that set one field."""
    if len({len(one) for one in axes}) > 1:
        raise InputError(f"zipped axes have lengths {', '.join(str(len(one)) for one in axes)}: must be equal")
    return tuple(_merge(parts) for parts in zip(*axes, strict=True))


def chain(*axes: Axis) -> Axis:
    """One axis after the other."""
    return tuple(itertools.chain(*axes))


def _merge(parts: Iterable[Overlay]) -> Overlay:
    merged: dict[str, Any] = {}
    for part in parts:
        for path in part:
            clash = [held for held in merged if f"{held}.".startswith(f"{path}.") or f"{path}.".startswith(f"{held}.")]
            if clash:
                raise InputError(f"overlay {path}: {clash[0]} is set by another axis as well")
        merged |= part
    return merged


def apply(base: RunConfig, overlays: Axis) -> tuple[RunConfig, ...]:
    """One config per overlay."""
    return tuple(overlay(base, changes) for changes in overlays)


def grid(
    recipe: Callable[[Size, int], RunConfig], sizes: Sequence[Size], horizons: Sequence[int]
) -> tuple[RunConfig, ...]:
    """Every size at every horizon (tokens), horizons varying fastest; the recipe sets all the rest."""
    return tuple(recipe(size, tokens) for size, tokens in itertools.product(sizes, horizons))


def isoflop(
    recipe: Recipe, *, flops: Sequence[float], sizes: int, span: float, vocab_size: int | None = None, **given: Any
) -> tuple[RunConfig, ...]:
    """Every budget (exact FLOPs, causal attention halved) at `sizes` sizes, `span` in ratio from least to most
    params_matmul, about the size that the recipe's own horizon makes of it; each spends its budget on tokens.

    Hoffmann et al. 2022, approach 2. given: what the recipe takes beside its dial, as corpus and seed. Raises
    InputError when two sizes of a budget are one shape.
    """
    cells = []
    for budget in flops:
        middle = optimal_params(recipe, budget, vocab_size)
        shapes: list[tuple[int, int]] = []
        for count in geometric(middle / span**0.5, middle * span**0.5, sizes):
            known = resolve_size(recipe, count, vocab_size)[0]
            shapes.append((known.model.width, known.model.depth))
            cells.append(recipe(shapes[-1], flops=budget, vocab_size=vocab_size, **given))
        if len(set(shapes)) < sizes:
            twice = next(shape for shape in shapes if shapes.count(shape) > 1)
            raise InputError(
                f"isoflop {budget:g} FLOPs: two of {sizes} sizes are both w{twice[0]}xd{twice[1]}, the nearest shape "
                f"of {recipe.name}; ask for fewer, or a wider span than {span:g}"
            )
    return tuple(cells)


def scan_learning_rates(config: RunConfig, factors: Sequence[float]) -> tuple[RunConfig, ...]:
    """The run at several learning rates: its own times each factor, to four digits."""
    runs = []
    for factor in factors:
        rate = float(f"{config.optimizer.learning_rate * factor:.4g}")
        said = f"scan: {factor:g} times {config.learning_rate_from or 'the rate given'}"
        name = f"{config.name}-lr{rate:.3g}"
        runs.append(overlay(config, {"optimizer.learning_rate": rate, "learning_rate_from": said, "name": name}))
    return tuple(runs)


def geometric(lo: float, hi: float, n: int) -> tuple[float, ...]:
    """n numbers from lo to hi, both exact, evenly spaced in their logarithm. Raises InputError unless 0 < lo <= hi."""
    if not (0 < lo <= hi and math.isfinite(hi)) or n < 1 or (n == 1) != (lo == hi):
        raise InputError(f"geometric({lo}, {hi}, {n}): must have 0 < lo <= hi, and n = 1 just when lo = hi")
    if n == 1:
        return (float(lo),)
    inner = (lo * (hi / lo) ** (i / (n - 1)) for i in range(1, n - 1))
    return (float(lo), *inner, float(hi))
