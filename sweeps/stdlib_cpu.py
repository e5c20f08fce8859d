"""The demo's sweep: real text, a laptop's CPU, a few minutes."""

from scaling import recipe
from sweeps.grids import Sweep, grid

SIZES = ((8, 3), (16, 3), (24, 3), (32, 3), (48, 3))  # (width, depth): 4.6e3 to 9.5e4 params_matmul
HORIZONS = (3 << 18, 3 << 19, 3 << 20, 3 << 21)  # tokens: 0.8 to 6.3 million


def sweep() -> Sweep:
    """Five sizes, 20x apart in parameters, each at four horizons, 8x apart in tokens; the last cell is the largest."""
    return Sweep(
        name="stdlib_cpu",
        cells=grid(recipe.small, SIZES, HORIZONS),
        description=f"{len(SIZES)} sizes x {len(HORIZONS)} horizons on the standard library's source, bytes",
        why="a law of real text from a laptop, checked on the largest run, which the fit does not see",
    )
