"""One dial, every hyperparameter: each rule is a function beside its source.

`small` serves models of 1e3 to 1e7 parameters on text bytes. Its constants are below, in one place; they were chosen
for that range by the scans in LOG.md (2026-11-22) and are not to be carried out of it.
"""

from __future__ import annotations

import math

from scaling.accounting import params
from scaling.config import DataConfig, MeasureConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

LEARNING_RATE_AT = (1e4, 1.1e-2)  # (params_matmul, learning rate)
LEARNING_RATE_EXPONENT = -0.33
BATCH_SEQUENCES_AT = (3e6, 4.0)  # (tokens, sequences)
BATCH_EXPONENT = 0.383
SEQUENCE_LENGTH = 128
WEIGHT_DECAY = 0.1
WARMUP_TOKENS_PER_PARAM = 1.0
WARMUP_STEPS_AT_LEAST = 20
COOLDOWN_FRACTION = 0.5
WARMUP_FRACTION_AT_MOST = 0.1
VALIDATION_TOKENS = 131_072
WIDEST_HEAD = 16


def small(size: tuple[int, int], tokens: int, *, corpus: str = "stdlib", seed: int = 0) -> RunConfig:
    """The run of a small model. size: (width, depth). tokens: budget, floored to whole batches.

    Raises InputError when the size has no even head width or the budget is less than a batch.
    """
    width, depth = size
    shape = model(width, depth)
    count = params(shape).matmul
    data = DataConfig(corpus=corpus, sequence_length=SEQUENCE_LENGTH, batch_sequences=batch_sequences(tokens))
    budget = max(tokens // data.batch_tokens, 1) * data.batch_tokens
    return RunConfig(
        model=shape,
        data=data,
        optimizer=OptimizerConfig(learning_rate=learning_rate(count), weight_decay=WEIGHT_DECAY),
        schedule=ScheduleConfig(
            kind="wsd",
            warmup_tokens=warmup_tokens(count, data.batch_tokens, budget),
            cooldown_fraction=COOLDOWN_FRACTION,
        ),
        measure=MeasureConfig(validation_tokens=VALIDATION_TOKENS),
        tokens=budget,
        seed=seed,
        name=f"w{width}-d{depth}-{budget / 1e6:.3g}M",
    )


def model(width: int, depth: int) -> ModelConfig:
    """Llama's shape (Touvron et al. 2023): SwiGLU of 8/3 width, heads as wide as they divide, 16 at most; queries and
    keys normalised, which widens the range of good learning rates (Wortsman et al. 2023)."""
    return ModelConfig(width=width, depth=depth, heads=heads(width), qk_norm=True)


def heads(width: int) -> int:
    """The fewest heads of even width, WIDEST_HEAD or less. Fewer heads mean less softmax, which a CPU pays for; but one
    head alone costs .05 nats at 32 wide, and a number of heads that jumps puts a kink into the ladder (LOG.md)."""
    fitting = (h for h in range(1, width + 1) if width % (2 * h) == 0 and width // h <= WIDEST_HEAD)
    return next(fitting, width)


def batch_sequences(tokens: int) -> int:
    """Sequences a step: grows with the budget to the power that Bergsma et al. 2025 (Power Lines) measured, to the
    nearest power of two, so that it divides over devices."""
    at, sequences = BATCH_SEQUENCES_AT
    return 2 ** max(round(math.log2(sequences * (tokens / at) ** BATCH_EXPONENT)), 0)


def learning_rate(count: int) -> float:
    """Peak learning rate: a power law in params_matmul, as Porian et al. 2024 tune it per size."""
    at, rate = LEARNING_RATE_AT
    return float(f"{rate * (count / at) ** LEARNING_RATE_EXPONENT:.4g}")


def warmup_tokens(count: int, batch_tokens: int, tokens: int) -> int:
    """As many tokens as parameters (Porian et al. 2024: a fixed long warm-up bends the law of small
    models), no fewer than some steps, and no more than a fraction of the budget."""
    wanted = max(int(WARMUP_TOKENS_PER_PARAM * count), WARMUP_STEPS_AT_LEAST * batch_tokens)
    return min(wanted, int(WARMUP_FRACTION_AT_MOST * tokens))
