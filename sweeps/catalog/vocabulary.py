"""How many pieces should a vocabulary have, at equal compute? About 5.7 H200-hours at 40 % MFU.

The corpus: sweeps/catalog/fineweb.py; once for each vocabulary, `scaling data vocabulary` and `scaling data prepare`
as it says.
Losses per token of different vocabularies do not compare: fit and read `bits_per_byte`.
"""

from scaling.recipes.derive import resolve_size
from scaling.recipes.recipes import step_law
from sweeps.catalog.fineweb import corpus_arguments, describe_cost
from sweeps.grids import Sweep

SIZES = ((256, 4), (384, 6), (512, 8), (768, 12))
VOCABULARIES = (2_048, 8_192, 32_000, 128_000)


def sweep() -> Sweep:
    """Four shapes under four vocabularies, 62x apart; a shape has one budget of FLOPs, that of 20 tokens a parameter
    with 32,000 ids, which a bigger head spends on fewer tokens, each of more bytes (Tao et al. 2024)."""
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
