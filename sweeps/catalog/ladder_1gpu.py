"""Ten million to half a billion parameters on one GPU: the ladder of a law worth quoting. One trunk a size, a cooldown
branch for every horizon; about 53 H200-hours at 40 % MFU, 82 if each were
trained alone. The corpus: sweeps/catalog/fineweb.py."""

from scaling.recipes.derive import shape_of
from scaling.recipes.recipes import step_law
from sweeps.catalog.fineweb import TOKENS, cost, given, trunked
from sweeps.grids import Sweep

SIZES = ((256, 4), (320, 5), (384, 6), (512, 8), (640, 10), (768, 12), (1024, 16), (1280, 24))
RATIOS = (5, 10, 20, 40, 80, 160)  # tokens a parameter: from a quarter of Hoffmann et al. 2022's to eight times it
SEEDS = (1, 2)  # beside 0, at 20 tokens a parameter and up to SEEDED: the noise that an interval needs
SEEDED = (640, 10)

recipe = trunked(step_law, lambda k: k.params.matmul // 2, "N / 2 tokens, a tenth of the shortest horizon")


def sweep() -> Sweep:
    """Eight sizes, 45x apart; horizons from under- to over-trained while the corpus lasts; three seeds at some."""
    sizes = {shape: shape_of(recipe, shape)[0].params.matmul for shape in SIZES}
    horizons = [(shape, ratio * n) for shape, n in sizes.items() for ratio in RATIOS if ratio * n <= TOKENS]
    again = [(shape, 20 * n, seed) for shape, n in sizes.items() for seed in SEEDS if shape <= SEEDED]
    cells = tuple(recipe(shape, tokens, **given()) for shape, tokens in horizons)
    seeds = tuple(recipe(shape, tokens, seed=seed, **given()) for shape, tokens, seed in again)
    return Sweep(
        name="ladder_1gpu",
        cells=(*cells, *seeds),
        description=f"{len(SIZES)} sizes x {len(RATIOS)} horizons, {len(seeds)} more seeds; {cost((*cells, *seeds))}",
        why="a law of (N, D) from under- to over-trained, one trunk a size, with the noise between seeds",
    )
