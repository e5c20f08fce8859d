"""The rules of recipes: pure functions from a size and a number of tokens to one hyperparameter, each with its source.

params is params_matmul (scaling/accounting/counts.py), blocks the parameters of the blocks, tokens the training tokens.
"Ours" marks what no paper gives. recipes.py puts the rules together.
"""

from __future__ import annotations

import math

BATCH_EXPONENT = 0.383  # Bergsma et al. 2025 (Power Lines): optimal batch against tokens, whatever the size

TABLE_A9 = (
    *((512, 8), (576, 9), (640, 10), (640, 13), (640, 16), (768, 12), (768, 15), (768, 18), (896, 14), (896, 16)),
    *((896, 18), (1024, 16), (1024, 18), (1024, 20), (1280, 18), (1280, 21), (1280, 24), (1408, 18), (1408, 21)),
    *((1408, 24), (1536, 19), (1536, 22), (1536, 25), (1792, 20), (1792, 23), (1792, 26), (2048, 22), (2048, 25)),
    *((2048, 28), (2176, 28), (2304, 28), (2304, 32), (2560, 30), (2560, 34), (2816, 36), (3072, 36), (3584, 40)),
    *((4096, 42), (4608, 47), (5120, 49), (8192, 80)),
)
"""(width, depth) of Hoffmann et al. 2022, appendix I, most of its models; the last is Chinchilla itself, table 4."""


def small_shapes() -> tuple[tuple[int, int], ...]:
    """Two layers and one more for each 32 of width, in widths of whole heads of 16 (ours)."""
    return tuple((width, 2 + width // 32) for width in (8, 16, 24, *range(32, 513, 16)))


def hoffmann_shapes() -> tuple[tuple[int, int], ...]:
    """Hoffmann et al. 2022, appendix I; below its smallest shape, 64 of width for each layer as that one has (ours)."""
    return (*((64 * depth, depth) for depth in range(2, 8)), *TABLE_A9)


def nanochat_shapes() -> tuple[tuple[int, int], ...]:
    """64 of width for each layer, rounded up to whole heads of 128 (nanochat, scripts/base_train.py)."""
    return tuple((128 * math.ceil(64 * depth / 128), depth) for depth in range(2, 65))


def fewest_heads(width: int, widest: int) -> int:
    """The smallest number of heads whose width is even and at most `widest`.

    Fewer heads mean less softmax, which is slow on a CPU; but a single head costs .05 nats at width 32, and a number of
    heads that jumps from one size to the next bends the ladder of losses (LOG.md).
    """
    fitting = (heads for heads in range(1, width + 1) if width % (2 * heads) == 0 and width // heads <= widest)
    return next(fitting, width)


def hoffmann_heads(width: int) -> int:
    """Heads of width 64, and of 128 from a model width of 1280 (Hoffmann et al. 2022, appendix I)."""
    return fewest_heads(width, 64 if width < 1280 else 128)


def nearest_power_of_two(sequences: float) -> int:
    """The nearest power of two in ratio, 1 or more, so that a batch divides over devices."""
    return 2 ** max(round(math.log2(sequences)), 0)


def scale_batch(tokens: float, anchor: tuple[float, float]) -> float:
    """The batch for a number of training tokens: a power law of exponent BATCH_EXPONENT through `anchor`, (tokens,
    batch). In the unit of that batch."""
    return anchor[1] * (tokens / anchor[0]) ** BATCH_EXPONENT


def step_law_batch(tokens: float) -> float:
    """Tokens of a batch: .58 D^.571 (Li et al. 2025, Step Law, equation 1)."""
    return 0.58 * tokens**0.571


def step_law_learning_rate(blocks: float, tokens: float) -> float:
    """Peak learning rate: 1.79 N^-.713 D^.307 (Li et al. 2025, Step Law, equation 1), N of the blocks, as in their
    table."""
    return 1.79 * blocks**-0.713 * tokens**0.307


def scale_learning_rate(params: float, anchor: tuple[float, float], exponent: float) -> float:
    """Peak learning rate, to four digits: a power law in params_matmul through `anchor`, (params, rate)."""
    return float(f"{anchor[1] * (params / anchor[0]) ** exponent:.4g}")


def power_law_exponent(first: tuple[float, float], second: tuple[float, float]) -> float:
    """The exponent of the power law through two points (x, y)."""
    return math.log(second[1] / first[1]) / math.log(second[0] / first[0])


def porian_warmup(params: float, tokens: float, batch_tokens: int, min_steps: int = 0) -> int:
    """Warm-up in tokens: as many as parameters (Porian et al. 2024, section 3.3: a fixed long warm-up bends the law of
    small models), but at least min_steps steps and at most a tenth of the training tokens (both ours)."""
    return min(max(int(params), min_steps * batch_tokens), int(0.1 * tokens))


def warmup_of_steps(steps: int, tokens: float, batch_tokens: int) -> int:
    """Warm-up in tokens: that many steps, but at most a tenth of the training tokens (the cap is ours)."""
    return min(steps * batch_tokens, int(0.1 * tokens))


def nanochat_learning_rate(width: int, batch_tokens: float, anchor_batch: float) -> float:
    """Muon's learning rate. nanochat has .02 sqrt(B / B of d12) for orthogonal updates; our updates are larger by
    .2 sqrt(width), which gives them the RMS of AdamW's (Liu et al. 2025, equation 4), so the rate is smaller by
    that."""
    return float(f"{0.02 * (batch_tokens / anchor_batch) ** 0.5 / (0.2 * width**0.5):.4g}")


def timescale_weight_decay(learning_rate: float, steps: float, product: float) -> float:
    """The weight decay for which learning_rate * weight_decay * steps is `product`: AdamW then averages weights over
    the same fraction of every run (Wang & Aitchison 2024)."""
    return float(f"{product / (learning_rate * steps):.4g}")
