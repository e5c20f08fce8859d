"""A sweep that trains in seconds, for tests and for a first look; its losses mean nothing."""

from scaling.config.run_config import RunConfig
from scaling.recipes import recipes
from sweeps.grids import Sweep, grid, overlay

SIZES = ((8, 1), (16, 1))  # (width, depth)
HORIZONS = (2_048, 4_096, 8_192, 16_384)  # tokens
SETTINGS = {
    "data.sequence_length": 64,
    "data.batch_sequences": 8,
    "schedule.warmup_tokens": 512,
    "schedule.cooldown_fraction": 0.25,
    "measure.validation_tokens": 4_096,
    "measure.log_every_steps": 1,
    "measure.checkpoint_every_tokens": 2_048,
}


def sweep() -> Sweep:
    """Two sizes with a trunk and three branches each: enough cells for every verb."""
    return Sweep(
        name="smoke",
        cells=grid(_run, SIZES, HORIZONS),
        description=f"{len(SIZES)} sizes x {len(HORIZONS)} horizons of a few steps",
        why="to see every verb work",
    )


def _run(size: tuple[int, int], tokens: int) -> RunConfig:
    """One cell. size: (width, depth)."""
    width, depth = size
    return overlay(recipes.small(size, tokens), SETTINGS | {"name": f"w{width}-d{depth}-{tokens // 1024}k"})
