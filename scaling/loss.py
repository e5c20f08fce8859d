"""Cross-entropy in nats per token, z-loss, and bits per byte."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nats of each target, [B, T], and the log partition function of each position, [B, T]. All float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_z_BT - target_BT, log_z_BT


def training_loss(logits_BTV: jax.Array, targets_BT: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """(what is minimised, mean nats per token). The first adds z_loss * mean(log Z ** 2) (PaLM, section 5)."""
    nats_BT, log_z_BT = cross_entropy(logits_BTV, targets_BT)
    nats = jnp.mean(nats_BT)
    return nats + z_loss * jnp.mean(log_z_BT**2), nats


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """Nats summed over targets -> bits per byte of the text they stand for. Special tokens stand for no bytes."""
    return total_nats / math.log(2) / total_bytes
