"""Cross-entropy in nats per token, from logits and in chunks; z-loss; bits per byte.

The form that takes logits is the reference. The chunked form takes the input of the head and holds the float32 logits
of one chunk of positions at a time; it computes the gradient in the same pass over a chunk, so that no logits are
computed twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from scaling.model.matmul import matmul
from scaling.model.sharding import BATCH_AXES

CHUNK_BYTES = 256 * 2**20


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nats of each target and the log partition function log Z of each position, both float32 [B, T]."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_z_BT - target_BT, log_z_BT


def training_loss(logits_BTV: jax.Array, targets_BT: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """The objective and the mean nats per token. The objective adds z_loss * mean(log Z ** 2) to the nats
    (Chowdhery et al. 2022, PaLM, section 5)."""
    nats_BT, log_z_BT = cross_entropy(logits_BTV, targets_BT)
    nats = jnp.mean(nats_BT)
    return nats + z_loss * jnp.mean(log_z_BT**2), nats


def chunk_count(rows: int, sequence_length: int, vocab_size: int) -> int:
    """Into how many chunks to cut a sequence so that the float32 logits of `rows` chunks stay under CHUNK_BYTES.

    The smallest divisor of sequence_length that does it; sequence_length itself where one position has more.
    """
    at_least = min(math.ceil(4 * rows * sequence_length * vocab_size / CHUNK_BYTES), sequence_length)
    return next(c for c in range(at_least, sequence_length + 1) if sequence_length % c == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def chunked_training_loss(
    x_BTM: jax.Array, head_MV: jax.Array, targets_BT: jax.Array, z_loss: float, chunks: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `training_loss` of the logits x_BTM @ head_MV, of which [B, T / chunks, V] exist in float32 at a time.

    chunks must divide T. mesh: the mesh over which rows and weights are sharded; each device then sums the head's
    gradient over its own rows first, and devices are summed once. Only the objective, the first result, has a gradient.
    """
    objective, nats = _chunked(x_BTM, head_MV, targets_BT, z_loss, chunks, mesh, False)
    return objective, nats


def _forward_with_gradient(
    x_BTM: jax.Array, head_MV: jax.Array, targets_BT: jax.Array, z_loss: float, chunks: int, mesh: Mesh | None
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """The forward pass, which computes the gradients of the objective too and saves them as residuals."""
    objective, nats, dx_BTM, dhead_MV = _chunked(x_BTM, head_MV, targets_BT, z_loss, chunks, mesh, True)
    return (objective, nats), (dx_BTM, dhead_MV)


def _scale_gradient(
    z_loss: float, chunks: int, mesh: Mesh | None, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None]:
    """The backward pass: the saved gradients times the cotangent of the objective, a scalar."""
    dx_BTM, dhead_MV = saved
    return (dx_BTM * cotangents[0].astype(dx_BTM.dtype), dhead_MV * cotangents[0].astype(dhead_MV.dtype), None)


chunked_training_loss.defvjp(_forward_with_gradient, _scale_gradient)


def _chunked(
    x_BTM: jax.Array,
    head_MV: jax.Array,
    targets_BT: jax.Array,
    z_loss: float,
    chunks: int,
    mesh: Mesh | None,
    differentiate: bool,
) -> tuple[jax.Array, ...]:
    """The objective, the nats and, with `differentiate`, the objective's gradients by x and by the head.

    Over a mesh each device has its rows and, where the vocabulary divides over the axis tensor, its part of it.
    """
    run = functools.partial(
        _local_sums, z_loss=z_loss, chunks=chunks, tokens=targets_BT.size, differentiate=differentiate
    )
    head_MV = head_MV.astype(x_BTM.dtype)
    if mesh is None:
        return run(x_BTM, head_MV, targets_BT, rows=(), columns=())
    columns = ("tensor",) if head_MV.shape[1] % mesh.shape["tensor"] == 0 else ()
    # The gradient of the head comes out sharded by its inputs over fsdp (see psum_scatter in _local_sums).
    gradients = (P(BATCH_AXES), P("fsdp", columns)) if differentiate else ()
    return jax.shard_map(
        functools.partial(run, rows=BATCH_AXES, columns=columns),
        mesh=mesh,
        in_specs=(P(BATCH_AXES), P(None, columns), P(BATCH_AXES)),
        out_specs=(P(), P(), *gradients),
        check_vma=False,
    )(x_BTM, head_MV, targets_BT)


def _local_sums(
    x_BTM: jax.Array,
    head_MV: jax.Array,
    targets_BT: jax.Array,
    *,
    z_loss: float,
    chunks: int,
    tokens: int,
    differentiate: bool,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
) -> tuple[jax.Array, ...]:
    """The sums of `_chunked` over this device's rows and columns of the vocabulary, then over devices.

    rows, columns: mesh axes over which rows and vocabulary are sharded, () where they are not. tokens: targets on all
    devices, by which the sums are divided.
    """
    V = head_MV.shape[1]
    first_id = jax.lax.axis_index(columns) * V if columns else 0  # of this device's part of the vocabulary

    def chunk_sums(x_BtM: jax.Array, targets_Bt: jax.Array) -> tuple[jax.Array, ...]:
        x_NM, target_N1 = x_BtM.reshape(-1, x_BtM.shape[-1]), targets_Bt.reshape(-1, 1)
        logits_NV = matmul(x_NM, head_MV)
        # Softmax over the whole vocabulary: maximum, sum and target logit are reduced over the devices that share it.
        max_N1 = _reduce_over(jax.lax.pmax, logits_NV.max(axis=-1, keepdims=True), columns)
        exp_NV = jnp.exp(logits_NV - max_N1)
        total_N1 = _reduce_over(jax.lax.psum, exp_NV.sum(axis=-1, keepdims=True), columns)
        is_target_NV = jnp.arange(V) == target_N1 - first_id
        target_logit_N1 = _reduce_over(
            jax.lax.psum, jnp.where(is_target_NV, logits_NV, 0.0).sum(-1, keepdims=True), columns
        )
        log_z_N1 = max_N1 + jnp.log(total_N1)
        nats = (log_z_N1 - target_logit_N1).sum()
        objective = nats + z_loss * (log_z_N1**2).sum()
        if not differentiate:
            return objective, nats
        # By logits: softmax * (1 + 2 z_loss log Z) - one_hot(target), divided by the number of targets.
        slope_NV = exp_NV * ((1 + 2 * z_loss * log_z_N1) / (total_N1 * tokens)) - jnp.where(
            is_target_NV, 1 / tokens, 0.0
        )
        slope_NV = slope_NV.astype(x_NM.dtype)
        return objective, nats, matmul(x_NM.T, slope_NV), matmul(slope_NV, head_MV.T).reshape(x_BtM.shape)

    objective, nats, *gradients = (
        chunk_sums(x_BTM, targets_BT) if chunks == 1 else _scan_chunks(chunk_sums, x_BTM, targets_BT, chunks)
    )
    sums = [_reduce_over(jax.lax.psum, s / tokens, rows) for s in (objective, nats)]
    if not differentiate:
        return tuple(sums)
    dhead_MV, dx_BTM = gradients
    if rows:
        # Each device needs only its own fsdp rows of the head's gradient: a reduce-scatter in place of an all-reduce.
        dhead_MV = jax.lax.psum_scatter(jax.lax.psum(dhead_MV, "data"), "fsdp", scatter_dimension=0, tiled=True)
    return *sums, _reduce_over(jax.lax.psum, dx_BTM, columns).astype(x_BTM.dtype), dhead_MV


def _reduce_over(
    reduce: Callable[[jax.Array, tuple[str, ...]], jax.Array], x: jax.Array, axes: tuple[str, ...]
) -> jax.Array:
    """x reduced over mesh axes; x itself where there are none."""
    return reduce(x, axes) if axes else x


def _scan_chunks(
    chunk_sums: Callable[..., tuple[jax.Array, ...]], x_BTM: jax.Array, targets_BT: jax.Array, chunks: int
) -> list:
    """`chunk_sums` over chunks of the sequence: its first three results summed, the last concatenated again."""

    def split(a: jax.Array) -> jax.Array:
        """[B, T, ...] -> [chunks, B, T / chunks, ...]."""
        return a.reshape(a.shape[0], chunks, a.shape[1] // chunks, *a.shape[2:]).swapaxes(0, 1)

    def add(sums: list, part: tuple[jax.Array, jax.Array]) -> tuple[list, Any]:
        results = chunk_sums(*part)
        return [a + b for a, b in zip(sums, results[:3], strict=True)], results[3:]

    parts = (split(x_BTM), split(targets_BT))
    shapes = jax.eval_shape(chunk_sums, *(p[0] for p in parts))
    sums, dx = jax.lax.scan(add, [jnp.zeros(s.shape, s.dtype) for s in shapes[:3]], parts)
    return [*sums, *(d.swapaxes(0, 1).reshape(x_BTM.shape) for d in dx)]


def chunked_nats(x_BTM: jax.Array, head_MV: jax.Array, targets_BT: jax.Array, chunks: int) -> jax.Array:
    """Nats of each target, [B, T], for the logits x_BTM @ head_MV, of which [B, T / chunks, V] exist at a time."""

    def chunk_nats(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        return cross_entropy(matmul(part[0], head_MV.astype(x_BTM.dtype)), part[1])[0]

    x_CBtM = x_BTM.reshape(x_BTM.shape[0], chunks, -1, x_BTM.shape[2]).swapaxes(0, 1)
    targets_CBt = targets_BT.reshape(len(targets_BT), chunks, -1).swapaxes(0, 1)
    return jax.lax.map(chunk_nats, (x_CBtM, targets_CBt)).swapaxes(0, 1).reshape(targets_BT.shape)


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """Bits per byte of text, from nats summed over its targets. Special tokens stand for no bytes."""
    return total_nats / math.log(2) / total_bytes
