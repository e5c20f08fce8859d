"""Few tokens, many times over (Muennighoff et al. 2023); about 36 H200-hours at 40 % MFU. The corpus:
sweeps/catalog/fineweb.py.
For a laptop, the same grid in small: data_constrained_cpu."""

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
MAX_TOKENS = 10_000_000_000  # of a horizon, at most


def grid_of_epochs(
    recipe: Recipe,
    sizes: Sequence[tuple[int, int]],
    unique: Sequence[int],
    epochs: Sequence[int],
    most: float,
    **given: Any,
) -> tuple[RunConfig, ...]:
    """Every size on every number of unique tokens for every number of epochs, horizons of `most` tokens at most.

    The epochs of one size on the same tokens share a trunk, where the recipe is `trunked`.
    """
    cells = []
    for size in sizes:
        for held in unique:
            for times in (times for times in epochs if times * held <= most):
                run = recipe(size, times * held, **given)
                limit = {"data.unique_tokens": held, "name": f"w{size[0]}-d{size[1]}-{held / 1e6:.3g}Mx{times}"}
                cells.append(overlay(run, limit))
    return tuple(cells)


def bounded_warmup(shortest: int) -> tuple[Callable[[PartialRun], int], str]:
    """N tokens, a tenth of the shortest horizon at most; and in words."""
    return lambda known: min(known.params.matmul, shortest // 10), f"N tokens, {shortest // 10:,} at most"


def sweep() -> Sweep:
    """Three sizes, three amounts of text 16x apart, one to 64 epochs as long as ten billion tokens last."""
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
