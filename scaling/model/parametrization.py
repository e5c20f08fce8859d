"""Standard, muP and CompleteP: one table, a row a kind of weight, of how each number follows width and depth.

With m_N = width / base_width and m_L = depth / base_depth, an entry (a, b) stands for m_N**a * m_L**b, beside what
model.py and optimizer.py do in "standard". "standard" reads none of it, "mup" the powers of m_N, "completep" both. So
all three are one at the base size, where a learning rate is tuned that the other two then carry to larger sizes.

Width: Yang et al. 2022 (Tensor Programs V), table 8, Adam: stored weights of the head have a standard deviation and a
learning rate that do not follow width, and the logits are divided by m_N. Depth: Dey et al. 2025 (CompleteP), table 1
with alpha = 1 and equation 40 for epsilon: residual branches are divided by m_L, no initial weight follows depth.
Decay: learning_rate * weight_decay stays that of the base, as in table 1 and in the MuAdamW of Yang et al.
Muon: an orthogonal update has a spectral norm sqrt(m_N) larger, not m_N as Adam's, once entries have the same RMS
(optimizer.py); updates of spectral norm sqrt(fan_out / fan_in) keep features moving alike (Yang, Simon & Bernstein
2023, condition 1), hence m_N**-1/2.

Heads are taken to grow in number and not in width, as in recipe.py: the scale of attention stays 1 / sqrt(D). The
1 / D of table 8 is for heads that widen, whose base width no field names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import jax

from scaling.config.run_config import ModelConfig, OptimizerConfig

Powers = tuple[float, float]
ONE: Powers = (0.0, 0.0)


@dataclass(frozen=True)
class Row:
    """One kind of weight: the paths it has, and the powers of (m_N, m_L) by which its numbers follow size.

    init: standard deviation. adamw, muon: learning rate under each optimizer, and inversely its decay; muon None: the
    weight stays with AdamW. epsilon: Adam's.
    """

    kind: str
    pattern: str
    init: Powers = ONE
    adamw: Powers = ONE
    muon: Powers | None = None
    epsilon: Powers = ONE


TABLE: tuple[Row, ...] = (
    Row("embedding", r"embedding", init=(0.5, 0), epsilon=(-1, 0)),
    Row("attention q, k, v", r"blocks/attention/[qkv]/kernel", adamw=(-1, 0), muon=(-0.5, 0), epsilon=(-1, -1)),
    Row("attention o", r"blocks/attention/o/kernel", (0, 0.5), adamw=(-1, 0), muon=(-0.5, 0), epsilon=(-1, -1)),
    Row("ff gate, up", r"blocks/ff/(gate|up)/kernel", adamw=(-1, 0), muon=(-0.5, 0), epsilon=(-1, -1)),
    Row("ff down", r"blocks/ff/down/kernel", init=(0, 0.5), adamw=(-1, 0), muon=(-0.5, 0), epsilon=(-1, -1)),
    Row("gains of blocks", r"blocks/(\w+/)?\w+_norm/scale", epsilon=(-1, -1)),
    Row("final gain", r"final_norm/scale", epsilon=(-1, 0)),
    Row("head", r"head/kernel", init=(1, 0), epsilon=(-1, 0)),
)
RESIDUAL_POWERS: Powers = (0, -1)
LOGIT_POWERS: Powers = (-1, 0)


@dataclass(frozen=True)
class Multipliers:
    """What one weight's initial deviation, learning rate, decay and epsilon are multiplied by."""

    init: float
    learning_rate: float
    weight_decay: float
    epsilon: float


def power_factor(model: ModelConfig, powers: Powers) -> float:
    """m_N**a * m_L**b, as far as the model's parametrisation follows width and depth."""
    width, depth = {"standard": (0, 0), "mup": (1, 0), "completep": (1, 1)}[model.parametrization]
    m_N, m_L = model.width / model.base_width, model.depth / model.base_depth
    return m_N ** (width * powers[0]) * m_L ** (depth * powers[1])


def row_of(path: str) -> Row:
    """The row of one parameter path, as sharding.py names it. Raises LookupError unless exactly one matches."""
    matches = [row for row in TABLE if re.fullmatch(row.pattern, path)]
    if len(matches) != 1:
        raise LookupError(f"{path}: {len(matches)} rows of the parametrisation match, one must")
    return matches[0]


def multipliers(model: ModelConfig, path: str, optimizer: OptimizerConfig | None = None) -> Multipliers:
    """Of one parameter path. optimizer: AdamW when not given. Raises LookupError when no row, or several, match."""
    row = row_of(path)
    by_muon = row.muon if optimizer is not None and optimizer.kind == "muon" else None
    rate = power_factor(model, by_muon or row.adamw)
    return Multipliers(power_factor(model, row.init), rate, 1 / rate, power_factor(model, row.epsilon))


def residual_multiplier(model: ModelConfig) -> float:
    """What every residual branch is multiplied by."""
    return power_factor(model, RESIDUAL_POWERS)


def logit_multiplier(model: ModelConfig) -> float:
    """What the logits are multiplied by."""
    return power_factor(model, LOGIT_POWERS)


def simplest_equivalent(model: ModelConfig) -> ModelConfig:
    """The same model under the first of standard, muP and CompleteP that gives it the same numbers: at the base depth
    CompleteP is muP, and at the base width muP is standard."""
    if model.parametrization == "completep" and model.depth == model.base_depth:
        model = replace(model, parametrization="mup")
    if model.parametrization == "mup" and model.width == model.base_width:
        model = replace(model, parametrization="standard")
    return model


def scale(x: jax.Array, number: float) -> jax.Array:
    """x * number, and x itself where that is 1: a program without multipliers is the standard one, bit for bit."""
    return x if number == 1 else x * number
