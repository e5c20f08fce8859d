"""Few tokens, many times over, in minutes of a CPU: the standard library's bytes, as data_constrained for one GPU."""

from scaling.recipes.recipes import small
from sweeps.catalog.data_constrained import bounded_warmup, grid_of_epochs
from sweeps.catalog.fineweb import with_shared_trunk
from sweeps.grids import Sweep

SIZES = ((16, 2), (32, 3), (64, 4))
UNIQUE_TOKENS = (65_536, 262_144)
EPOCHS = (1, 2, 4, 8, 16)
MAX_TOKENS = 1 << 21


def sweep() -> Sweep:
    """Three sizes on two amounts of text, one to 16 epochs as long as two million tokens last."""
    cells = grid_of_epochs(
        with_shared_trunk(small, *bounded_warmup(min(UNIQUE_TOKENS))), SIZES, UNIQUE_TOKENS, EPOCHS, MAX_TOKENS
    )
    return Sweep(
        name="data_constrained_cpu",
        cells=cells,
        description=f"{len(SIZES)} sizes x {len(UNIQUE_TOKENS)} corpora x up to {len(EPOCHS)} epochs, on bytes",
        why="to see what repeats do to a law, and that the pipeline counts them, before a GPU is asked",
    )
