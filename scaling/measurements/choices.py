"""Questions with k choices of which one is right: how they are put to a model, and what is made of its answers.

A model answers with the choice that it finds likeliest, by nats summed over the choice's tokens. Questions are a pure
function of (seed, budget), so that every run of a sweep is asked the same ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scaling.measurements import Measure
from scaling.model import Decoder
from scaling.record import Measurement
from scaling.scoring import Pair, score
from scaling.strict import InputError
from scaling.vocabulary import Vocabulary


@dataclass(frozen=True)
class Question:
    """Token ids of what the model sees and of what may follow; `right` is the place of the right choice."""

    context: np.ndarray
    choices: tuple[np.ndarray, ...]
    right: int


Ask = Callable[[Vocabulary, np.random.Generator], Question]
"""One more question. Its right answer stands at a place that the generator drew."""


def placed(
    context: np.ndarray, right: np.ndarray, wrong: Sequence[np.ndarray], generator: np.random.Generator
) -> Question:
    """A question whose right answer stands anywhere among the wrong ones, with equal chances."""
    place = int(generator.integers(len(wrong) + 1))
    return Question(context, (*wrong[:place], right, *wrong[place:]), place)


def spelt(
    vocabulary: Vocabulary, context: str, right: str, wrong: Sequence[str], generator: np.random.Generator
) -> Question:
    """The same of texts; the context is the beginning of a document."""
    begun = np.r_[vocabulary.eos_id, vocabulary.encode(context)]
    return placed(begun, vocabulary.encode(right), [vocabulary.encode(one) for one in wrong], generator)


def measure(name: str, choices: int, ask: Ask, length: int) -> Measure:
    """Multiple choice among `choices`; chance is one in so many, exactly. length: the model's longest input, tokens.

    The measure's run raises InputError when a question does not fit that.
    """

    @functools.lru_cache(maxsize=2)
    def questions(vocabulary: Vocabulary, seed: tuple[int, ...], budget: int) -> list[Question]:
        generator = np.random.default_rng(seed)
        asked = [ask(vocabulary, generator) for _ in range(budget)]
        longest = max(len(one.context) + max(map(len, one.choices)) for one in asked) - 1
        if longest > length:
            raise InputError(f"{name}: its questions are up to {longest} tokens long, sequence_length = {length}")
        return asked

    def run(model: Decoder, params: Any, vocabulary: Vocabulary, key: jax.Array, budget: int) -> dict[str, Measurement]:
        asked = questions(vocabulary, tuple(np.ravel(jax.random.key_data(key)).tolist()), budget)
        return answered(asked, nats(model, params, asked, length), vocabulary.bytes_per_token)

    return Measure(name, chance=1 / choices, ceiling=1.0, budget="questions", run=run)


def nats(model: Decoder, params: Any, questions: Sequence[Question], length: int) -> np.ndarray:
    """Minus the logarithm of each choice's probability after its context, [Q, K]."""
    pairs = [Pair(one.context, choice) for one in questions for choice in one.choices]
    return score(model, params, pairs, length).nats_P.reshape(len(questions), -1)


def answered(
    questions: Sequence[Question], nats_QK: np.ndarray, bytes_per_token_V: np.ndarray
) -> dict[str, Measurement]:
    """The statistics of a model's answers, from the nats of each choice."""
    right_Q = np.array([one.right for one in questions])
    bytes_Q = np.array([bytes_per_token_V[one.choices[one.right]].sum() for one in questions])
    return statistics(nats_QK, right_Q, bytes_Q)


def statistics(nats_QK: np.ndarray, right_Q: np.ndarray, bytes_Q: np.ndarray) -> dict[str, Measurement]:
    """(value, n, stderr) of what Q answers among K choices say; standard errors take questions as independent.

    accuracy: share of questions whose right choice has the fewest nats. Its stderr is the standard deviation of a
      share under a uniform prior, which is above zero even where all answers are right.
    centred: (accuracy - 1/K) / (1 - 1/K): 0 by chance, 1 at best.
    bits_per_byte: of the right answers, all bits over all bytes; a ratio, whose stderr is linearised.
    choice_nats: -ln of the right choice's share in the softmax over choices: ln K by chance, 0 at best.

    bytes_Q: bytes of the right answers.
    """
    Q, K = nats_QK.shape
    right_nats_Q = nats_QK[np.arange(Q), right_Q]
    hits, chance = int((nats_QK.argmin(axis=1) == right_Q).sum()), 1 / K
    accuracy = hits / Q if np.isfinite(nats_QK).all() else math.nan
    smooth = (hits + 1) / (Q + 2)
    spread = math.sqrt(smooth * (1 - smooth) / (Q + 3))
    choice_Q = right_nats_Q + np.logaddexp.reduce(-nats_QK, axis=1)
    bits = float(right_nats_Q.sum()) / math.log(2) / max(int(bytes_Q.sum()), 1)
    residual_Q = right_nats_Q / math.log(2) - bits * bytes_Q
    return {
        "accuracy": (accuracy, Q, spread),
        "centred": ((accuracy - chance) / (1 - chance), Q, spread / (1 - chance)),
        "bits_per_byte": (bits, Q, _error_of_mean(residual_Q) / max(float(bytes_Q.mean()), 1.0)),
        "choice_nats": (float(choice_Q.mean()), Q, _error_of_mean(choice_Q)),
    }


def _error_of_mean(values_Q: np.ndarray) -> float:
    return float(values_Q.std(ddof=1)) / math.sqrt(len(values_Q)) if len(values_Q) > 1 else math.nan
