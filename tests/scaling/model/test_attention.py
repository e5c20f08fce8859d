"""Every kernel against the textbook's formula, forward and backward; which kernel runs where."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import ModelConfig
from scaling.errors import InputError
from scaling.model.attention import Kernel, attend, choose_kernel, splash_attention
from scaling.model.cpu_attention import MIN_BLOCK_ROWS, rows_per_block

pytestmark = pytest.mark.usefixtures("unoptimized_programs")
Attend = Callable[..., jax.Array]
LONG = 2 * MIN_BLOCK_ROWS + 10


def textbook(
    q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """Softmax attention with keys and values repeated for every query head, written as the papers write it."""
    groups = q_BTHD.shape[2] // k_BTKD.shape[2]
    k_BTHD, v_BTHD = jnp.repeat(k_BTKD, groups, axis=2), jnp.repeat(v_BTKD, groups, axis=2)
    scores = jnp.einsum("BTHD,BSHD->BHTS", q_BTHD, k_BTHD) / np.sqrt(q_BTHD.shape[-1])
    T = scores.shape[-1]
    seen = jnp.tril(jnp.ones((T, T), bool))[None, None]
    if segments_BT is not None:
        seen = seen & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("BHTS,BSHD->BTHD", weights, v_BTHD)


def qkv(heads: int, kv_heads: int, T: int, D: int, scale: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    sizes = ((2, T, heads, D), (2, T, kv_heads, D), (2, T, kv_heads, D))
    q, k, v = (np.random.default_rng(i).normal(size=size).astype(np.float32) for i, size in enumerate(sizes))
    return jnp.asarray(scale * q), jnp.asarray(scale * k), jnp.asarray(v)


def packed(T: int) -> jax.Array:
    """Documents of random lengths in the first row; in the second one document and a third of padding."""
    starts = np.random.default_rng(0).random(T) < 4 / T
    return jnp.asarray(np.stack([np.cumsum(starts), np.where(np.arange(T) < T - T // 3, 1, 0)]))


def differences(
    kernels: Sequence[Attend], arguments: tuple[jax.Array, ...], segments_BT: jax.Array | None, dtype: Any
) -> list[list[float]]:
    """Largest differences of each kernel from the textbook in float32: of the result, and of the gradients by q, k, v.
    One program for all: the textbook's is compiled once."""
    cotangent = np.random.default_rng(3).normal(size=arguments[0].shape).astype(np.float32)

    def run(f: Attend, dtype: Any) -> list[jax.Array]:
        def call(*qkv: jax.Array) -> jax.Array:
            return f(*(x.astype(dtype) for x in qkv), segments_BT).astype(jnp.float32)

        out, pull = jax.vjp(call, *arguments)
        return [out, *pull(cotangent)]

    outputs, expected = jax.jit(lambda: ([run(kernel, dtype) for kernel in kernels], run(textbook, jnp.float32)))()
    assert all(np.isfinite(a).all() for ours in outputs for a in ours)
    return [[float(np.abs(a - b).max()) for a, b in zip(ours, expected, strict=True)] for ours in outputs]


PLAIN = [functools.partial(attend, kernel="xla"), functools.partial(attend, kernel="blocked")]


HEADS = [(4, 4), (4, 2), (3, 1)]


@pytest.mark.parametrize("segments", [False, True], ids=["causal", "packed"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_plain_kernels_equal_the_textbook(heads: int, kv_heads: int, segments: bool) -> None:
    arguments = qkv(heads, kv_heads, LONG, 8)
    errors = differences(PLAIN, arguments, packed(LONG) if segments else None, jnp.float32)
    assert max(map(max, errors)) < 2e-5, errors


def test_large_scores_neither_overflow_nor_lose_the_gradient() -> None:
    for errors in differences(PLAIN, qkv(4, 2, 10, 8, scale=30.0), None, jnp.float32):
        assert errors[0] < 2e-4, "float32 holds scores of thousands to no more"
        assert max(errors) < 2e-3, errors


@pytest.mark.parametrize("segments", [False, True], ids=["causal", "packed"])
def test_splash_equals_the_textbook(segments: bool) -> None:
    """JAX's kernel, its layout and masks as we call it, interpreted step by step."""
    arguments = qkv(2, 1, 256, 64)
    (errors,) = differences(
        [functools.partial(splash_attention, interpret=True)], arguments, packed(256) if segments else None, jnp.float32
    )
    assert max(errors) < 5e-5, errors


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU, and there is none")
@pytest.mark.parametrize("segments", [False, True], ids=["causal", "packed"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_cudnn_equals_the_textbook(heads: int, kv_heads: int, segments: bool) -> None:
    arguments = qkv(heads, kv_heads, 256, 64)
    (errors,) = differences(
        [functools.partial(attend, kernel="cudnn")], arguments, packed(256) if segments else None, jnp.bfloat16
    )
    assert errors[0] < 0.03
    assert max(errors) < 0.2, errors


def test_dtype_is_that_of_q_and_softmax_is_float32() -> None:
    arguments = qkv(4, 2, LONG, 8)
    low = [x.astype(jnp.bfloat16) for x in arguments]
    assert [jax.eval_shape(kernel, *low).dtype for kernel in PLAIN] == [jnp.bfloat16] * 2
    assert max(map(max, differences(PLAIN, tuple(low), None, jnp.bfloat16))) < 0.06


def test_blocks_leave_out_scores_that_the_mask_would_hide() -> None:
    """Products of the blocked kernel against those of the reference, counted by the compiler, forward and backward."""

    def flops(kernel: Kernel) -> float:
        def objective(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend(q, k, v, kernel=kernel).sum()

        compiled = jax.jit(jax.grad(objective, argnums=(0, 1, 2))).lower(*qkv(2, 2, 512, 64)).compile()
        return compiled.cost_analysis()["flops"]

    assert rows_per_block(512) == 64
    assert flops("blocked") < 0.7 * flops("xla")


def test_the_blocks_of_a_long_sequence_are_few() -> None:
    assert [rows_per_block(T) for T in (1, 128, 512, 4096)] == [64, 64, 64, 512]


LOW, HIGH = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
WIDE = ModelConfig(width=256, heads=4)


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "kernel"),
    [
        ("cpu", HIGH, 100, "blocked"),
        ("cuda", LOW, 128, "cudnn"),
        ("gpu", HIGH, 128, "xla"),
        ("gpu", LOW, 101, "xla"),
        ("tpu", LOW, 128, "splash"),
        ("tpu", HIGH, 100, "xla"),
        ("metal", HIGH, 128, "xla"),
    ],
)
def test_auto_takes_the_fastest_that_can_run(platform: str, dtype: jnp.dtype, length: int, kernel: str) -> None:
    assert choose_kernel(WIDE, dtype, length, platform) == kernel


@pytest.mark.parametrize(
    ("kernel", "platform", "dtype", "length", "heads", "words"),
    [
        ("splash", "cpu", HIGH, 128, 4, r"'splash'.*\btpu\b.*\bcpu\b.*\bxla\b.*\bblocked\b"),
        ("cudnn", "tpu", LOW, 128, 4, r"'cudnn'.*\bgpu\b.*\btpu\b.*\bsplash\b"),
        ("cudnn", "gpu", HIGH, 128, 4, r"'cudnn'.*bfloat16.*precision\.compute.*float32"),
        ("cudnn", "gpu", LOW, 128, 1, r"'cudnn'.*\b8\b.*\b128\b.*\b256\b"),
        ("cudnn", "gpu", LOW, 127, 4, r"'cudnn'.*sequence_length.*\b127\b"),
        ("splash", "tpu", LOW, 200, 4, r"'splash'.*sequence_length.*\b128\b.*\b200\b"),
        ("splash", "tpu", LOW, 128, 8, r"'splash'.*\b64\b.*\b32\b"),
    ],
)
def test_a_kernel_that_cannot_run_raises(
    kernel: Kernel, platform: str, dtype: jnp.dtype, length: int, heads: int, words: str
) -> None:
    model = ModelConfig(width=256, heads=heads, attention=kernel)
    with pytest.raises(InputError, match=rf"model\.attention.*{words}"):
        choose_kernel(model, dtype, length, platform)


def test_cudnn_on_a_cpu_raises() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU here")
    low = [x.astype(jnp.bfloat16) for x in qkv(4, 2, 128, 64)]
    with pytest.raises(RuntimeError, match="cuDNN"):
        attend(*low, kernel="cudnn")
