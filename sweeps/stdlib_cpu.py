"""The demo's sweep: real text, a laptop's CPU, a few minutes."""

from scaling import recipe
from sweeps.grids import Sweep, grid

SIZES = ((16, 2), (24, 2), (32, 3), (48, 3), (64, 4))  # (width, depth): 1.1e4 to 2.2e5 params_matmul
HORIZONS = tuple((7 << 16) << doubling for doubling in range(4))  # tokens: .46 to 3.7 million


def sweep() -> Sweep:
    """Five sizes, 20x apart in parameters, each at four horizons, 8x apart in tokens; the last cell is the largest."""
    return Sweep(
        name="stdlib_cpu",
        cells=grid(recipe.small, SIZES, HORIZONS),
        description=f"{len(SIZES)} sizes x {len(HORIZONS)} horizons on the standard library's source, bytes",
        why="a law of real text from a laptop, checked on the largest run, which the fit does not see",
    )
