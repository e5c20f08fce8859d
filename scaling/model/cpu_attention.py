"""Causal attention in blocks of queries, with a hand-written gradient: the attention kernel for CPUs.

A block of queries meets only the keys up to its last position, so that up to half of the scores are never computed.
The backward pass reads the attention weights that the forward pass stored, and uses the row sums `delta` of Dao et al.
2022 (appendix B.4). Its products are ordered so that the smaller operand is the transposed one. Recomputing the weights
as flash attention does saved nothing: in unrolled code XLA merges that with the forward pass (LOG.md, 2026-11-22).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from scaling.model.matmul import matmul

MIN_BLOCK_ROWS = 64
MAX_BLOCKS = 8
MASK_VALUE = -1e30


def rows_per_block(T: int) -> int:
    """Queries in a block of a sequence of T: MIN_BLOCK_ROWS, or as many as keep the blocks to MAX_BLOCKS."""
    return max(MIN_BLOCK_ROWS, -(-T // MAX_BLOCKS))


def attend_in_blocks(
    q_BTHD: jax.Array, k_BTKD: jax.Array, v_BTKD: jax.Array, segments_BT: jax.Array | None
) -> jax.Array:
    """Causal grouped-query attention, as attention.attend. [B, T, H, D] in and out, in the dtype of q.

    Softmax is in float32. A position sees itself and those before it in its own segment.
    """
    B, T, H, D = q_BTHD.shape
    K = k_BTKD.shape[2]
    # Queries by key-value head K and by query head G within its group.
    q_BKGTD = (q_BTHD * D**-0.5).reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)
    out_BKGTD = _block_attention(q_BKGTD, k_BTKD.transpose(0, 2, 1, 3), v_BTKD.transpose(0, 2, 1, 3), segments_BT)
    return out_BKGTD.transpose(0, 3, 1, 2, 4).reshape(B, T, H, D).astype(q_BTHD.dtype)


@jax.custom_vjp
def _block_attention(
    q_BKGTD: jax.Array, k_BKSD: jax.Array, v_BKSD: jax.Array, segments_BT: jax.Array | None
) -> jax.Array:
    return _forward(q_BKGTD, k_BKSD, v_BKSD, segments_BT)[0]


def _forward(
    q_BKGTD: jax.Array, k_BKSD: jax.Array, v_BKSD: jax.Array, segments_BT: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The output [B, K, G, T, D], and of every block its unnormalised weights and their row sums."""
    k_BKDS = k_BKSD.swapaxes(2, 3)
    outputs, blocks = [], []
    for start, end in _block_ranges(q_BKGTD.shape[3]):
        scores_BKNS = _masked_scores(q_BKGTD, k_BKDS, segments_BT, start, end)
        # Softmax with its division after the product with the values: D divisions a row in place of S.
        max_BKN1 = scores_BKNS.max(axis=-1, keepdims=True)
        weights_BKNS = jnp.exp(scores_BKNS - max_BKN1)
        total_BKN1 = weights_BKNS.sum(axis=-1, keepdims=True)
        out_BKND = matmul(weights_BKNS.astype(v_BKSD.dtype), v_BKSD[:, :, :end]) / total_BKN1
        outputs.append(_unfold_groups(out_BKND, q_BKGTD.shape[2]))
        blocks.append((weights_BKNS.astype(v_BKSD.dtype), total_BKN1))
    return jnp.concatenate(outputs, axis=3), tuple(blocks)


def _forward_with_residuals(
    q_BKGTD: jax.Array, k_BKSD: jax.Array, v_BKSD: jax.Array, segments_BT: jax.Array | None
) -> tuple[jax.Array, tuple]:
    out_BKGTD, blocks = _forward(q_BKGTD, k_BKSD, v_BKSD, segments_BT)
    return out_BKGTD, (q_BKGTD, k_BKSD, v_BKSD, out_BKGTD, blocks)


def _backward(saved: tuple, gradient_BKGTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """Gradients of queries, keys and values, block by block.

    With P the normalised weights, dO the output's gradient and ' the transpose: dV = P' dO,
    dS = P * (dO V' - rowsum(dO * O)), dQ = dS K, dK = dS' Q (Dao et al. 2022, appendix B.4). The stored weights are not
    normalised, so dO is divided by their row sums instead.
    """
    q_BKGTD, k_BKSD, v_BKSD, out_BKGTD, blocks = saved
    k_BKDS, v_BKDS = k_BKSD.swapaxes(2, 3), v_BKSD.swapaxes(2, 3)
    dtype = q_BKGTD.dtype
    dq, dk_BKDS, dv_BKDS = [], jnp.zeros(k_BKDS.shape, jnp.float32), jnp.zeros(v_BKDS.shape, jnp.float32)
    for (start, end), (weights_BKNS, total_BKN1) in zip(_block_ranges(q_BKGTD.shape[3]), blocks, strict=True):
        gradient_BKND = _fold_groups(gradient_BKGTD[..., start:end, :]) / total_BKN1
        delta_BKN1 = (gradient_BKND * _fold_groups(out_BKGTD[..., start:end, :])).sum(axis=-1, keepdims=True)
        low_BKND = gradient_BKND.astype(dtype)  # products run in the precision of the activations
        slope_BKNS = weights_BKNS * (matmul(low_BKND, v_BKDS[..., :end]) - delta_BKN1)
        slope_BKNS, weights_BKNS = slope_BKNS.astype(dtype), weights_BKNS.astype(dtype)
        dq.append(_unfold_groups(matmul(slope_BKNS, k_BKSD[:, :, :end]), q_BKGTD.shape[2]))
        dv_BKDS = dv_BKDS.at[..., :end].add(matmul(low_BKND.swapaxes(2, 3), weights_BKNS))
        dk_BKDS = dk_BKDS.at[..., :end].add(matmul(_fold_groups(q_BKGTD[..., start:end, :]).swapaxes(2, 3), slope_BKNS))
    dq_BKGTD = jnp.concatenate(dq, axis=3).astype(dtype)
    return dq_BKGTD, dk_BKDS.swapaxes(2, 3).astype(k_BKSD.dtype), dv_BKDS.swapaxes(2, 3).astype(v_BKSD.dtype), None


_block_attention.defvjp(_forward_with_residuals, _backward)


def _block_ranges(T: int) -> list[tuple[int, int]]:
    """First position and end of each block of queries."""
    rows = rows_per_block(T)
    return [(start, min(start + rows, T)) for start in range(0, T, rows)]


def _fold_groups(x_BKGTD: jax.Array) -> jax.Array:
    """[B, K, G, T, D] -> [B, K, N, D]: the query heads of a group one after the other, N = G * T rows."""
    B, K, G, T, D = x_BKGTD.shape
    return x_BKGTD.reshape(B, K, G * T, D)


def _unfold_groups(x_BKND: jax.Array, G: int) -> jax.Array:
    """[B, K, N, D] -> [B, K, G, T, D], the inverse of `_fold_groups`."""
    B, K, N, D = x_BKND.shape
    return x_BKND.reshape(B, K, G, N // G, D)


def _masked_scores(
    q_BKGTD: jax.Array, k_BKDS: jax.Array, segments_BT: jax.Array | None, start: int, end: int
) -> jax.Array:
    """Scores of the queries from start to end against the keys from 0 to end, float32 [B, K, N, S], masked."""
    G = q_BKGTD.shape[2]
    scores_BKNS = matmul(_fold_groups(q_BKGTD[..., start:end, :]), k_BKDS[..., :end])
    visible_NS = np.tile(np.arange(end) <= np.arange(start, end)[:, None], (G, 1))
    if segments_BT is None:
        return scores_BKNS + np.where(visible_NS, 0.0, MASK_VALUE).astype(np.float32)
    same_segment_BNS = jnp.tile(segments_BT[:, start:end, None] == segments_BT[:, None, :end], (1, G, 1))
    return jnp.where(visible_NS & same_segment_BNS[:, None], scores_BKNS, MASK_VALUE)
