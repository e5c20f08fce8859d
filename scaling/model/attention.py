"""Causal attention with four kernels: XLA's reference, blocks for CPUs, cuDNN's flash attention, splash for TPUs.

A kernel that the config names either runs or raises. `choose_kernel` resolves "auto" once, before compilation, and the
run records its choice; no other kernel is tried later.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from scaling.config.run_config import ModelConfig
from scaling.errors import InputError
from scaling.model.cpu_attention import attend_in_blocks
from scaling.model.sharding import BATCH_AXES

Kernel = Literal["xla", "blocked", "cudnn", "splash"]

PLATFORMS: dict[Kernel, tuple[str, ...]] = {
    "xla": ("cpu", "gpu", "tpu"),
    "blocked": ("cpu", "gpu", "tpu"),
    "cudnn": ("gpu",),
    "splash": ("tpu",),
}
CUDNN_HEAD_WIDTH = 128
SPLASH_LANES = 128  # the width of a TPU's vector registers, of which a block is a multiple
SPLASH_BLOCK = 512


def choose_kernel(model: ModelConfig, dtype: jnp.dtype, sequence_length: int, platform: str) -> Kernel:
    """The kernel that a model runs with on a platform ("cpu", "gpu" or "tpu", that of the devices compiled for).

    "auto" takes blocks on CPUs, cuDNN on GPUs and splash on TPUs, and the XLA reference where these cannot run. Raises
    InputError when the config names a kernel that cannot run there.
    """
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    preferred: dict[str, Kernel] = {"cpu": "blocked", "gpu": "cudnn", "tpu": "splash"}
    if model.attention == "auto":
        fastest = preferred.get(platform, "xla")
        return "xla" if unsupported_reason(fastest, model, dtype, sequence_length, platform) else fastest
    if reason := unsupported_reason(model.attention, model, dtype, sequence_length, platform):
        usable = [k for k in get_args(Kernel) if not unsupported_reason(k, model, dtype, sequence_length, platform)]
        raise InputError(
            f"model.attention = {model.attention!r}: {reason}; here it must be auto or {' or '.join(usable)}"
        )
    return model.attention


def unsupported_reason(
    kernel: Kernel, model: ModelConfig, dtype: jnp.dtype, sequence_length: int, platform: str
) -> str:
    """Why a kernel cannot run, in words for an error; empty when it can."""
    if platform not in PLATFORMS[kernel]:
        return f"runs on {' and '.join(PLATFORMS[kernel])}, not on {platform}"
    D = model.head_width
    if kernel == "cudnn":
        if dtype != jnp.bfloat16:
            return f"cuDNN's flash attention takes bfloat16, and precision.compute is {dtype.name}"
        if D % 8 or D > CUDNN_HEAD_WIDTH:
            return f"cuDNN needs width/heads to be a multiple of 8 up to {CUDNN_HEAD_WIDTH}, and it is {D}"
        if sequence_length % 2:
            return f"cuDNN needs an even sequence_length, and it is {sequence_length}"
    if kernel == "splash":
        if sequence_length % SPLASH_LANES:
            return f"splash needs sequence_length to be a multiple of {SPLASH_LANES}, and it is {sequence_length}"
        if D % 64:
            return f"splash needs width/heads to be a multiple of 64, and it is {D}"
    return ""


def attend(
    q_BTHD: jax.Array,
    k_BTKD: jax.Array,
    v_BTKD: jax.Array,
    segments_BT: jax.Array | None = None,
    *,
    kernel: Kernel = "xla",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Causal grouped-query attention. [B, T, H, D] in and out, in the dtype of q; softmax in float32.

    Query head h reads key-value head h // (H // K) (Ainslie et al. 2023). segments_BT: integers; a position sees
    itself and those before it in its own segment only (packed documents; padding is one more segment). mesh: the mesh
    over which the arrays are sharded (sharding.py); kernels that the compiler cannot partition need it.
    """
    if kernel == "xla":
        return _reference_attention(q_BTHD, k_BTKD, v_BTKD, segments_BT)
    if kernel == "blocked":
        return attend_in_blocks(q_BTHD, k_BTKD, v_BTKD, segments_BT)
    run = _cudnn_attention if kernel == "cudnn" else splash_attention
    if mesh is None:
        return run(q_BTHD, k_BTKD, v_BTKD, segments_BT)
    # The compiler cannot partition these kernels: each device runs one on its own rows and heads.
    batch, heads = P(BATCH_AXES), P(BATCH_AXES, None, "tensor")
    specs = (heads, heads, heads, None if segments_BT is None else batch)
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)(
        q_BTHD, k_BTKD, v_BTKD, segments_BT
    )


def attend_cached(q_BTHD: jax.Array, k_BKSD: jax.Array, v_BKSD: jax.Array, cached_B: jax.Array) -> jax.Array:
    """Attention of T new queries over a cache of S keys and values, which holds the new ones already.

    [B, T, H, D] in and out, as in `attend`. cached_B: tokens that were in each row's cache before. Query t of row b
    sees the first cached_B[b] + t + 1 positions of the cache, whose arrays have the head axis before the position.
    """
    k_BSKD, v_BSKD = k_BKSD.transpose(0, 2, 1, 3), v_BKSD.transpose(0, 2, 1, 3)
    return _reference_attention(q_BTHD, k_BSKD, v_BSKD, None, cached_B)


def _reference_attention(
    q_BTHD: jax.Array,
    k_BTKD: jax.Array,
    v_BTKD: jax.Array,
    segments_BT: jax.Array | None,
    cached_B: jax.Array | None = None,
) -> jax.Array:
    """Attention in plain operations, for any platform.

    The query heads that share a key-value head are folded into rows, N = (H // K) * T, so that each group is one matrix
    product. Weights are normalised after the product with the values: D divisions a row in place of T.
    """
    B, T, H, D = q_BTHD.shape
    K = k_BTKD.shape[2]
    N = H // K * T
    # Row n of a group is query head n // T of that group at position n % T.
    q_BKND = (q_BTHD * D**-0.5).reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4).reshape(B, K, N, D)
    scores_BKNS = jnp.matmul(q_BKND, k_BTKD.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    if cached_B is None:
        query_position_N1, key_position_S = jnp.arange(N)[:, None] % T, jnp.arange(T)
        visible = key_position_S <= query_position_N1
    else:
        query_position_B1N1 = cached_B[:, None, None, None] + jnp.arange(N)[:, None] % T
        visible = jnp.arange(k_BTKD.shape[1]) <= query_position_B1N1
    if segments_BT is not None:
        visible &= jnp.tile(segments_BT[:, :, None] == segments_BT[:, None, :], (1, H // K, 1))[:, None]
    scores_BKNS = jnp.where(visible, scores_BKNS, -1e30)
    # Softmax is unchanged by a shift of its row, so the maximum only guards exp and needs no gradient.
    max_BKN1 = jax.lax.stop_gradient(scores_BKNS.max(axis=-1, keepdims=True))
    weights_BKNS = jnp.exp(scores_BKNS - max_BKN1)
    total_BKN1 = weights_BKNS.sum(axis=-1, keepdims=True)
    out_BKND = jnp.matmul(weights_BKNS.astype(v_BTKD.dtype), v_BTKD.transpose(0, 2, 1, 3)) / total_BKN1
    out_BTHD = out_BKND.reshape(B, K, H // K, T, D).transpose(0, 3, 1, 2, 4).reshape(B, T, H, D)
    return out_BTHD.astype(q_BTHD.dtype)


def _cudnn_attention(
    q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array, segments_BT: jax.Array | None
) -> jax.Array:
    """cuDNN's flash attention as JAX calls it; JAX raises where it cannot run. Segments become a mask."""
    same_segment_B1TS = (
        None if segments_BT is None else (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    )
    return jax.nn.dot_product_attention(
        q_BTHD, k_BTKD, v_BTKD, mask=same_segment_B1TS, is_causal=True, implementation="cudnn"
    )


def splash_attention(
    q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array, segments_BT: jax.Array | None, *, interpret: bool = False
) -> jax.Array:
    """The splash attention kernel that JAX ships for TPUs. interpret: run it slowly on any platform, for tests."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, T, H, D = q_BTHD.shape
    block = next(size for size in (SPLASH_BLOCK, 256, SPLASH_LANES) if T % size == 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * H)
    kernel = kernels.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret)

    def attend_sequence(
        q_HTD: jax.Array, k_KTD: jax.Array, v_KTD: jax.Array, segments_T: jax.Array | None
    ) -> jax.Array:
        ids = None if segments_T is None else kernels.SegmentIds(segments_T, segments_T)
        return cast(jax.Array, kernel(q_HTD, k_KTD, v_KTD, ids))

    q_BHTD, k_BKTD, v_BKTD = (x.transpose(0, 2, 1, 3) for x in (q_BTHD * D**-0.5, k_BTKD, v_BTKD))
    out_BHTD = jax.vmap(attend_sequence)(q_BHTD, k_BKTD, v_BKTD, segments_BT)
    return out_BHTD.transpose(0, 2, 1, 3).astype(q_BTHD.dtype)
