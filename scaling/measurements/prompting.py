"""A model and how it is to be asked: what lm-evaluation-harness and seqio tasks share.

Not in the design's list of modules: harness_model.py and seqio_measure.py each import a heavy package that the other
does not need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scaling.data.tokenizer import Tokenizer
from scaling.errors import InputError
from scaling.generation.decode import generate
from scaling.generation.sampling import Sampling
from scaling.measurements.likelihood import ContextPair, score_pairs
from scaling.model.decoder import Decoder


@dataclass(frozen=True)
class PromptedModel:
    """length: tokens of the longest input; key: of what is sampled."""

    model: Decoder
    params: Any
    tokenizer: Tokenizer
    length: int
    key: jax.Array


def log_likelihoods(asked: PromptedModel, pairs: Sequence[ContextPair]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the probability of each of P continuations, however long, [P], and whether it is greedy, [P].

    Raises InputError when those are not finite, as of a model that has diverged.
    """
    parts = [list(split_continuation(one, asked.length)) for one in pairs]
    of_N = np.repeat(np.arange(len(pairs)), [len(of_one) for of_one in parts])
    scores = score_pairs(asked.model, asked.params, [part for of_one in parts for part in of_one], asked.length)
    if not np.isfinite(scores.nats_P).all():
        raise InputError("the model's scores are not finite numbers: it has diverged; evaluate an earlier step")
    return -np.bincount(of_N, scores.nats_P, len(pairs)), np.bincount(of_N, ~scores.greedy_P, len(pairs)) == 0


def split_continuation(whole: ContextPair, length: int) -> Iterator[ContextPair]:
    """A continuation in pieces of `length` tokens, each after all before it that fits, so that each token is predicted
    once: the windows of lm-eval's own models, whose last has a full context."""
    ids, first = np.concatenate([whole.context, whole.continuation]), len(whole.context)
    for start in range(first, len(ids), length):
        stop = min(start + length, len(ids))
        yield ContextPair(ids[max(stop - length - 1, 0) : start], ids[start:stop])


def completions(
    asked: PromptedModel, prompts: Sequence[np.ndarray], most: int, sampling: Sampling, key: jax.Array
) -> list[np.ndarray]:
    """At most `most` ids after each prompt, until an end of document. Prompts are cut from the left so that the answer
    fits beside them; of answers at most half of what the model reads."""
    most = min(most, asked.length // 2)
    kept = [np.asarray(prompt[-(asked.length - most) :], np.int32) for prompt in prompts]
    return generate(asked.model, asked.params, kept, most, sampling, key, asked.tokenizer.eos_id)
