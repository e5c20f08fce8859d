"""Measures the learning rates of stdlib_cpu: a scan at every size, at one horizon in the middle of its range.

    scaling sweep plan stdlib_rates && scaling sweep run stdlib_rates && scaling sweep collect stdlib_rates
    scaling rates out/stdlib_rates --out sweeps/catalog/stdlib_rates.json

The second command writes the file that stdlib_cpu reads.
"""

from itertools import chain

from sweeps.catalog.stdlib_cpu import HORIZONS, SIZES, shared_trunk_recipe
from sweeps.grids import Sweep, scan_learning_rates

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
HORIZON = HORIZONS[2]


def sweep() -> Sweep:
    """Five learning rates 16x apart at each size of stdlib_cpu."""
    return Sweep(
        name="stdlib_rates",
        cells=tuple(
            chain.from_iterable(scan_learning_rates(shared_trunk_recipe(size, HORIZON), FACTORS) for size in SIZES)
        ),
        description=f"{len(FACTORS)} learning rates x {len(SIZES)} sizes at {HORIZON:,} tokens",
        why="hyperparameters copied from one size to the others are why small laws fail: these are measured at each",
    )
