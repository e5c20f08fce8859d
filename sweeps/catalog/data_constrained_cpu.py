"""data_constrained in minutes of a CPU: small models that repeat few bytes of the standard library's source."""

from scaling.recipes.recipes import small
from sweeps.catalog.data_constrained import bounded_warmup, grid_of_epochs
from sweeps.catalog.fineweb import with_shared_trunk
from sweeps.grids import Sweep

SIZES = ((16, 2), (32, 3), (64, 4))
UNIQUE_TOKENS = (65_536, 262_144)
EPOCHS = (1, 2, 4, 8, 16)
MAX_TOKENS = 1 << 21


def sweep() -> Sweep:
    """Three sizes, two amounts of text, and one to 16 epochs of at most two million tokens in all."""
    cells = grid_of_epochs(
        with_shared_trunk(small, *bounded_warmup(min(UNIQUE_TOKENS))), SIZES, UNIQUE_TOKENS, EPOCHS, MAX_TOKENS
    )
    return Sweep(
        name="data_constrained_cpu",
        cells=cells,
        description=f"{len(SIZES)} sizes x {len(UNIQUE_TOKENS)} corpora x up to {len(EPOCHS)} epochs, on bytes",
        why="to see what repeats do to a law, and that the pipeline counts them, before a GPU is asked",
    )
