"""A ladder from ten million to half a billion parameters on one GPU, for a law of loss in params and tokens.

Each size has one trunk and a cooldown branch for every horizon: about 53 H200-hours at 40 % MFU, against 82 if each run
were trained alone. The corpus is that of sweeps/catalog/fineweb.py.
"""

from scaling.recipes.derive import resolve_size
from scaling.recipes.recipes import step_law
from sweeps.catalog.fineweb import CORPUS_TOKENS, corpus_arguments, describe_cost, with_shared_trunk
from sweeps.grids import Sweep

SIZES = ((256, 4), (320, 5), (384, 6), (512, 8), (640, 10), (768, 12), (1024, 16), (1280, 24))
TOKENS_PER_PARAM = (
    5,
    10,
    20,
    40,
    80,
    160,
)  # from a quarter of the ratio of Hoffmann et al. 2022 to eight times it
EXTRA_SEEDS = (1, 2)  # beside seed 0, at 20 tokens per parameter, for the noise that intervals need
LARGEST_WITH_SEEDS = (640, 10)  # larger shapes have seed 0 only

recipe = with_shared_trunk(step_law, lambda k: k.params.matmul // 2, "N / 2 tokens, a tenth of the shortest horizon")


def sweep() -> Sweep:
    """Eight sizes 45x apart, six horizons as far as the corpus lasts, and two more seeds of the smaller sizes."""
    sizes = {shape: resolve_size(recipe, shape)[0].params.matmul for shape in SIZES}
    horizons = [
        (shape, ratio * n) for shape, n in sizes.items() for ratio in TOKENS_PER_PARAM if ratio * n <= CORPUS_TOKENS
    ]
    again = [(shape, 20 * n, seed) for shape, n in sizes.items() for seed in EXTRA_SEEDS if shape <= LARGEST_WITH_SEEDS]
    cells = tuple(recipe(shape, tokens, **corpus_arguments()) for shape, tokens in horizons)
    seeds = tuple(recipe(shape, tokens, seed=seed, **corpus_arguments()) for shape, tokens, seed in again)
    return Sweep(
        name="ladder_1gpu",
        cells=(*cells, *seeds),
        description=(
            f"{len(SIZES)} sizes x {len(TOKENS_PER_PARAM)} horizons, {len(seeds)} more seeds; "
            f"{describe_cost((*cells, *seeds))}"
        ),
        why="a law of (N, D) from under- to over-trained, one trunk a size, with the noise between seeds",
    )
