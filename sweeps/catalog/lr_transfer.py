"""Tests whether the best learning rate stays the same when width and depth grow, under three parametrizations.

On the bytes of the standard library's source, which any machine prepares in seconds. 1.1e15 FLOPs: minutes of a GPU
that trains many runs in one program, hours of two CPU cores.
"""

from collections.abc import Sequence

from scaling.accounting.counts import train_flops
from scaling.config.run_config import RunConfig
from scaling.recipes.recipes import small
from sweeps.grids import Axis, Sweep, apply, axis, overlay, zipped

BASE = (32, 2)  # (width, depth) at which the three parametrizations are the same model
WIDTHS = (64, 128, 256)  # at the base depth: 8x
DEPTHS = (4, 8)  # at the base width: 4x
WIDEST_AND_DEEPEST = (256, 8)
RATES = tuple(2.0**power for power in range(-10, -3))
TOKENS, BATCH = 1 << 20, 16
ABBREVIATIONS = {"standard": "sp", "mup": "mup", "completep": "cp"}  # of parametrizations, in the names of cells


def shapes() -> tuple[tuple[str, int, int], ...]:
    """(parametrization, width, depth) of each model. Only those that differ from others: muP scales with width alone,
    and CompleteP equals muP at the base depth."""
    wider = [(kind, width, BASE[1]) for width in WIDTHS for kind in ("standard", "mup")]
    deeper = [(kind, BASE[0], depth) for depth in DEPTHS for kind in ("standard", "completep")]
    return (
        ("standard", *BASE),
        *wider,
        *deeper,
        *((kind, *WIDEST_AND_DEEPEST) for kind in ("standard", "mup", "completep")),
    )


def base_config(kind: str, width: int, depth: int) -> RunConfig:
    """The config of one model; tokens, batch size and warm-up are the same for all."""
    return overlay(
        small((width, depth), TOKENS),
        {
            "model.parametrization": kind,
            "model.base_width": BASE[0],
            "model.base_depth": BASE[1],
            "data.batch_sequences": BATCH,
            "schedule.warmup_tokens": TOKENS // 10,
        },
    )


def learning_rate_axis(kind: str, width: int, depth: int) -> Axis:
    """The learning rates of one model, with a name for each cell."""
    return zipped(
        axis("optimizer.learning_rate", *RATES),
        axis("name", *(f"{ABBREVIATIONS[kind]}-w{width}-d{depth}-{rate:.2g}" for rate in RATES)),
        axis("learning_rate_from", *("scan: the rates of lr_transfer" for _ in RATES)),
    )


def total_flops(cells: Sequence[RunConfig]) -> float:
    """Training FLOPs of all cells: exact, with causal attention halved."""
    return sum(train_flops(c.model, c.data.sequence_length, c.tokens, "exact_causal") for c in cells)


def sweep() -> Sweep:
    """Fourteen models, each at seven learning rates 64x apart."""
    cells = tuple(cell for shape in shapes() for cell in apply(base_config(*shape), learning_rate_axis(*shape)))
    return Sweep(
        name="lr_transfer",
        cells=cells,
        description=f"{len(shapes())} models x {len(RATES)} learning rates, {total_flops(cells):.2g} FLOPs",
        why="a learning rate that transfers is tuned once; one that does not bends every law",
    )
