"""Cross-entropy in nats per token, plain and in chunks; z-loss; bits per byte.

The plain form takes logits and is the reference. The chunked form takes what the head multiplies and holds the float32
logits of one chunk at a time; its gradient is formed in the same pass over a chunk, so that nothing is computed twice.
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


def chunk_count(rows: int, sequence_length: int, vocab_size: int) -> int:
    """Chunks of the sequence so that the float32 logits of `rows` sequences stay under CHUNK_BYTES; a divisor of T."""
    wanted = min(math.ceil(4 * rows * sequence_length * vocab_size / CHUNK_BYTES), sequence_length)
    return next(c for c in range(wanted, sequence_length + 1) if sequence_length % c == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def chunked_training_loss(
    x_BTM: jax.Array, head_MV: jax.Array, targets_BT: jax.Array, z_loss: float, chunks: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `training_loss` of x_BTM @ head_MV, of which no more than [B, T / chunks, V] exists in float32 at a time.

    chunks must divide T. mesh: where rows and weights are sharded; each device then sums the head's gradient over its
    own rows before they are summed over devices. Only the first result has a gradient.
    """
    objective, nats = _chunked(x_BTM, head_MV, targets_BT, z_loss, chunks, mesh, False)
    return objective, nats


def _forward_with_gradient(
    x_BTM: jax.Array, head_MV: jax.Array, targets_BT: jax.Array, z_loss: float, chunks: int, mesh: Mesh | None
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    objective, nats, dx_BTM, dhead_MV = _chunked(x_BTM, head_MV, targets_BT, z_loss, chunks, mesh, True)
    return (objective, nats), (dx_BTM, dhead_MV)


def _scale_gradient(
    z_loss: float, chunks: int, mesh: Mesh | None, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None]:
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
    """The two losses and, if asked for, the gradients of the first. Over a mesh each device holds some rows and, where
    they divide, some of the vocabulary."""
    run = functools.partial(
        _local_sums, z_loss=z_loss, chunks=chunks, tokens=targets_BT.size, differentiate=differentiate
    )
    head_MV = head_MV.astype(x_BTM.dtype)
    if mesh is None:
        return run(x_BTM, head_MV, targets_BT, rows=(), columns=())
    columns = ("tensor",) if head_MV.shape[1] % mesh.shape["tensor"] == 0 else ()
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
    """Of this device's rows and columns, then summed over the mesh axes that hold the others."""
    V = head_MV.shape[1]
    first = jax.lax.axis_index(columns) * V if columns else 0

    def one(x_BtM: jax.Array, targets_Bt: jax.Array) -> tuple[jax.Array, ...]:
        x_NM, target_N1 = x_BtM.reshape(-1, x_BtM.shape[-1]), targets_Bt.reshape(-1, 1)
        logits_NV = matmul(x_NM, head_MV)
        top_N1 = _reduce_over(jax.lax.pmax, logits_NV.max(axis=-1, keepdims=True), columns)
        exp_NV = jnp.exp(logits_NV - top_N1)
        total_N1 = _reduce_over(jax.lax.psum, exp_NV.sum(axis=-1, keepdims=True), columns)
        hit_NV = jnp.arange(V) == target_N1 - first
        target_logit_N1 = _reduce_over(jax.lax.psum, jnp.where(hit_NV, logits_NV, 0.0).sum(-1, keepdims=True), columns)
        log_z_N1 = top_N1 + jnp.log(total_N1)
        nats = (log_z_N1 - target_logit_N1).sum()
        objective = nats + z_loss * (log_z_N1**2).sum()
        if not differentiate:
            return objective, nats
        slope_NV = exp_NV * ((1 + 2 * z_loss * log_z_N1) / (total_N1 * tokens)) - jnp.where(hit_NV, 1 / tokens, 0.0)
        slope_NV = slope_NV.astype(x_NM.dtype)
        return objective, nats, matmul(x_NM.T, slope_NV), matmul(slope_NV, head_MV.T).reshape(x_BtM.shape)

    objective, nats, *gradients = (
        one(x_BTM, targets_BT) if chunks == 1 else _scan_chunks(one, x_BTM, targets_BT, chunks)
    )
    sums = [_reduce_over(jax.lax.psum, s / tokens, rows) for s in (objective, nats)]
    if not differentiate:
        return tuple(sums)
    dhead_MV, dx_BTM = gradients
    if rows:
        dhead_MV = jax.lax.psum_scatter(jax.lax.psum(dhead_MV, "data"), "fsdp", scatter_dimension=0, tiled=True)
    return *sums, _reduce_over(jax.lax.psum, dx_BTM, columns).astype(x_BTM.dtype), dhead_MV


def _reduce_over(
    reduce: Callable[[jax.Array, tuple[str, ...]], jax.Array], x: jax.Array, axes: tuple[str, ...]
) -> jax.Array:
    return reduce(x, axes) if axes else x


def _scan_chunks(
    one: Callable[..., tuple[jax.Array, ...]], x_BTM: jax.Array, targets_BT: jax.Array, chunks: int
) -> list:
    """`one` over chunks of the sequence: its last result put together again, the others summed."""

    def split(a: jax.Array) -> jax.Array:
        return a.reshape(a.shape[0], chunks, a.shape[1] // chunks, *a.shape[2:]).swapaxes(0, 1)

    def add(sums: list, part: tuple[jax.Array, jax.Array]) -> tuple[list, Any]:
        found = one(*part)
        return [a + b for a, b in zip(sums, found[:3], strict=True)], found[3:]

    parts = (split(x_BTM), split(targets_BT))
    shapes = jax.eval_shape(one, *(p[0] for p in parts))
    sums, dx = jax.lax.scan(add, [jnp.zeros(s.shape, s.dtype) for s in shapes[:3]], parts)
    return [*sums, *(d.swapaxes(0, 1).reshape(x_BTM.shape) for d in dx)]


def chunked_nats(x_BTM: jax.Array, head_MV: jax.Array, targets_BT: jax.Array, chunks: int) -> jax.Array:
    """Nats of each target, [B, T], of logits x_BTM @ head_MV, [B, T / chunks, V] of which exist at a time."""

    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        return cross_entropy(matmul(part[0], head_MV.astype(x_BTM.dtype)), part[1])[0]

    x_CBtM = x_BTM.reshape(x_BTM.shape[0], chunks, -1, x_BTM.shape[2]).swapaxes(0, 1)
    targets_CBt = targets_BT.reshape(len(targets_BT), chunks, -1).swapaxes(0, 1)
    return jax.lax.map(one, (x_CBtM, targets_CBt)).swapaxes(0, 1).reshape(targets_BT.shape)


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """Nats summed over targets -> bits per byte of the text they stand for. Special tokens stand for no bytes."""
    return total_nats / math.log(2) / total_bytes
