"""IsoFLOP curves on one GPU (Hoffmann et al. 2022, approach 2); about 72 H200-hours at 40 % MFU.

The corpus is that of sweeps/catalog/fineweb.py. The smallest sizes of the largest budget see it twice, as
`unique_tokens` of their rows shows.
"""

from scaling.recipes import recipes
from sweeps.catalog.fineweb import corpus_arguments, describe_cost
from sweeps.grids import Sweep, geometric, isoflop

BUDGETS = geometric(1e17, 1e19, 5)  # FLOPs


def sweep() -> Sweep:
    """Five budgets, seven sizes each, spanning 16x around the predicted optimum."""
    cells = isoflop(recipes.step_law, flops=BUDGETS, sizes=7, span=16, **corpus_arguments())
    return Sweep(
        name="isoflop_1gpu",
        cells=cells,
        description=f"{len(BUDGETS)} budgets from 1e17 to 1e19 FLOPs x 7 sizes; {describe_cost(cells)}",
        why="the compute-optimal size without a surface, to hold against the one that a law gives",
    )
