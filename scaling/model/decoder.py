"""The decoder-only transformer of every run: Llama's shape (Touvron et al. 2023) in Flax Linen.

Layers are stacked and scanned, so block weights have a leading layer axis L. Weights are float32 and are cast to
`dtype` where they are used. Activations are folded to [N, M], N = B * T, around every product: XLA on CPU
differentiates products on [B, T, M] three to four times slower.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.config.run_config import ModelConfig
from scaling.model.attention import Kernel, attend, attend_cached
from scaling.model.parametrization import logit_multiplier, multipliers, residual_multiplier, scale
from scaling.model.sharding import BATCH_AXES


class KVCache(NamedTuple):
    """One layer's keys and values of up to S tokens a row, so that a new token costs one position of work."""

    k_BKSD: jax.Array
    v_BKSD: jax.Array

    @property
    def length(self) -> int:
        """Tokens that a row has room for, S."""
        return self.k_BKSD.shape[-2]

    def extend(self, k_BTKD: jax.Array, v_BTKD: jax.Array, cached_B: jax.Array) -> KVCache:
        """The cache with T more tokens in each row, written from position cached_B[b] on."""

        def write(cached_KSD: jax.Array, new_TKD: jax.Array, cached: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(cached_KSD, new_TKD.transpose(1, 0, 2), (0, cached, 0))

        return KVCache(jax.vmap(write)(self.k_BKSD, k_BTKD, cached_B), jax.vmap(write)(self.v_BKSD, v_BTKD, cached_B))


def apply_rope(x_BTHD: jax.Array, theta: float, cached_B: jax.Array | None = None, length: int = 0) -> jax.Array:
    """Rotary position embedding, half-split layout: dimension d pairs with d + D/2 (Su et al. 2021). [B, T, H, D].

    Positions begin at 0; with cached_B row b begins at cached_B[b], and all positions are below `length`. A position
    has the same angles either way, to the last digit.
    """
    T, D = x_BTHD.shape[1], x_BTHD.shape[-1]
    # The angles are computed once, in float64 on the host; D here is the half D / 2.
    frequency_D = theta ** (-np.arange(0, D, 2) / D)
    angle_T1D = np.arange(T if cached_B is None else length)[:, None, None] * frequency_D
    cos_T1D, sin_T1D = np.cos(angle_T1D).astype(np.float32), np.sin(angle_T1D).astype(np.float32)
    if cached_B is not None:
        position_BT = cached_B[:, None] + jnp.arange(T)
        cos_T1D, sin_T1D = jnp.asarray(cos_T1D)[position_BT], jnp.asarray(sin_T1D)[position_BT]
    low, high = jnp.split(x_BTHD.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([low * cos_T1D - high * sin_T1D, high * cos_T1D + low * sin_T1D], axis=-1)
    return rotated.astype(x_BTHD.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32, in the dtype of x (Zhang & Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gain = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * inverse * gain).astype(x.dtype)


class Linear(nn.Module):
    """x_NI @ kernel_IO without bias. gain: the initial standard deviation is gain / sqrt(I). out: dtype of the result,
    that of x where None."""

    out_features: int
    gain: float = 1.0
    out: jnp.dtype | None = None

    def __call__(self, x_NI: jax.Array) -> jax.Array:
        kernel_IO = self.kernel(x_NI.shape[-1])
        return jnp.matmul(x_NI, kernel_IO.astype(x_NI.dtype), preferred_element_type=self.out)

    @nn.compact
    def kernel(self, fan_in: int) -> jax.Array:
        """The weights themselves, float32 [fan_in, out_features]."""
        init = nn.initializers.normal(self.gain * fan_in**-0.5)
        return self.param("kernel", init, (fan_in, self.out_features), jnp.float32)


def fused_linear(x_NI: jax.Array, mesh: Mesh | None, *layers: Linear) -> list[jax.Array]:
    """The output of each layer for the same x, computed as one product of the concatenated kernels.

    x is then read once, forward and backward. Where outputs are sharded over the mesh axis tensor, splitting the joint
    output would move it between devices, so each layer runs on its own there.
    """
    if mesh is not None and mesh.shape["tensor"] > 1:
        return [layer(x_NI) for layer in layers]
    kernel_IO = jnp.concatenate([layer.kernel(x_NI.shape[-1]) for layer in layers], axis=1)
    out_NO = jnp.matmul(x_NI, kernel_IO.astype(x_NI.dtype))
    return jnp.split(out_NO, np.cumsum([layer.out_features for layer in layers])[:-1], axis=1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped keys and values (Ainslie et al. 2023)."""

    config: ModelConfig
    kernel: Kernel
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self,
        x_BTM: jax.Array,
        segments_BT: jax.Array | None,
        cached_B: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """[B, T, M] -> [B, T, M]. With a cache, x_BTM follows the first cached_B[b] tokens of row b's cache, and the
        cache that is returned holds it too."""
        c = self.config
        B, T, M = x_BTM.shape
        H, K, D = c.heads, c.num_kv_heads, c.head_width
        x_NM = x_BTM.reshape(B * T, M)
        q, k, v = fused_linear(
            x_NM, self.mesh, Linear(H * D, name="q"), Linear(K * D, name="k"), Linear(K * D, name="v")
        )
        q_BTHD, k_BTKD, v_BTKD = q.reshape(B, T, H, D), k.reshape(B, T, K, D), v.reshape(B, T, K, D)
        if c.qk_norm:
            q_BTHD = RMSNorm(c.norm_epsilon, name="q_norm")(q_BTHD)
            k_BTKD = RMSNorm(c.norm_epsilon, name="k_norm")(k_BTKD)
        if cache is None or cached_B is None:
            q_BTHD, k_BTKD = apply_rope(q_BTHD, c.rope_theta), apply_rope(k_BTKD, c.rope_theta)
            out_BTHD = attend(q_BTHD, k_BTKD, v_BTKD, segments_BT, kernel=self.kernel, mesh=self.mesh)
        else:
            q_BTHD, k_BTKD = (apply_rope(x, c.rope_theta, cached_B, cache.length) for x in (q_BTHD, k_BTKD))
            cache = cache.extend(k_BTKD, v_BTKD, cached_B)
            out_BTHD = attend_cached(q_BTHD, *cache, cached_B)
        # The residual stream sums 2 * depth branches; their last kernels start smaller (Radford et al. 2019).
        gain = (2 * c.depth) ** -0.5 * multipliers(c, "blocks/attention/o/kernel").init
        return Linear(M, gain=gain, name="o")(out_BTHD.reshape(B * T, H * D)).reshape(B, T, M), cache


@jax.custom_vjp
def gated_silu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up. The backward pass stores only the two arguments and computes each gradient in one pass."""
    return nn.silu(gate) * up


def _gated_silu_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With s = sigmoid(gate): silu(gate) = gate * s, and its derivative is s * (1 + gate * (1 - s))."""
    gate, up = saved
    sigmoid = nn.sigmoid(gate)
    return gradient * up * sigmoid * (1 + gate * (1 - sigmoid)), gradient * gate * sigmoid


gated_silu.defvjp(lambda gate, up: (gated_silu(gate, up), (gate, up)), _gated_silu_backward)


class SwiGLU(nn.Module):
    """The feed-forward branch: down(silu(gate(x)) * up(x)), [B, T, M] in and out (Shazeer 2020)."""

    config: ModelConfig
    mesh: Mesh | None

    @nn.compact
    def __call__(self, x_BTM: jax.Array) -> jax.Array:
        c = self.config
        x_NM = x_BTM.reshape(-1, c.width)
        hidden_NF = gated_silu(
            *fused_linear(x_NM, self.mesh, Linear(c.num_ff, name="gate"), Linear(c.num_ff, name="up"))
        )
        gain = (2 * c.depth) ** -0.5 * multipliers(c, "blocks/ff/down/kernel").init
        return Linear(c.width, gain=gain, name="down")(hidden_NF).reshape(x_BTM.shape)


class Block(nn.Module):
    """One layer: attention and feed-forward, each with its norm before it and added to the residual stream."""

    config: ModelConfig
    kernel: Kernel
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x_BTM: jax.Array,
        segments_BT: jax.Array | None,
        cached_B: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        c = self.config
        attention, ff = Attention(c, self.kernel, self.mesh, name="attention"), SwiGLU(c, self.mesh, name="ff")
        normed_BTM = RMSNorm(c.norm_epsilon, name="attention_norm")(x_BTM)
        attended_BTM, cache = attention(normed_BTM, segments_BT, cached_B, cache)
        x_BTM = x_BTM + scale(attended_BTM, residual_multiplier(c))
        x_BTM = x_BTM + scale(ff(RMSNorm(c.norm_epsilon, name="ff_norm")(x_BTM)), residual_multiplier(c))
        return shard_batch(x_BTM, self.mesh), cache


def shard_batch(x_BTM: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Tells the compiler to shard activations as the batch is (sharding.py). Unchanged without a mesh."""
    if mesh is None:
        return x_BTM
    return jax.lax.with_sharding_constraint(x_BTM, NamedSharding(mesh, P(BATCH_AXES, None, None)))


class Decoder(nn.Module):
    """tokens_BT -> float32 logits_BTV.

    dtype: of activations and products. kernel: of attention, from `attention.choose_kernel`. mesh: the mesh over which
    weights and batch are sharded, None on one device. unroll: layers per step of the scan; where None, the config's
    number or 1. segments_BT: see `attention.attend`.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    kernel: Kernel = "xla"
    mesh: Mesh | None = None
    unroll: int | None = None

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.width**-0.5 * multipliers(c, "embedding").init)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.width), jnp.float32)
        self.blocks = self._blocks()
        self.final_norm = RMSNorm(c.norm_epsilon)
        if not c.tied:
            gain = c.width**-0.5 * multipliers(c, "head/kernel").init
            self.head = Linear(c.vocab_size, gain=gain, out=jnp.dtype(jnp.float32))

    def __call__(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        x_BTM = self.features(tokens_BT, segments_BT)
        x_NM = x_BTM.reshape(-1, self.config.width)
        if self.config.tied:
            logits_NV = jnp.matmul(x_NM, self.embedding.T.astype(self.dtype), preferred_element_type=jnp.float32)
        else:
            logits_NV = self.head(x_NM)
        return logits_NV.reshape(*tokens_BT.shape, self.config.vocab_size)

    def features(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        """The input of the head, [B, T, M] in `dtype`, with the multiplier of the logits."""
        x_BTM = shard_batch(self.embedding[tokens_BT].astype(self.dtype), self.mesh)
        x_BTM, _ = self.blocks(x_BTM, segments_BT)
        return scale(self.final_norm(x_BTM), logit_multiplier(self.config))

    def _blocks(self) -> nn.Module:
        """All layers as one module, scanned over the layer axis of the weights."""
        c = self.config
        unroll = min(self.unroll or c.unroll or 1, c.depth)
        policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
        # In a loop the compiler cannot merge the recomputation with the forward pass; in unrolled code it would.
        looped = unroll == 1 < c.depth
        block = Block if c.remat == "none" else nn.remat(Block, policy=policies[c.remat], prevent_cse=not looped)
        axes: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        scanned = nn.scan(block, **axes, in_axes=nn.broadcast, length=c.depth, unroll=unroll)
        return scanned(c, self.kernel, self.mesh)


def matmul_precision(model: Decoder) -> Any:
    """A context in which a float32 model's products are float32 everywhere: GPUs and TPUs round them by default."""
    return jax.default_matmul_precision("highest" if model.dtype == jnp.float32 else "default")


def logits(model: Decoder, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
    """Float32 logits [B, T, V] of the token after each position."""
    with matmul_precision(model):
        return cast(jax.Array, model.apply({"params": params}, tokens_BT, segments_BT))


def features(model: Decoder, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
    """The input of the head, [B, T, M] in the model's dtype, for a loss that computes logits in chunks."""
    with matmul_precision(model):
        return cast(jax.Array, model.apply({"params": params}, tokens_BT, segments_BT, method="features"))


def head_weights(model: Decoder, params: Any) -> jax.Array:
    """The weights that turn `features` into logits, float32 [M, V]; the transposed embedding where it is tied."""
    return params["embedding"].T if model.config.tied else params["head"]["kernel"]


def split_layers(params: Any) -> Any:
    """The same weights with a list of layers under "blocks" in place of stacked arrays, as `decode_step` takes them."""
    depth = len(params["blocks"]["attention_norm"]["scale"])
    return params | {"blocks": [jax.tree.map(operator.itemgetter(l), params["blocks"]) for l in range(depth)]}


def empty_cache(model: Decoder, rows: int, length: int) -> list[KVCache]:
    """One cache a layer for `decode_step`, with room for `length` tokens in each of `rows` rows."""
    c = model.config
    shape_BKSD = (rows, c.num_kv_heads, length, c.head_width)
    return [KVCache(jnp.zeros(shape_BKSD, model.dtype), jnp.zeros(shape_BKSD, model.dtype)) for _ in range(c.depth)]


def decode_step(
    model: Decoder, layered: Any, tokens_BT: jax.Array, cached_B: jax.Array, last_B: jax.Array, cache: Sequence[KVCache]
) -> tuple[jax.Array, list[KVCache]]:
    """Logits of the next token, and the cache with the tokens read.

    tokens_BT follow the first cached_B[b] tokens of row b's cache. The logits, float32 [B, V], are those of the token
    after position last_B[b] of tokens_BT. layered: weights from `split_layers`. Each layer's keys and values are arrays
    of their own, because a stacked cache would be copied at every step.
    """
    c = model.config
    block, caches = Block(c, "xla"), []
    with matmul_precision(model):
        x_BTM = layered["embedding"][tokens_BT].astype(model.dtype)
        for weights, layer_cache in zip(layered["blocks"], cache, strict=True):
            x_BTM, layer_cache = cast(Any, block.apply({"params": weights}, x_BTM, None, cached_B, layer_cache))
            caches.append(layer_cache)
        x_BM = x_BTM[jnp.arange(len(last_B)), last_B]
        x_BM = scale(
            cast(Any, RMSNorm(c.norm_epsilon).apply({"params": layered["final_norm"]}, x_BM)), logit_multiplier(c)
        )
        head_MV = head_weights(model, layered).astype(model.dtype)
        return jnp.matmul(x_BM, head_MV, preferred_element_type=jnp.float32), caches
