"""What a sweep is written with: overlays say which fields vary, combinators say how the variations are combined.

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
    """Runs that answer one question. cells: their configs. description: what varies. why: what the result will tell."""

    name: str
    cells: tuple[RunConfig, ...]
    description: str
    why: str = ""


def axis(path: str, *values: Any) -> Axis:
    """One overlay per value of one field."""
    return tuple({path: value} for value in values)


def product(*axes: Axis) -> Axis:
    """Every combination; the last axis varies fastest. Raises InputError when two axes set the same field."""
    return tuple(_merge(parts) for parts in itertools.product(*axes))


def zipped(*axes: Axis) -> Axis:
    """First with first, second with second. Raises InputError when the axes differ in length or set the same field."""
    if len({len(overlays) for overlays in axes}) > 1:
        lengths = ", ".join(str(len(overlays)) for overlays in axes)
        raise InputError(f"zipped axes have lengths {lengths}: must be equal; give every axis as many values")
    return tuple(_merge(parts) for parts in zip(*axes, strict=True))


def chain(*axes: Axis) -> Axis:
    """One axis after the other."""
    return tuple(itertools.chain(*axes))


def _merge(overlays: Iterable[Overlay]) -> Overlay:
    """One overlay that sets the fields of all. Raises InputError where two set the same field, or a section and a field
    of it."""
    merged: dict[str, Any] = {}
    for changes in overlays:
        for path in changes:
            clashes = [old for old in merged if f"{old}.".startswith(f"{path}.") or f"{path}.".startswith(f"{old}.")]
            if clashes:
                raise InputError(f"overlay {path}: {clashes[0]} is set by another axis as well; set it in one axis")
        merged |= changes
    return merged


def apply(base: RunConfig, overlays: Axis) -> tuple[RunConfig, ...]:
    """One config per overlay."""
    return tuple(overlay(base, changes) for changes in overlays)


def grid(
    recipe: Callable[[Size, int], RunConfig], sizes: Sequence[Size], horizons: Sequence[int]
) -> tuple[RunConfig, ...]:
    """Every size at every horizon (tokens to train on); horizons vary fastest, and the recipe sets all other fields."""
    return tuple(recipe(size, tokens) for size, tokens in itertools.product(sizes, horizons))


def isoflop(
    recipe: Recipe, *, flops: Sequence[float], sizes: int, span: float, vocab_size: int | None = None, **options: Any
) -> tuple[RunConfig, ...]:
    """Isoflop curves (Hoffmann et al. 2022, approach 2): runs of several sizes for each budget of FLOPs.

    Args:
      recipe: makes a config from a shape and a budget.
      flops: budgets, in exact training FLOPs with causal attention halved.
      sizes: models for each budget, in equal ratios around the size that the recipe's own horizon makes of the budget.
      span: params_matmul of the largest model of a budget over that of the smallest.
      vocab_size: ids of the vocabulary; the recipe's own when not given.
      options: other arguments of the recipe, such as corpus and seed.

    Each run trains on as many tokens as its budget pays for. Raises InputError when two sizes of a budget round to the
    same shape.
    """
    cells = []
    for budget in flops:
        middle = optimal_params(recipe, budget, vocab_size)
        shapes: list[tuple[int, int]] = []
        for count in geometric(middle / span**0.5, middle * span**0.5, sizes):
            known = resolve_size(recipe, count, vocab_size)[0]
            shapes.append((known.model.width, known.model.depth))
            cells.append(recipe(shapes[-1], flops=budget, vocab_size=vocab_size, **options))
        if len(set(shapes)) < sizes:
            twice = next(shape for shape in shapes if shapes.count(shape) > 1)
            raise InputError(
                f"isoflop {budget:g} FLOPs: two of {sizes} sizes are both w{twice[0]}xd{twice[1]}, the nearest shape "
                f"of {recipe.name}; ask for fewer, or a wider span than {span:g}"
            )
    return tuple(cells)


def scan_learning_rates(config: RunConfig, factors: Sequence[float]) -> tuple[RunConfig, ...]:
    """The same run at several learning rates: its own rate times each factor, rounded to four digits."""
    runs = []
    for factor in factors:
        rate = float(f"{config.optimizer.learning_rate * factor:.4g}")
        source = f"scan: {factor:g} times {config.learning_rate_from or 'the rate given'}"
        name = f"{config.name}-lr{rate:.3g}"
        runs.append(overlay(config, {"optimizer.learning_rate": rate, "learning_rate_from": source, "name": name}))
    return tuple(runs)


def geometric(lo: float, hi: float, n: int) -> tuple[float, ...]:
    """n numbers from lo to hi in equal ratios; lo and hi are exact. Raises InputError unless 0 < lo <= hi."""
    if not (0 < lo <= hi and math.isfinite(hi)) or n < 1 or (n == 1) != (lo == hi):
        raise InputError(f"geometric({lo}, {hi}, {n}): must have 0 < lo <= hi, and n = 1 exactly when lo = hi")
    if n == 1:
        return (float(lo),)
    inner = (lo * (hi / lo) ** (i / (n - 1)) for i in range(1, n - 1))
    return (float(lo), *inner, float(hi))
