"""The decoder: Llama-shaped (Touvron et al. 2023), Flax Linen, layers stacked and scanned.

Weights are float32 and cast to `dtype` where they are used. Activations are folded to [N, M], N = B * T, around
every product: XLA on CPU differentiates products on [B, T, M] three to four times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scaling.attention import Kernel, attend
from scaling.config import ModelConfig

Constrain = Callable[[jax.Array], jax.Array]


def rope(x_BTHD: jax.Array, theta: float) -> jax.Array:
    """Rotary positions, half-split layout: dimension d pairs with d + D/2 (Su et al. 2021)."""
    D = x_BTHD.shape[-1]
    frequency_D = theta ** (-np.arange(0, D, 2) / D)
    angle_T1D = np.arange(x_BTHD.shape[1])[:, None, None] * frequency_D
    cos_T1D, sin_T1D = np.cos(angle_T1D).astype(np.float32), np.sin(angle_T1D).astype(np.float32)
    low, high = jnp.split(x_BTHD.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([low * cos_T1D - high * sin_T1D, high * cos_T1D + low * sin_T1D], axis=-1)
    return turned.astype(x_BTHD.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * inverse * scale).astype(x.dtype)


class Linear(nn.Module):
    """x_NI @ kernel_IO without bias. Initial standard deviation: gain / sqrt(I). out: dtype of the result."""

    features: int
    gain: float = 1.0
    out: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x_NI: jax.Array) -> jax.Array:
        fan_in = x_NI.shape[-1]
        init = nn.initializers.normal(self.gain * fan_in**-0.5)
        kernel_IO = self.param("kernel", init, (fan_in, self.features), jnp.float32)
        return jnp.matmul(x_NI, kernel_IO.astype(x_NI.dtype), preferred_element_type=self.out)


class Attention(nn.Module):
    config: ModelConfig
    kernel: Kernel

    @nn.compact
    def __call__(self, x_BTM: jax.Array) -> jax.Array:
        c = self.config
        B, T, M = x_BTM.shape
        H, K, D = c.heads, c.num_kv_heads, c.head_width
        x_NM = x_BTM.reshape(B * T, M)
        q_BTHD = Linear(H * D, name="q")(x_NM).reshape(B, T, H, D)
        k_BTKD = Linear(K * D, name="k")(x_NM).reshape(B, T, K, D)
        v_BTKD = Linear(K * D, name="v")(x_NM).reshape(B, T, K, D)
        if c.qk_norm:
            q_BTHD = RMSNorm(c.norm_epsilon, name="q_norm")(q_BTHD)
            k_BTKD = RMSNorm(c.norm_epsilon, name="k_norm")(k_BTKD)
        q_BTHD, k_BTKD = rope(q_BTHD, c.rope_theta), rope(k_BTKD, c.rope_theta)
        out_BTHD = attend(q_BTHD, k_BTKD, v_BTKD, kernel=self.kernel)
        return Linear(M, gain=(2 * c.depth) ** -0.5, name="o")(out_BTHD.reshape(B * T, H * D)).reshape(B, T, M)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTM: jax.Array) -> jax.Array:
        c = self.config
        x_NM = x_BTM.reshape(-1, c.width)
        hidden_NF = nn.silu(Linear(c.num_ff, name="gate")(x_NM)) * Linear(c.num_ff, name="up")(x_NM)
        return Linear(c.width, gain=(2 * c.depth) ** -0.5, name="down")(hidden_NF).reshape(x_BTM.shape)


class Block(nn.Module):
    config: ModelConfig
    kernel: Kernel
    constrain: Constrain

    @nn.compact
    def __call__(self, x_BTM: jax.Array, _: None) -> tuple[jax.Array, None]:
        c = self.config
        x_BTM = x_BTM + Attention(c, self.kernel, name="attention")(
            RMSNorm(c.norm_epsilon, name="attention_norm")(x_BTM)
        )
        x_BTM = x_BTM + SwiGLU(c, name="ff")(RMSNorm(c.norm_epsilon, name="ff_norm")(x_BTM))
        return self.constrain(x_BTM), None


class Decoder(nn.Module):
    """tokens_BT -> float32 logits_BTV. Block weights carry a leading layer axis L.

    dtype: of activations and products. constrain: applied to [B, T, M] activations after the embedding and after
    each block (sharding.py makes one; the identity otherwise).
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    kernel: Kernel = "xla"
    constrain: Constrain = staticmethod(lambda x: x)

    @nn.compact
    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        c = self.config
        B, T = tokens_BT.shape
        init = nn.initializers.normal(c.width**-0.5)
        embedding_VM = self.param("embedding", init, (c.vocab_size, c.width), jnp.float32)
        x_BTM = self.constrain(embedding_VM[tokens_BT].astype(self.dtype))
        x_BTM, _ = self._blocks()(x_BTM, None)
        x_NM = RMSNorm(c.norm_epsilon, name="final_norm")(x_BTM).reshape(B * T, c.width)
        if c.tied:
            logits_NV = jnp.matmul(x_NM, embedding_VM.T.astype(self.dtype), preferred_element_type=jnp.float32)
        else:
            head = Linear(c.vocab_size, gain=c.width**-0.5, out=jnp.dtype(jnp.float32), name="head")
            logits_NV = head(x_NM)
        return logits_NV.reshape(B, T, c.vocab_size)

    def _blocks(self) -> nn.Module:
        c = self.config
        flat = jax.default_backend() == "cpu" and c.remat == "none"
        unroll = min(c.unroll or (c.depth if flat else 1), c.depth)
        policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
        looped = unroll == 1 < c.depth
        block = Block if c.remat == "none" else nn.remat(Block, policy=policies[c.remat], prevent_cse=not looped)
        axes: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        scanned = nn.scan(block, **axes, length=c.depth, unroll=unroll)
        return scanned(c, self.kernel, self.constrain, name="blocks")


def logits(model: Decoder, params: Any, tokens_BT: jax.Array) -> jax.Array:
    """Float32 [B, T, V]. Products of float32 are float32 everywhere; GPUs and TPUs would round them by default."""
    precision = "highest" if model.dtype == jnp.float32 else "default"
    with jax.default_matmul_precision(precision):
        return cast(jax.Array, model.apply({"params": params}, tokens_BT))
