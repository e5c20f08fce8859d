"""How likely a model finds one text after another: what multiple choice and lm-evaluation-harness both ask.

Not in the design's list of modules: measurements/ and harness.py share it.
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
from scaling.model.decoder import Decoder, logits

MIN_PADDED_TOKENS, LOGITS_BYTES, BATCH_TOKENS = 32, 2**27, 2**14


@dataclass(frozen=True)
class ContextPair:
    """Token ids of a context and of what follows it. A model that separates documents by an end-of-document id wants it
    before the context, where the context begins a document."""

    context: Sequence[int] | np.ndarray
    continuation: Sequence[int] | np.ndarray


@dataclass(frozen=True)
class PairScores:
    """nats_P: minus the logarithm of each continuation's probability after its context, summed over its tokens.
    greedy_P: whether each of its tokens is the likeliest."""

    nats_P: np.ndarray
    greedy_P: np.ndarray


def score_pairs(model: Decoder, params: Any, pairs: Sequence[ContextPair], length: int) -> PairScores:
    """Scores of P pairs, in their order. length: the longest input, to which contexts are cut from the left. Pairs that
    differ in their last token alone, as one-token answers to a question do, are scored in one row.

    Raises InputError when a continuation is empty, has no context at all, or alone is longer than `length`.
    """
    rows = [_pair_to_row(pair, length, place) for place, pair in enumerate(pairs)]
    ends_P = np.array([ids[-1] for ids, _ in rows], np.int32)
    nats_P, greedy_P = np.zeros(len(rows)), np.zeros(len(rows), bool)
    alike: dict[tuple[bytes, int], list[int]] = {}
    for place, (ids, scored) in enumerate(rows):
        alike.setdefault((ids[:-1].tobytes(), scored), []).append(place)
    groups: dict[int, list[list[int]]] = {}
    for places in alike.values():
        groups.setdefault(_round_up(len(rows[places[0]][0]) - 1, length), []).append(places)
    for T, of_T in sorted(groups.items()):
        most = min(LOGITS_BYTES // (4 * T * model.config.vocab_size), BATCH_TOKENS // T)
        B = min(max(most, 1), 1 << (len(of_T) - 1).bit_length())
        for start in range(0, len(of_T), B):
            part = of_T[start : start + B]
            tokens_BT, first_B, last_B = np.zeros((B, T), np.int32), np.zeros(B, np.int32), np.zeros(B, np.int32)
            for b, places in enumerate(part):
                ids, scored = rows[places[0]]
                tokens_BT[b, : len(ids) - 1], first_B[b], last_B[b] = ids[:-1], len(ids) - 1 - scored, len(ids) - 2
            before_B, greedy_B, last_BV = jax.device_get(score_rows(model, params, tokens_BT, first_B, last_B))
            for b, places in enumerate(part):
                nats_P[places] = before_B[b] + last_BV[b, ends_P[places]]
                greedy_P[places] = greedy_B[b] & (last_BV[b].argmin() == ends_P[places])
    return PairScores(nats_P, greedy_P)


def _pair_to_row(pair: ContextPair, length: int, place: int) -> tuple[np.ndarray, int]:
    """The ids of a pair, at most length + 1 of them, and how many at their end are scored."""
    ids, scored = np.concatenate([pair.context, pair.continuation]).astype(np.int32), len(pair.continuation)
    if scored == 0 or len(pair.context) == 0:
        raise InputError(f"pair {place}: {'continuation' if scored == 0 else 'context'} is empty: nothing to score")
    if scored > length:
        raise InputError(f"pair {place}: a continuation of {scored} tokens; at most {length} fit the model")
    return ids[-(length + 1) :], scored


def _round_up(tokens: int, length: int) -> int:
    """Few lengths, so that few programs are compiled: powers of two and the longest."""
    return min(max(1 << (tokens - 1).bit_length(), MIN_PADDED_TOKENS), length)


@functools.partial(jax.jit, static_argnames="model")
def score_rows(
    model: Decoder, params: Any, tokens_BT: jax.Array, first_B: jax.Array, last_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Nats of the targets in [first, last) of each row, whether all of them are the likeliest, and the nats [B, V] of
    whatever may follow the input at `last`."""
    logits_BTV, targets_BT = logits(model, params, tokens_BT), jnp.roll(tokens_BT, -1, axis=1)
    total_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nats_BT = total_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    place_T = jnp.arange(tokens_BT.shape[1])
    inside_BT = (place_T >= first_B[:, None]) & (place_T < last_B[:, None])
    hit_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
    row_B = jnp.arange(len(last_B))
    last_BV = total_BT[row_B, last_B][:, None] - logits_BTV[row_B, last_B]
    return jnp.where(inside_BT, nats_BT, 0).sum(axis=1), (hit_BT | ~inside_BT).all(axis=1), last_BV
