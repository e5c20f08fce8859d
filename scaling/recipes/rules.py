"""Rules from a size and a budget to one number, each a pure function beside its paper.

params, blocks: numbers (params_matmul of accounting.py; those of the blocks alone). tokens: the budget. Rules that are
"ours" say what they pass through. recipe.py puts them together.

Not in the design's list of modules: it is the second concept that recipe.py held when there was more than one recipe.
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
    """Two layers and one more for each 32 of width: the demo's ladder, continued in whole heads of 16 (ours)."""
    return tuple((width, 2 + width // 32) for width in (8, 16, 24, *range(32, 513, 16)))


def hoffmann_shapes() -> tuple[tuple[int, int], ...]:
    """Hoffmann et al. 2022, appendix I; below its smallest, 64 of width a layer as its smallest have (ours)."""
    return (*((64 * depth, depth) for depth in range(2, 8)), *TABLE_A9)


def nanochat_shapes() -> tuple[tuple[int, int], ...]:
    """Depth is the dial: 64 of width a layer, up to a whole head of 128 (nanochat, scripts/base_train.py)."""
    return tuple((128 * math.ceil(64 * depth / 128), depth) for depth in range(2, 65))


def fewest_heads(width: int, widest: int) -> int:
    """The fewest heads of even width, `widest` or less. Fewer heads mean less softmax, which a CPU pays for; but one
    head alone costs .05 nats at 32 wide, and a number of heads that jumps puts a kink into the ladder (LOG.md)."""
    fitting = (h for h in range(1, width + 1) if width % (2 * h) == 0 and width // h <= widest)
    return next(fitting, width)


def hoffmann_heads(width: int) -> int:
    """Heads of 64, from a width of 1280 on of 128 (Hoffmann et al. 2022, appendix I)."""
    return fewest_heads(width, 64 if width < 1280 else 128)


def nearest_power_of_two(sequences: float) -> int:
    """The nearest power of two in ratio, 1 or more, so that a batch divides over devices."""
    return 2 ** max(round(math.log2(sequences)), 0)


def scale_batch(tokens: float, at: tuple[float, float]) -> float:
    """The batch of a budget, by Power Lines' exponent through `at`, (tokens, batch); in the unit of that batch."""
    return at[1] * (tokens / at[0]) ** BATCH_EXPONENT


def step_law_batch(tokens: float) -> float:
    """Tokens of a batch: .58 D^.571 (Li et al. 2025, Step Law, equation 1)."""
    return 0.58 * tokens**0.571


def step_law_learning_rate(blocks: float, tokens: float) -> float:
    """Peak learning rate: 1.79 N^-.713 D^.307, N of the blocks alone, as in their table (Li et al. 2025)."""
    return 1.79 * blocks**-0.713 * tokens**0.307


def scale_learning_rate(params: float, at: tuple[float, float], exponent: float) -> float:
    """Peak learning rate: a power law in params_matmul through `at`, (params, rate), to four digits."""
    return float(f"{at[1] * (params / at[0]) ** exponent:.4g}")


def power_law_exponent(one: tuple[float, float], other: tuple[float, float]) -> float:
    """That of the power law through two points."""
    return math.log(other[1] / one[1]) / math.log(other[0] / one[0])


def porian_warmup(params: float, tokens: float, batch_tokens: int, steps_at_least: int = 0) -> int:
    """As many tokens as parameters (Porian et al. 2024, section 3.3: a fixed long warm-up bends the law of small
    models), no fewer than some steps, and no more than a tenth of the budget (ours)."""
    return min(max(int(params), steps_at_least * batch_tokens), int(0.1 * tokens))


def warmup_of_steps(steps: int, tokens: float, batch_tokens: int) -> int:
    """That many steps, as tokens, and no more than a tenth of the budget (the cap is ours)."""
    return min(steps * batch_tokens, int(0.1 * tokens))


def nanochat_learning_rate(width: int, batch_tokens: float, batch_at: float) -> float:
    """.02 sqrt(B / B of d12) on orthogonal updates (nanochat). Here updates have the RMS of AdamW's, .2 sqrt(width)
    larger (Liu et al. 2025, equation 4), and the rate is as much smaller."""
    return float(f"{0.02 * (batch_tokens / batch_at) ** 0.5 / (0.2 * width**0.5):.4g}")


def timescale_weight_decay(learning_rate: float, steps: float, product: float) -> float:
    """The decay for which learning_rate * decay * steps is `product`: one averaging time in units of the run, whatever
    its size (Wang & Aitchison 2024)."""
    return float(f"{product / (learning_rate * steps):.4g}")
