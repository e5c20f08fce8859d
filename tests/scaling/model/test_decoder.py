from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scaling.config.run_config import ModelConfig
from scaling.model import decoder
from scaling.model.decoder import Block, Decoder, Linear, RMSNorm, apply_rope, fused_linear, gated_silu
from scaling.model.loss import training_loss

pytestmark = pytest.mark.usefixtures("unoptimized_programs")
CONFIG = ModelConfig(vocab_size=17, width=16, depth=3, heads=4, kv_heads=2)
TOKENS_BT = np.random.default_rng(0).integers(0, 17, (2, 12)).astype(np.int32)


logits = jax.jit(decoder.logits, static_argnums=0)


@functools.cache
def init(config: ModelConfig, shape: tuple[int, int] = (2, 12), dtype: str = "float32") -> tuple[Decoder, Any]:
    model = Decoder(config, dtype=jnp.dtype(dtype))
    return model, jax.jit(model.init)(jax.random.key(0), np.zeros(shape, np.int32))["params"]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_causal_by_gradient(qk_norm: bool) -> None:
    """The output at position t depends on the input at t and before, and on none after it."""
    config = dataclasses.replace(CONFIG, qk_norm=qk_norm, vocab_size=12)
    model, params = init(config, (1, 12))

    def outputs(embedding_VM: jax.Array) -> jax.Array:
        """Token t stands at position t alone, so a gradient by row of the table is one by position."""
        return logits(model, params | {"embedding": embedding_VM}, np.arange(12)[None])[0].sum(axis=-1)

    reach_TS = np.abs(jax.jit(jax.jacobian(outputs))(params["embedding"])).sum(axis=-1)
    assert np.all(np.triu(reach_TS, 1) == 0)
    assert np.all(reach_TS[np.tril_indices(12)] > 0)


def test_scan_equals_unrolled_equals_a_plain_loop() -> None:
    model, params = init(dataclasses.replace(CONFIG, unroll=1))
    expected = logits(model, params, TOKENS_BT)
    unrolled = logits(Decoder(dataclasses.replace(CONFIG, unroll=3)), params, TOKENS_BT)
    np.testing.assert_allclose(unrolled, expected, atol=1e-6)

    @jax.jit
    def plain(params: Any) -> jax.Array:
        x_BTM = params["embedding"][TOKENS_BT]
        for layer in range(CONFIG.depth):
            weights = jax.tree.map(lambda stacked, layer=layer: stacked[layer], params["blocks"])
            x_BTM, _ = Block(CONFIG, "xla").apply({"params": weights}, x_BTM, None)
        x_BTM = RMSNorm(CONFIG.norm_epsilon).apply({"params": params["final_norm"]}, x_BTM)
        return x_BTM @ params["head"]["kernel"]

    np.testing.assert_allclose(plain(params), expected, atol=1e-5)


def test_layers_start_different() -> None:
    _, params = init(CONFIG)
    kernel_LMF = params["blocks"]["ff"]["gate"]["kernel"]
    assert np.abs(kernel_LMF[0] - kernel_LMF[1]).max() > 0.1


def test_grouped_queries_equal_repeated_keys() -> None:
    model, params = init(CONFIG)
    full = dataclasses.replace(CONFIG, kv_heads=4)
    repeated = jax.tree.map(lambda x: x, params)
    for name in ("k", "v"):
        kernel = params["blocks"]["attention"][name]["kernel"].reshape(3, 16, 2, 4)
        repeated["blocks"]["attention"][name]["kernel"] = jnp.repeat(kernel, 2, axis=2).reshape(3, 16, 16)
    np.testing.assert_allclose(logits(Decoder(full), repeated, TOKENS_BT), logits(model, params, TOKENS_BT), atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_starts_near_a_uniform_guess(tied: bool) -> None:
    config = ModelConfig(width=128, depth=2, heads=4, tied=tied)
    tokens_BS = np.random.default_rng(0).integers(0, 259, (4, 65)).astype(np.int32)
    model, params = init(config, (4, 64))
    _, nats = training_loss(logits(model, params, tokens_BS[:, :-1]), tokens_BS[:, 1:], 0.0)
    assert abs(float(nats) - math.log(259)) < (0.7 if tied else 0.05)


def test_packed_documents_do_not_see_each_other() -> None:
    """Segments hide the documents before; rotary positions count distance only, so that a shift is not seen."""
    model, params = init(CONFIG)
    segments_BT = np.repeat([[0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 2, 2]], 2, axis=1)
    packed = logits(model, params, TOKENS_BT, segments_BT)
    for row, segments_T in enumerate(segments_BT):
        for segment in range(3):
            where = segments_T == segment
            alone = logits(model, params, TOKENS_BT[row, where][None])[0]
            np.testing.assert_allclose(packed[row, where], alone, atol=1e-5)
    assert np.abs(packed - logits(model, params, TOKENS_BT))[:, -1].max() > 0.01


def test_the_gate_has_the_gradient_of_its_formula() -> None:
    x, y, cotangent = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32) * 3

    def plain(gate: jax.Array, up: jax.Array) -> jax.Array:
        return gate / (1 + jnp.exp(-gate)) * up

    def both(f: Callable[..., jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        out, pull = jax.vjp(f, x, y)
        return out, pull(cotangent)

    ours, theirs = jax.jit(lambda: (both(gated_silu), both(plain)))()
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_fused_linear_equals_separate_layers() -> None:
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x_NI: jax.Array) -> list[jax.Array]:
            a, b = Linear(3, name="a"), Linear(5, name="b")
            return [*fused_linear(x_NI, None, a, b), a(x_NI), b(x_NI)]

    x_NI = jax.random.normal(jax.random.key(0), (4, 6))
    (one, two, first, second), params = jax.jit(Both().init_with_output)(jax.random.key(1), x_NI)
    np.testing.assert_allclose(one, first, atol=1e-6)
    np.testing.assert_allclose(two, second, atol=1e-6)
    assert {k: v["kernel"].shape for k, v in params["params"].items()} == {"a": (6, 3), "b": (6, 5)}


def test_rope_makes_scores_depend_on_distance_alone() -> None:
    q_D, k_D = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    turned_q = apply_rope(jnp.tile(q_D, (1, 20, 1, 1)), 100.0)[0, :, 0]
    turned_k = apply_rope(jnp.tile(k_D, (1, 20, 1, 1)), 100.0)[0, :, 0]
    scores_TS = np.asarray(turned_q @ turned_k.T)
    for distance in (0, 3, 7):
        diagonal = np.diagonal(scores_TS, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert np.ptp(scores_TS[19]) > 0.1


def test_remat_saves_memory() -> None:
    def temporaries(remat: Literal["none", "full"]) -> int:
        config = ModelConfig(vocab_size=17, width=64, depth=8, heads=4, remat=remat)
        tokens_BT = jax.ShapeDtypeStruct((4, 128), jnp.int32)
        model = Decoder(config)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens_BT)["params"]
        gradient = jax.jit(jax.grad(lambda p, t: logits(model, p, t).sum()))
        return gradient.lower(params, tokens_BT).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.6 * temporaries("none")


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_recomputes_and_changes_no_gradient(remat: str) -> None:
    def gradient(config: ModelConfig) -> tuple[Any, str]:
        def objective(params: Any) -> jax.Array:
            return training_loss(logits(Decoder(config), params, TOKENS_BT), TOKENS_BT, 0.0)[0]

        return jax.jit(jax.grad(objective))(params), str(jax.make_jaxpr(jax.grad(objective))(params))

    plain_config = dataclasses.replace(CONFIG, unroll=1)
    _, params = init(plain_config)
    plain, plain_program = gradient(plain_config)
    saved, program = gradient(dataclasses.replace(plain_config, remat=remat))
    assert "remat" in program or "checkpoint" in program
    assert "remat" not in plain_program
    assert program.count("exp") > plain_program.count("exp"), "nothing is computed twice"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, saved)


def test_bfloat16_model_has_float32_weights_and_logits() -> None:
    model, params = init(CONFIG, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    program = str(jax.make_jaxpr(lambda p: logits(model, p, TOKENS_BT))(params))
    assert "bf16" in program
    low, high = logits(model, params, TOKENS_BT), logits(Decoder(CONFIG), params, TOKENS_BT)
    assert low.dtype == jnp.float32
    assert 0 < np.abs(low - high).max() < 0.1
    assert np.any(np.asarray(low) != np.asarray(low.astype(jnp.bfloat16), np.float32)), "logits were rounded"


def test_float32_products_have_highest_precision() -> None:
    model, params = init(CONFIG)
    program = str(jax.make_jaxpr(jax.grad(lambda p: logits(model, p, TOKENS_BT).sum()))(params))
    assert program.count("dot_general") == program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 10
