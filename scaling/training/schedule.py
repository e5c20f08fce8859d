"""The learning-rate schedule: warm-up, then cosine decay, or a stable phase and linear decay, as a function of tokens.

Learning rate and weight decay are arguments of the compiled step, not constants inside it: runs that differ only in
budget, schedule, learning rate or decay share one compiled program.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flax import struct

from scaling.config.run_config import OptimizerConfig, RunConfig, ScheduleConfig


@struct.dataclass
class Rates:
    """Inputs of a compiled step beside its batch: float32 scalars, or [E] for the members of a population.

    learning_rate: of this step, schedule included. weight_decay: decoupled; the step multiplies it by learning_rate.
    """

    learning_rate: Any
    weight_decay: Any


def learning_rate(tokens: float, optimizer: OptimizerConfig, schedule: ScheduleConfig, budget: int) -> float:
    """Learning rate after `tokens` of `budget` tokens: linear warm-up, then cosine decay or stable and linear decay."""
    peak = optimizer.learning_rate
    if tokens < schedule.warmup_tokens:
        return peak * tokens / schedule.warmup_tokens
    start = schedule.warmup_tokens
    if schedule.kind == "wsd":
        start = max(start, round(budget * (1 - schedule.cooldown_fraction)))
    progress = min(max((tokens - start) / max(budget - start, 1), 0.0), 1.0)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)


def step_learning_rate(step: int, config: RunConfig) -> float:
    """Learning rate of step `step` (from 0), taken at the middle of its tokens, so that no step has a rate of zero."""
    batch_tokens = config.data.batch_tokens
    budget = config.steps * batch_tokens
    return learning_rate((step + 0.5) * batch_tokens, config.optimizer, config.schedule, budget)


def step_rates(step: int, config: RunConfig) -> Rates:
    """Learning rate and weight decay of step `step` (from 0), float32."""
    return Rates(np.float32(step_learning_rate(step, config)), np.float32(config.optimizer.weight_decay))
