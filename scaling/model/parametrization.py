"""Standard, muP and CompleteP: how initial weights, learning rates and multipliers follow width and depth.

With m_N = width / base_width and m_L = depth / base_depth, powers (a, b) stand for the factor m_N**a * m_L**b, on top
of what decoder.py and optimizer.py do under "standard". "standard" uses no powers, "mup" those of m_N, "completep"
both. All three are equal at the base size, where a learning rate is tuned; muP and CompleteP carry it to larger sizes.
The powers of each weight stand in the table of weights.py, those of the multipliers below. Their sources:

- Width: Yang et al. 2022 (Tensor Programs V), table 8, Adam. The stored weights of the head have a standard deviation
  and a learning rate that do not follow width; the logits are divided by m_N.
- Depth: Dey et al. 2025 (CompleteP), table 1 with alpha = 1, and equation 40 for epsilon. Residual branches are divided
  by m_L; no initial weight follows depth.
- Decay: learning_rate * weight_decay stays that of the base, as in table 1 of Dey et al. and in the MuAdamW of
  Yang et al.
- Muon: once the entries of both updates have the same RMS (optimizer.py), an orthogonal update has a spectral norm that
  grows as sqrt(m_N) where Adam's grows as m_N. Updates of spectral norm sqrt(fan_out / fan_in) move features alike
  at all widths (Yang, Simon & Bernstein 2023, condition 1), hence m_N**-1/2.

Heads grow in number, not in width (recipes/derive.py), so the scale of attention stays 1 / sqrt(D). The 1 / D of table
8 is for heads that widen, whose base width no field names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from scaling.config.run_config import ModelConfig, OptimizerConfig
from scaling.model.weights import Powers, weight_kind

RESIDUAL_POWERS: Powers = (0, -1)  # of every residual branch
LOGIT_POWERS: Powers = (-1, 0)  # of the logits


@dataclass(frozen=True)
class Multipliers:
    """Factors of one weight's initial standard deviation, learning rate, weight decay and Adam's epsilon."""

    init: float
    learning_rate: float
    weight_decay: float
    epsilon: float


def power_factor(model: ModelConfig, powers: Powers) -> float:
    """m_N**a * m_L**b for powers (a, b); a power that the model's parametrization does not use counts as zero."""
    uses_width, uses_depth = {"standard": (0, 0), "mup": (1, 0), "completep": (1, 1)}[model.parametrization]
    m_N, m_L = model.width / model.base_width, model.depth / model.base_depth
    return m_N ** (uses_width * powers[0]) * m_L ** (uses_depth * powers[1])


def multipliers(model: ModelConfig, path: str, optimizer: OptimizerConfig | None = None) -> Multipliers:
    """Those of the weight at `path` (weights.py); optimizer: AdamW when None. Raises LookupError for other paths."""
    kind = weight_kind(path)
    muon_powers = kind.muon if optimizer is not None and optimizer.kind == "muon" else None
    learning_rate = power_factor(model, muon_powers or kind.learning_rate)
    return Multipliers(
        init=power_factor(model, kind.init),
        learning_rate=learning_rate,
        weight_decay=1 / learning_rate,  # their product, the decay of a step, stays that of the base size
        epsilon=power_factor(model, kind.epsilon),
    )


def residual_multiplier(model: ModelConfig) -> float:
    """The factor of every residual branch."""
    return power_factor(model, RESIDUAL_POWERS)


def logit_multiplier(model: ModelConfig) -> float:
    """The factor of the logits."""
    return power_factor(model, LOGIT_POWERS)


def simplest_equivalent(model: ModelConfig) -> ModelConfig:
    """The same model under the first of standard, muP and CompleteP that gives it equal numbers.

    At the base depth CompleteP equals muP, and at the base width muP equals standard.
    """
    if model.parametrization == "completep" and model.depth == model.base_depth:
        model = replace(model, parametrization="mup")
    if model.parametrization == "mup" and model.width == model.base_width:
        model = replace(model, parametrization="standard")
    return model


def scale(x: jax.Array, factor: float) -> jax.Array:
    """x * factor; x itself where factor is 1, so that a model without multipliers compiles to the standard program."""
    return x if factor == 1 else x * factor
