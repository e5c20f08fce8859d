from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.model.loss import (
    CHUNK_BYTES,
    bits_per_byte,
    chunk_count,
    chunked_nats,
    chunked_training_loss,
    cross_entropy,
    training_loss,
)

pytestmark = pytest.mark.usefixtures("unoptimized_programs")


def test_cross_entropy_by_hand() -> None:
    logits_BTV = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]], np.float32)) + 3.0
    nats_BT, log_z_BT = cross_entropy(jnp.asarray(logits_BTV), jnp.asarray([[0, 2]]))
    np.testing.assert_allclose(nats_BT, -np.log([[0.5, 0.7]]), rtol=1e-5)
    np.testing.assert_allclose(log_z_BT, [[3.0, 3.0]], rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    nats_BT, _ = cross_entropy(jnp.asarray([[[1e4, 0.0]]]), jnp.asarray([[1]]))
    assert float(nats_BT[0, 0]) == 1e4


def test_z_loss_adds_the_squared_log_partition_and_leaves_nats_alone() -> None:
    logits_BTV = jnp.asarray([[[2.0, 2.0]]])
    log_z = 2.0 + math.log(2)
    plain, nats = training_loss(logits_BTV, jnp.asarray([[0]]), 0.0)
    with_z, same = training_loss(logits_BTV, jnp.asarray([[0]]), 0.1)
    assert float(plain) == float(nats) == float(same)
    assert math.isclose(float(with_z - plain), 0.1 * log_z**2, rel_tol=1e-5)


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    assert math.isclose(bits_per_byte(1000 * math.log(256), 1000), 8.0)
    assert math.isclose(bits_per_byte(1000 * math.log(256), 4000), 2.0)


def chunk_case(V: int = 50) -> tuple[jax.Array, jax.Array, jax.Array]:
    draw = np.random.default_rng(0)
    x_BTM, head_MV = (jnp.asarray(draw.normal(size=size), jnp.float32) for size in ((4, 12, 8), (8, V)))
    return 3 * x_BTM, head_MV, jnp.asarray(draw.integers(0, V, (4, 12)))


@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_chunks_change_neither_loss_nor_gradient(chunks: int) -> None:
    x_BTM, head_MV, targets_BT = chunk_case()

    def plain(x_BTM: jax.Array, head_MV: jax.Array) -> tuple[jax.Array, jax.Array]:
        return training_loss(x_BTM @ head_MV, targets_BT, 1e-2)

    def chunked(x_BTM: jax.Array, head_MV: jax.Array) -> tuple[jax.Array, jax.Array]:
        return chunked_training_loss(x_BTM, head_MV, targets_BT, 1e-2, chunks)

    def gradient(f: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., tuple]:
        return jax.value_and_grad(lambda x, w: 2.5 * f(x, w)[0], argnums=(0, 1))

    @jax.jit
    def found(x_BTM: jax.Array, head_MV: jax.Array) -> list[Any]:
        losses = [(f(x_BTM, head_MV), gradient(f)(x_BTM, head_MV)) for f in (chunked, plain)]
        nats = (chunked_nats(x_BTM, head_MV, targets_BT, chunks), cross_entropy(x_BTM @ head_MV, targets_BT)[0])
        return [*losses, *nats]

    ours, theirs, nats_BT, expected_BT = found(x_BTM, head_MV)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nats_BT, expected_BT, rtol=1e-5, atol=1e-5)


def test_the_head_in_bfloat16_has_a_float32_gradient() -> None:
    """Accumulated over chunks and rows in float32; the products alone are rounded."""
    x_BTM, head_MV, targets_BT = chunk_case()
    low = x_BTM.astype(jnp.bfloat16)
    gradient = jax.grad(lambda x, w: chunked_training_loss(x, w, targets_BT, 0.0, 3)[0], argnums=(0, 1))
    dx, dhead = jax.jit(gradient)(low, head_MV)
    exact = jax.jit(jax.grad(lambda w: training_loss(x_BTM @ w, targets_BT, 0.0)[0]))(head_MV)
    assert (dx.dtype, dhead.dtype) == (jnp.bfloat16, jnp.float32)
    assert np.abs(dhead - exact).max() < 0.03 * np.abs(exact).max()


def test_float32_logits_of_one_chunk_exist_at_a_time() -> None:
    """Temporaries of the compiled gradient: the whole logits for the plain loss, a chunk's share for ours."""
    B, T, M, V = 4, 128, 16, 4096
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((B, T, M), jnp.float32), ((M, V), jnp.float32), ((B, T), int))]

    def temporaries(loss: Callable[..., tuple[jax.Array, jax.Array]]) -> int:
        gradient = jax.jit(jax.grad(lambda x, w, t: loss(x, w, t)[0], argnums=(0, 1)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole = 4 * B * T * V
    assert temporaries(lambda x, w, t: training_loss(x @ w, t, 1e-4)) > whole
    assert temporaries(lambda x, w, t: chunked_training_loss(x, w, t, 1e-4, 16)) < whole / 3


def test_chunks_are_the_fewest_that_keep_the_logits_small() -> None:
    assert chunk_count(16, 128, 259) == 1
    rows, T, V = 8, 2048, 128_256
    chunks = chunk_count(rows, T, V)
    assert 4 * rows * T * V / chunks <= CHUNK_BYTES < 4 * rows * T * V / (chunks / 2)
    assert T % chunks == 0
    assert chunk_count(10**6, 7, 10**6) == 7
