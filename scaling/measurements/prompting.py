"""A model with the settings for prompting it: log likelihoods and completions of any length.

lm-evaluation-harness (lm_eval/model.py) and seqio tasks (seqio_tasks.py) share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scaling.data.tokenizer import Tokenizer
from scaling.generation.decode import generate
from scaling.generation.sampling import Sampling
from scaling.measurements.likelihood import ContextPair, require_finite, score_pairs
from scaling.model.decoder import Decoder


@dataclass(frozen=True)
class PromptedModel:
    """A trained model, its tokenizer, the length of its longest input in tokens, and the random key for sampling."""

    model: Decoder
    params: Any
    tokenizer: Tokenizer
    sequence_length: int
    key: jax.Array


def log_likelihoods(prompted: PromptedModel, pairs: Sequence[ContextPair]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (log_P, greedy_P): the log probability of each of P continuations of any length, and whether all its
    tokens are the likeliest. Raises InputError when a score is not finite, as from a model that has diverged.
    """
    pieces = [list(split_continuation(pair, prompted.sequence_length)) for pair in pairs]
    pair_N = np.repeat(np.arange(len(pairs)), [len(of_pair) for of_pair in pieces])  # the pair of each of N pieces
    all_pieces = [piece for of_pair in pieces for piece in of_pair]
    scores = score_pairs(prompted.model, prompted.params, all_pieces, prompted.sequence_length)
    require_finite(scores.nats_P)
    return -np.bincount(pair_N, scores.nats_P, len(pairs)), np.bincount(pair_N, ~scores.greedy_P, len(pairs)) == 0


def split_continuation(pair: ContextPair, sequence_length: int) -> Iterator[ContextPair]:
    """Splits a continuation into pieces of `sequence_length` tokens, so that each token is predicted once.

    The context of a piece is as much of the text before it as fits. These are the windows of lm-eval's own models: the
    last piece, which is shorter, gets a full context."""
    ids, first = np.concatenate([pair.context, pair.continuation]), len(pair.context)
    for start in range(first, len(ids), sequence_length):
        stop = min(start + sequence_length, len(ids))
        yield ContextPair(ids[max(stop - sequence_length - 1, 0) : start], ids[start:stop])


def completions(
    prompted: PromptedModel, prompts: Sequence[np.ndarray], max_tokens: int, sampling: Sampling, key: jax.Array
) -> list[np.ndarray]:
    """The ids generated after each prompt, up to an end of document or `max_tokens`; at most half the longest input.
    Prompts are cut from the left so that prompt and completion together fit the longest input."""
    max_tokens = min(max_tokens, prompted.sequence_length // 2)
    room = prompted.sequence_length - max_tokens
    cut_prompts = [np.asarray(prompt[-room:], np.int32) for prompt in prompts]
    return generate(prompted.model, prompted.params, cut_prompts, max_tokens, sampling, key, prompted.tokenizer.eos_id)
