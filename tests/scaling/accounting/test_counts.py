from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from scaling.accounting import counts
from scaling.config.run_config import ModelConfig
from scaling.model.decoder import Decoder, logits

SHAPES = [
    ModelConfig(width=64, depth=3, heads=4),
    ModelConfig(width=64, depth=2, heads=4, kv_heads=2, tied=True),
    ModelConfig(width=48, depth=5, heads=2, qk_norm=True, ff_width=100, vocab_size=1000),
]


def test_llama_2_70b() -> None:
    """The published parameter count of Llama 2 70B (Touvron et al. 2023)."""
    shape = ModelConfig(vocab_size=32_000, width=8192, depth=80, heads=64, kv_heads=8, ff_width=28_672)
    assert counts.count_params(shape).total == 68_976_648_192


def test_a_tied_head_still_multiplies() -> None:
    untied, tied = (counts.count_params(ModelConfig(tied=tied)) for tied in (False, True))
    assert untied.matmul == tied.matmul
    assert untied.total - tied.total == 259 * 128


@pytest.mark.parametrize("config", SHAPES)
def test_exact_is_within_two_percent_of_xla(config: ModelConfig) -> None:
    """Against cost_analysis of the unrolled model: XLA counts the body of a scan once."""
    B, T = 2, 256
    wide = dataclasses.replace(config, width=config.width * 8, ff_width=config.num_ff * 8, unroll=config.depth)
    model = Decoder(wide)
    tokens_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens_BT)["params"]

    def objective(params: object, tokens_BT: jax.Array) -> jax.Array:
        return logits(model, params, tokens_BT).sum()

    forward = jax.jit(lambda p, t: logits(model, p, t)).lower(params, tokens_BT).cost_analysis()
    ours = counts.forward_flops_per_token(wide, T, "exact") * B * T
    assert ours == pytest.approx(forward["flops"], rel=0.02)
    assert counts.forward_flops_per_token(wide, T, "6nd") * B * T < 0.98 * forward["flops"]

    backward = jax.jit(jax.grad(objective)).lower(params, tokens_BT).cost_analysis()
    assert counts.train_flops(wide, T, B * T, "exact") == pytest.approx(backward["flops"], rel=0.02)


def test_conventions_differ_by_attention_over_positions() -> None:
    config = ModelConfig(width=64, depth=3, heads=4)
    six, exact, causal = (counts.train_flops(config, 100, 7, c) for c in ("6nd", "exact", "exact_causal"))
    assert six == 6 * counts.count_params(config).matmul * 7
    assert exact - six == 3 * 2 * (2 * 64 * 100) * 3 * 7
    assert causal - six == (exact - six) / 2


def test_peaks_are_published_ones() -> None:
    assert counts.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert counts.peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert counts.peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert counts.peak_flops("TPU v5p", "bfloat16") == 459e12
    assert counts.peak_flops("cpu", "bfloat16") is None
    assert counts.peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
