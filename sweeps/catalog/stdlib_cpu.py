"""The sweep of the demo: real text in minutes of a laptop's CPU. A size has a trunk, and a branch for each horizon."""

from dataclasses import replace
from pathlib import Path

from scaling.config.run_config import ScheduleConfig
from scaling.recipes.derive import Rule, load_measured_rate
from scaling.recipes.recipes import small
from sweeps.grids import Sweep, grid

SIZES = ((16, 2), (24, 2), (32, 3), (48, 3), (56, 4), (64, 4))  # (width, depth): 1.1e4 to 2.2e5 params_matmul
HORIZONS = tuple(1024 * round(448 * 2 ** (half / 2)) for half in range(7))  # tokens: .46 to 3.7 million
BATCH = 4  # sequences

shared_trunk_recipe = replace(
    small,
    name="small, one trunk a size",
    batch=Rule(lambda k: BATCH, "4 sequences", "ours: horizons of one trunk share their batches; LOG.md, 2026-11-22"),
    warmup=Rule(
        lambda k: min(k.params.matmul, HORIZONS[0] // 10),
        "N tokens, a tenth of the shortest horizon at most",
        "Porian et al. 2024, section 3.3; bound ours",
    ),
    schedule=ScheduleConfig(kind="wsd", cooldown_fraction=0.2),
)

tuned_recipe = replace(
    shared_trunk_recipe, learning_rate=load_measured_rate(Path(__file__).with_name("stdlib_rates.json"))
)
"""With the best learning rates of the scans of sweeps/catalog/stdlib_rates.py."""


def sweep() -> Sweep:
    """Six sizes 20x apart in parameters, each at seven horizons 8x apart in tokens; the last cell is the largest."""
    return Sweep(
        name="stdlib_cpu",
        cells=grid(tuned_recipe, SIZES, HORIZONS),
        description=f"{len(SIZES)} sizes x {len(HORIZONS)} horizons on the standard library's source, bytes",
        why="a law of real text from a laptop, checked on the largest run, which the fit does not see",
    )
