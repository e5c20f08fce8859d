"""Finds the best size of a vocabulary at equal compute; about 5.7 H200-hours at 40 % MFU.

The corpus is that of sweeps/catalog/fineweb.py; run its `scaling data vocabulary` and `scaling data prepare` once for
each vocabulary. Losses per token of different vocabularies cannot be compared: fit and read `bits_per_byte`.
"""

from scaling.recipes.derive import resolve_size
from scaling.recipes.recipes import step_law
from sweeps.catalog.fineweb import corpus_arguments, describe_cost
from sweeps.grids import Sweep

SIZES = ((256, 4), (384, 6), (512, 8), (768, 12))
VOCABULARIES = (2_048, 8_192, 32_000, 128_000)


def sweep() -> Sweep:
    """Four shapes under four vocabularies that are 62x apart.

    All runs of a shape have the budget of FLOPs of 20 tokens per parameter with 32,000 ids. A larger head spends it on
    fewer tokens, each of which holds more bytes (Tao et al. 2024).
    """
    budgets = {shape: flops_budget(shape) for shape in SIZES}
    cells = tuple(
        step_law(shape, flops=flops, **corpus_arguments(pieces))
        for shape, flops in budgets.items()
        for pieces in VOCABULARIES
    )
    return Sweep(
        name="vocabulary",
        cells=cells,
        description=f"{len(SIZES)} shapes x {len(VOCABULARIES)} vocabularies at equal FLOPs; {describe_cost(cells)}",
        why="the head is most of a small model: its size moves a law as much as its width does",
    )


def flops_budget(shape: tuple[int, int]) -> float:
    """Exact FLOPs of the recipe's own horizon at a shape, with 32,000 ids."""
    known, _ = resolve_size(step_law, shape)
    return known.flops_per_token * step_law.horizon.value(known)
