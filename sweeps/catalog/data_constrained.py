"""Runs that repeat few tokens many times (Muennighoff et al. 2023); about 36 H200-hours at 40 % MFU.

The corpus is that of sweeps/catalog/fineweb.py. data_constrained_cpu is the same grid for a laptop, in small.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from scaling.config.run_config import RunConfig
from scaling.recipes.derive import PartialRun, Recipe
from scaling.recipes.recipes import step_law
from sweeps.catalog.fineweb import corpus_arguments, describe_cost, with_shared_trunk
from sweeps.grids import Sweep, overlay

SIZES = ((384, 6), (640, 10), (1024, 16))
UNIQUE_TOKENS = (100_000_000, 400_000_000, 1_600_000_000)
EPOCHS = (1, 2, 4, 8, 16, 32, 64)
MAX_TOKENS = 10_000_000_000  # of the longest horizon


def grid_of_epochs(
    recipe: Recipe,
    sizes: Sequence[tuple[int, int]],
    unique: Sequence[int],
    epochs: Sequence[int],
    max_tokens: float,
    **options: Any,
) -> tuple[RunConfig, ...]:
    """Every size on every number of unique tokens for every number of epochs, unless that is above `max_tokens` tokens.

    With a recipe of `with_shared_trunk` the runs of one size on the same tokens share a trunk. options: other arguments
    of the recipe.
    """
    cells = []
    for size in sizes:
        for count, times in itertools.product(unique, epochs):
            if times * count <= max_tokens:
                run = recipe(size, times * count, **options)
                changes = {"data.unique_tokens": count, "name": f"w{size[0]}-d{size[1]}-{count / 1e6:.3g}Mx{times}"}
                cells.append(overlay(run, changes))
    return tuple(cells)


def bounded_warmup(shortest: int) -> tuple[Callable[[PartialRun], int], str]:
    """A warm-up rule and its description: N tokens, but at most a tenth of the shortest horizon."""
    return lambda known: min(known.params.matmul, shortest // 10), f"N tokens, {shortest // 10:,} at most"


def sweep() -> Sweep:
    """Three sizes, three amounts of text 16x apart, and one to 64 epochs of at most ten billion tokens in all."""
    recipe = with_shared_trunk(step_law, *bounded_warmup(min(UNIQUE_TOKENS)))
    cells = grid_of_epochs(recipe, SIZES, UNIQUE_TOKENS, EPOCHS, MAX_TOKENS, **corpus_arguments())
    return Sweep(
        name="data_constrained",
        cells=cells,
        description=(
            f"{len(SIZES)} sizes x {len(UNIQUE_TOKENS)} corpora x up to {len(EPOCHS)} epochs; {describe_cost(cells)}"
        ),
        why="what a repeated token is worth beside a new one: the two half-lives of the data-constrained law",
    )
