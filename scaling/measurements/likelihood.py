"""The log probability of a continuation after a context, for many pairs of both in few compiled programs.

Multiple choice, lm-evaluation-harness and seqio tasks all compute their scores here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling.errors import InputError
from scaling.generation.decode import padded_length
from scaling.model.decoder import Decoder, logits

MIN_PADDED_TOKENS = 32
LOGITS_BYTES = 2**27
"""The float32 logits of a batch take at most this much memory."""
BATCH_TOKENS = 2**14
"""A batch has at most this many tokens."""


@dataclass(frozen=True)
class ContextPair:
    """Token ids of a context and of its continuation. Where the context begins a document, its first id must be the
    end-of-document id, as in training."""

    context: Sequence[int] | np.ndarray
    continuation: Sequence[int] | np.ndarray


@dataclass(frozen=True)
class PairScores:
    """nats_P: minus the log probability of each continuation after its context, summed over its tokens. greedy_P:
    whether every token of the continuation is the likeliest."""

    nats_P: np.ndarray
    greedy_P: np.ndarray


def score_pairs(model: Decoder, params: Any, pairs: Sequence[ContextPair], sequence_length: int) -> PairScores:
    """Scores P pairs. sequence_length: the model's longest input; contexts are cut from the left to fit it.

    Pairs that differ only in their last token, as one-token answers to a question do, share a row of the batch: the
    last token's log probability is read from the logits of all tokens. Raises InputError when a context or continuation
    is empty, or a continuation alone is longer than `sequence_length`.
    """
    rows = [_pair_to_row(pair, sequence_length, number) for number, pair in enumerate(pairs)]
    last_token_P = np.array([ids[-1] for ids, _ in rows], np.int32)
    nats_P, greedy_P = np.zeros(len(rows)), np.zeros(len(rows), bool)
    # Pairs whose inputs are equal, by input and number of scored tokens; then these groups by padded input length T.
    sharing: dict[tuple[bytes, int], list[int]] = {}
    for p, (ids, scored) in enumerate(rows):
        sharing.setdefault((ids[:-1].tobytes(), scored), []).append(p)
    groups_by_length: dict[int, list[list[int]]] = {}
    for group in sharing.values():
        T = min(padded_length(len(rows[group[0]][0]) - 1, MIN_PADDED_TOKENS), sequence_length)
        groups_by_length.setdefault(T, []).append(group)
    for T, groups in sorted(groups_by_length.items()):
        max_rows = min(LOGITS_BYTES // (4 * T * model.config.vocab_size), BATCH_TOKENS // T)
        B = min(max(max_rows, 1), 1 << (len(groups) - 1).bit_length())
        for start in range(0, len(groups), B):
            batch = groups[start : start + B]
            tokens_BT, first_B, last_B = np.zeros((B, T), np.int32), np.zeros(B, np.int32), np.zeros(B, np.int32)
            for b, group in enumerate(batch):
                ids, scored = rows[group[0]]
                tokens_BT[b, : len(ids) - 1], first_B[b], last_B[b] = ids[:-1], len(ids) - 1 - scored, len(ids) - 2
            before_B, greedy_B, last_BV = jax.device_get(score_rows(model, params, tokens_BT, first_B, last_B))
            for b, group in enumerate(batch):
                nats_P[group] = before_B[b] + last_BV[b, last_token_P[group]]
                greedy_P[group] = greedy_B[b] & (last_BV[b].argmin() == last_token_P[group])
    return PairScores(nats_P, greedy_P)


def require_finite(nats: np.ndarray) -> None:
    """Raises InputError when a score is infinite or not a number, as from a model that has diverged."""
    if not np.isfinite(nats).all():
        raise InputError("the model's scores are not finite numbers: it has diverged; evaluate an earlier --step")


def _pair_to_row(pair: ContextPair, sequence_length: int, number: int) -> tuple[np.ndarray, int]:
    """The ids of a pair, at most sequence_length + 1 of them, and how many at their end are scored."""
    ids, scored = np.concatenate([pair.context, pair.continuation]).astype(np.int32), len(pair.continuation)
    if scored == 0 or len(pair.context) == 0:
        raise InputError(f"pair {number}: {'continuation' if scored == 0 else 'context'} is empty: must have a token")
    if scored > sequence_length:
        raise InputError(
            f"pair {number}: continuation of {scored} tokens: must be at most data.sequence_length = {sequence_length}"
        )
    return ids[-(sequence_length + 1) :], scored


@functools.partial(jax.jit, static_argnames="model")
def score_rows(
    model: Decoder, params: Any, tokens_BT: jax.Array, first_B: jax.Array, last_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores rows of a batch: (nats [B], greedy [B], last nats [B, V]).

    nats: minus the log probability of the targets at places [first, last), summed. greedy: whether all of those are the
    likeliest. last nats: minus the log probability of every token as the target at place `last`."""
    logits_BTV, targets_BT = logits(model, params, tokens_BT), jnp.roll(tokens_BT, -1, axis=1)
    total_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nats_BT = total_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    place_T = jnp.arange(tokens_BT.shape[1])
    inside_BT = (place_T >= first_B[:, None]) & (place_T < last_B[:, None])
    hit_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
    row_B = jnp.arange(len(last_B))
    last_BV = total_BT[row_B, last_B][:, None] - logits_BTV[row_B, last_B]
    return jnp.where(inside_BT, nats_BT, 0).sum(axis=1), (hit_BT | ~inside_BT).all(axis=1), last_BV
