"""Causal attention. One kernel so far: XLA's own, on every platform; it is the reference for those to come."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Kernel = Literal["xla"]


def attend(q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array, *, kernel: Kernel = "xla") -> jax.Array:
    """Causal grouped-query attention. [B, T, H, D] in and out, in the dtype of q; softmax in float32.

    Query head h reads key-value head h // (H // K) (Ainslie et al. 2023).
    """
    del kernel
    B, T, H, D = q_BTHD.shape
    K = k_BTKD.shape[2]
    q_BTKGD = q_BTHD.reshape(B, T, K, H // K, D) * D**-0.5
    scores_BKGTS = jnp.einsum("BTKGD,BSKD->BKGTS", q_BTKGD, k_BTKD, preferred_element_type=jnp.float32)
    causal_TS = jnp.tril(jnp.ones((T, T), bool))
    weights_BKGTS = jax.nn.softmax(jnp.where(causal_TS, scores_BKGTS, -jnp.inf), axis=-1)
    out_BTKGD = jnp.einsum("BKGTS,BSKD->BTKGD", weights_BKGTS.astype(v_BTKD.dtype), v_BTKD)
    return out_BTKGD.reshape(B, T, H, D)
