"""Causal attention. One kernel so far: XLA's own, on every platform; it is the reference for those to come."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Kernel = Literal["xla"]


def attend(q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array, *, kernel: Kernel = "xla") -> jax.Array:
    """Causal grouped-query attention. [B, T, H, D] in and out, in the dtype of q; softmax in float32.

    Query head h reads key-value head h // (H // K) (Ainslie et al. 2023). The query heads of a group are folded
    into rows, N = (H // K) * T, and weights are normalised after they have met the values: D divisions a row, not T.
    """
    del kernel
    B, T, H, D = q_BTHD.shape
    K = k_BTKD.shape[2]
    N = H // K * T
    q_BKND = (q_BTHD * D**-0.5).reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4).reshape(B, K, N, D)
    scores_BKNS = jnp.matmul(q_BKND, k_BTKD.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    row_N1, column_S = jnp.arange(N)[:, None] % T, jnp.arange(T)
    scores_BKNS = jnp.where(column_S <= row_N1, scores_BKNS, -1e30)
    top_BKN1 = jax.lax.stop_gradient(scores_BKNS.max(axis=-1, keepdims=True))
    weights_BKNS = jnp.exp(scores_BKNS - top_BKN1)
    total_BKN1 = weights_BKNS.sum(axis=-1, keepdims=True)
    out_BKND = jnp.matmul(weights_BKNS.astype(v_BTKD.dtype), v_BTKD.transpose(0, 2, 1, 3)) / total_BKN1
    out_BTHD = out_BKND.reshape(B, K, H // K, T, D).transpose(0, 3, 1, 2, 4).reshape(B, T, H, D)
    return out_BTHD.astype(q_BTHD.dtype)
