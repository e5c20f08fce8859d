"""Few tokens, many times over, in minutes of a CPU: the standard library's bytes, as data_constrained for one GPU."""

from scaling.recipes.recipes import small
from sweeps.catalog.data_constrained import repeated, warmup
from sweeps.catalog.fineweb import trunked
from sweeps.grids import Sweep

SIZES = ((16, 2), (32, 3), (64, 4))
UNIQUE = (65_536, 262_144)
EPOCHS = (1, 2, 4, 8, 16)
TOKENS = 1 << 21


def sweep() -> Sweep:
    """Three sizes on two amounts of text, one to 16 epochs as long as two million tokens last."""
    cells = repeated(trunked(small, *warmup(min(UNIQUE))), SIZES, UNIQUE, EPOCHS, TOKENS)
    return Sweep(
        name="data_constrained_cpu",
        cells=cells,
        description=f"{len(SIZES)} sizes x {len(UNIQUE)} corpora x up to {len(EPOCHS)} epochs, on bytes",
        why="to see what repeats do to a law, and that the pipeline counts them, before a GPU is asked",
    )
