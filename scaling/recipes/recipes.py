"""The recipes: each gives every hyperparameter of a run from one dial, and each rule names its source.

    recipes.chinchilla("124M")                        a size: parameters, a published name, d12, w64xd4, (width, depth)
    recipes.chinchilla(flops=1e19)                    a compute budget
    recipes.small((48, 3), 1_000_000, corpus="zipf")  a shape, and its number of tokens
    explain(recipes.chinchilla, "124M")               number by number (derive.py), as `scaling cost` prints it

In the rules N is params_matmul, D training tokens, B tokens of a batch.
"""

from __future__ import annotations

from scaling.accounting.counts import count_params
from scaling.config.run_config import ModelConfig, OptimizerConfig, ScheduleConfig
from scaling.recipes import rules
from scaling.recipes.derive import Recipe, Rule

SEQUENCE_LENGTH = 128

SMALL_RATE = (1e4, 1.1e-2)  # (params_matmul, learning rate)
SMALL_EXPONENT = -0.33
SMALL_BATCH = (3e6, 4.0)  # (tokens, sequences)
SMALL_WARMUP_STEPS = 20

small = Recipe(
    name="small",
    source="ours, for 1e3 to 1e7 parameters on bytes: scans in LOG.md, 2026-11-22; not for sizes out of that range",
    shapes=rules.small_shapes,
    shapes_source="ours: Llama's block (Touvron et al. 2023), queries and keys normalised (Wortsman et al. 2023)",
    heads=lambda width: rules.fewest_heads(width, 16),
    horizon=Rule(lambda k: 20 * k.params.matmul, "20 N", "Hoffmann et al. 2022, table 3"),
    batch=Rule(
        lambda k: rules.nearest_power_of_two(rules.scale_batch(k.tokens, SMALL_BATCH)),
        "4 sequences (D / 3e6)^.383, a power of two",
        "exponent of Bergsma et al. 2025 (Power Lines); the point is ours, LOG.md, 2026-11-22",
    ),
    learning_rate=Rule(
        lambda k: rules.scale_learning_rate(k.params.matmul, SMALL_RATE, SMALL_EXPONENT),
        ".011 (N / 1e4)^-.33",
        "ours, a scan at two sizes, LOG.md, 2026-11-22; a power law in N as Porian et al. 2024",
    ),
    weight_decay=Rule(lambda k: 0.1, ".1", "Brown et al. 2020, appendix B"),
    warmup=Rule(
        lambda k: rules.porian_warmup(k.params.matmul, k.tokens, k.batch_tokens, SMALL_WARMUP_STEPS),
        "N tokens, 20 steps or more, a tenth of the budget at most",
        "Porian et al. 2024, section 3.3; bounds ours",
    ),
    final_fraction=Rule(lambda k: 0.0, "0", "ours, LOG.md, 2026-11-22"),
    schedule=ScheduleConfig(kind="wsd", cooldown_fraction=0.5),
    vocab_size=259,
    sequence_length=SEQUENCE_LENGTH,
    compute="float32",
    validation_tokens=131_072,
)

GPT_3_RATE = (125e6, 6e-4)  # Brown et al. 2020, table 2.1
CHINCHILLA_RATE = (70e9, 1e-4)  # Hoffmann et al. 2022, table 4
CHINCHILLA_BATCH = (1.4e12, 3e6)  # the same: (tokens, tokens of a batch after its doubling)

chinchilla = Recipe(
    name="chinchilla",
    source="Hoffmann et al. 2022 (Chinchilla); where it gives no rule, the source named beside the number",
    shapes=rules.hoffmann_shapes,
    shapes_source="Hoffmann et al. 2022, appendix I, with SwiGLU and RoPE (Touvron et al. 2023), untied head",
    heads=rules.hoffmann_heads,
    horizon=Rule(lambda k: 20 * k.params.matmul, "20 N", "Hoffmann et al. 2022, table 3"),
    batch=Rule(
        lambda k: rules.nearest_power_of_two(rules.scale_batch(k.tokens, CHINCHILLA_BATCH) / k.sequence_length),
        "3e6 tokens (D / 1.4e12)^.383, a power of two of sequences",
        "through Hoffmann et al. 2022, table 4, by the exponent of Bergsma et al. 2025 (Power Lines)",
    ),
    learning_rate=Rule(
        lambda k: rules.scale_learning_rate(
            k.params.matmul, GPT_3_RATE, rules.power_law_exponent(GPT_3_RATE, CHINCHILLA_RATE)
        ),
        "6e-4 (N / 125e6)^-.283",
        "ours: through Brown et al. 2020, table 2.1 (125M), and Hoffmann et al. 2022, table 4 (70B)",
    ),
    weight_decay=Rule(lambda k: 0.1, ".1", "Brown et al. 2020, appendix B"),
    warmup=Rule(
        lambda k: rules.porian_warmup(k.params.matmul, k.tokens, k.batch_tokens),
        "N tokens, a tenth of the budget at most",
        "Porian et al. 2024, section 3.3; bound ours",
    ),
    final_fraction=Rule(lambda k: 0.1, ".1", "Hoffmann et al. 2022, appendix B"),
    schedule=ScheduleConfig(kind="cosine"),
)

STEP_LAW = "Li et al. 2025 (Step Law), equation 1"
STEP_LAW_HIGHEST = 2.0**-7  # the highest rate that was best at any (N, D) of their public table

step_law = Recipe(
    name="step_law",
    source="Li et al. 2025 (Step Law)",
    shapes=rules.hoffmann_shapes,
    shapes_source=chinchilla.shapes_source,
    heads=rules.hoffmann_heads,
    horizon=chinchilla.horizon,
    batch=Rule(
        lambda k: rules.nearest_power_of_two(rules.step_law_batch(k.tokens) / k.sequence_length),
        ".58 D^.571 tokens, a power of two of sequences",
        STEP_LAW,
    ),
    learning_rate=Rule(
        lambda k: min(float(f"{rules.step_law_learning_rate(k.params.blocks, k.tokens):.4g}"), STEP_LAW_HIGHEST),
        "1.79 N^-.713 D^.307, N of the blocks; 2^-7, the best in their runs, at most",
        STEP_LAW,
    ),
    weight_decay=Rule(lambda k: 0.1, ".1", "Li et al. 2025, experimental settings"),
    warmup=Rule(
        lambda k: rules.warmup_of_steps(2000, k.tokens, k.batch_tokens),
        "2000 steps, a tenth of the budget at most",
        "Li et al. 2025, experimental settings; bound ours",
    ),
    final_fraction=Rule(
        lambda k: min(float(f"{1e-5 / k.learning_rate:.4g}"), 1.0),
        "down to 1e-5, whatever the peak",
        "Li et al. 2025: a final rate that follows the peak biases the law",
    ),
    schedule=ScheduleConfig(kind="cosine"),
)

NANOCHAT = "nanochat (Karpathy 2025), scripts/base_train.py"
D12 = ModelConfig(vocab_size=32_768, width=768, depth=12, heads=6, qk_norm=True)
D12_TOKENS = 12 * count_params(D12).matmul
D12_BATCH = 2**19  # tokens: measured there
D12_PRODUCT = 0.02 * 0.28 * D12_TOKENS / D12_BATCH / 4
"""learning_rate * weight_decay * steps of nanochat's d12, divided by 4: by 2 because its decay falls to 0 with a
cosine, and by 2 because its decay is cautious (only where update and weight agree in sign); ours does neither."""

nanochat = Recipe(
    name="nanochat",
    source=f"{NANOCHAT}; ours: one rate for all weights, SwiGLU, full attention",
    shapes=rules.nanochat_shapes,
    shapes_source=NANOCHAT,
    heads=lambda width: rules.fewest_heads(width, 128),
    horizon=Rule(lambda k: 12 * k.params.matmul, "12 N, N of blocks and head", NANOCHAT),
    batch=Rule(
        lambda k: rules.nearest_power_of_two(rules.scale_batch(k.tokens, (D12_TOKENS, D12_BATCH)) / k.sequence_length),
        "2^19 tokens (D / D of d12)^.383, a power of two",
        f"{NANOCHAT}, after Bergsma et al. 2025 (Power Lines)",
    ),
    learning_rate=Rule(
        lambda k: rules.nanochat_learning_rate(k.model.width, k.batch_tokens, D12_BATCH),
        ".02 (B / B of d12)^.5 / (.2 width^.5)",
        f"{NANOCHAT}; in units of AdamW's update, Liu et al. 2025, equation 4",
    ),
    weight_decay=Rule(
        lambda k: rules.timescale_weight_decay(k.learning_rate, k.tokens / k.batch_tokens, D12_PRODUCT),
        f"rate x decay x steps = {D12_PRODUCT:.3g}",
        f"{NANOCHAT}, after Wang & Aitchison 2024; a quarter of d12's, whose decay is cautious and falls (ours)",
    ),
    warmup=Rule(
        lambda k: rules.warmup_of_steps(40, k.tokens, k.batch_tokens),
        "40 steps, a tenth of the budget at most",
        NANOCHAT,
    ),
    final_fraction=Rule(lambda k: 0.05, ".05", NANOCHAT),
    schedule=ScheduleConfig(kind="wsd", cooldown_fraction=0.65),
    optimizer=OptimizerConfig(kind="muon"),
    vocab_size=32_768,
)

RECIPES = (small, chinchilla, step_law, nanochat)
