from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.attention import attend


def textbook(q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array) -> jax.Array:
    """Softmax attention with keys and values repeated for every query head, written as the papers write it."""
    groups = q_BTHD.shape[2] // k_BTKD.shape[2]
    k_BTHD, v_BTHD = jnp.repeat(k_BTKD, groups, axis=2), jnp.repeat(v_BTKD, groups, axis=2)
    scores = jnp.einsum("BTHD,BSHD->BHTS", q_BTHD, k_BTHD) / np.sqrt(q_BTHD.shape[-1])
    T = scores.shape[-1]
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf), axis=-1)
    return jnp.einsum("BHTS,BSHD->BTHD", weights, v_BTHD)


def qkv(heads: int, kv_heads: int, scale: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        scale * jax.random.normal(keys[0], (2, 10, heads, 8)),
        scale * jax.random.normal(keys[1], (2, 10, kv_heads, 8)),
        jax.random.normal(keys[2], (2, 10, kv_heads, 8)),
    )


@pytest.mark.parametrize(("heads", "kv_heads", "scale"), [(4, 4, 1.0), (4, 2, 30.0), (6, 1, 1.0)])
def test_equals_the_textbook_forward_and_backward(heads: int, kv_heads: int, scale: float) -> None:
    arguments = qkv(heads, kv_heads, scale)
    np.testing.assert_allclose(attend(*arguments), textbook(*arguments), atol=2e-5)
    cotangent = jax.random.normal(jax.random.key(1), arguments[0].shape)
    ours, theirs = (
        jax.jit(jax.grad(lambda q, k, v, f=f: (f(q, k, v) * cotangent).sum(), argnums=(0, 1, 2)))(*arguments)
        for f in (attend, textbook)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if scale > 1 else 2e-5)


def test_dtype_is_that_of_q_and_softmax_is_float32() -> None:
    low = [x.astype(jnp.bfloat16) for x in qkv(4, 2)]
    out = attend(*low)
    assert out.dtype == jnp.bfloat16
    exact = textbook(*(x.astype(jnp.float32) for x in low))
    assert np.abs(np.asarray(out, np.float32) - exact).max() < 0.03
