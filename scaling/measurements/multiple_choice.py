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

from scaling.data.tokenizer import Tokenizer
from scaling.errors import InputError
from scaling.measurements import Measurement
from scaling.measurements.likelihood import ContextPair, score_pairs
from scaling.model.decoder import Decoder
from scaling.record.run_folder import Value


@dataclass(frozen=True)
class Question:
    """Token ids of what the model sees and of what may follow; `right` is the place of the right choice."""

    context: np.ndarray
    choices: tuple[np.ndarray, ...]
    answer: int


QuestionMaker = Callable[[Tokenizer, np.random.Generator], Question]
"""One more question. Its right answer stands at a place that the generator drew."""


def shuffle_choices(
    context: np.ndarray, right: np.ndarray, wrong: Sequence[np.ndarray], generator: np.random.Generator
) -> Question:
    """A question whose right answer stands anywhere among the wrong ones, with equal chances."""
    place = int(generator.integers(len(wrong) + 1))
    return Question(context, (*wrong[:place], right, *wrong[place:]), place)


def question_from_text(
    vocabulary: Tokenizer, context: str, right: str, wrong: Sequence[str], generator: np.random.Generator
) -> Question:
    """The same of texts; the context is the beginning of a document."""
    begun = np.r_[vocabulary.eos_id, vocabulary.encode(context)]
    return shuffle_choices(begun, vocabulary.encode(right), [vocabulary.encode(one) for one in wrong], generator)


def multiple_choice(name: str, choices: int, ask: QuestionMaker, length: int) -> Measurement:
    """Multiple choice among `choices`; chance is one in so many, exactly. length: the model's longest input, tokens.

    The measure's run and check raise InputError when a question does not fit that.
    """

    @functools.lru_cache(maxsize=2)
    def made(vocabulary: Tokenizer, seed: tuple[int, ...], budget: int) -> list[Question]:
        generator = np.random.default_rng(seed)
        asked = [ask(vocabulary, generator) for _ in range(budget)]
        longest = max(len(one.context) + max(map(len, one.choices)) for one in asked) - 1
        if longest > length:
            raise InputError(f"{name}: its questions are up to {longest} tokens long, sequence_length = {length}")
        return asked

    def questions(vocabulary: Tokenizer, key: jax.Array, budget: int) -> list[Question]:
        return made(vocabulary, tuple(np.ravel(jax.random.key_data(key)).tolist()), budget)

    def run(model: Decoder, params: Any, vocabulary: Tokenizer, key: jax.Array, budget: int) -> dict[str, Value]:
        asked = questions(vocabulary, key, budget)
        return score_answers(asked, score_choices(model, params, asked, length), vocabulary.bytes_per_token)

    return Measurement(name, chance=1 / choices, ceiling=1.0, budget="questions", run=run, check=questions)


def score_choices(model: Decoder, params: Any, questions: Sequence[Question], length: int) -> np.ndarray:
    """Minus the logarithm of each choice's probability after its context, [Q, K]."""
    pairs = [ContextPair(one.context, choice) for one in questions for choice in one.choices]
    return score_pairs(model, params, pairs, length).nats_P.reshape(len(questions), -1)


def score_answers(
    questions: Sequence[Question], nats_QK: np.ndarray, bytes_per_token_V: np.ndarray
) -> dict[str, Value]:
    """The statistics of a model's answers, from the nats of each choice. Raises InputError when those are not finite,
    as of a model that has diverged."""
    if not np.isfinite(nats_QK).all():
        raise InputError("the model's scores are not finite numbers: it has diverged; evaluate an earlier step")
    bytes_QK = np.array([[bytes_per_token_V[choice].sum() for choice in one.choices] for one in questions])
    return choice_statistics(nats_QK, np.array([one.answer for one in questions]), bytes_QK)


def choice_statistics(
    nats_QK: np.ndarray, answers_Q: np.ndarray, bytes_QK: np.ndarray, ceiling: float = 1.0
) -> dict[str, Value]:
    """nats_QK: minus the logarithm of the probability of each of K choices, inf where a question has fewer; answers_Q:
    place of the right one; bytes_QK: UTF-8 bytes of each; ceiling: accuracy of the best possible answers.

    accuracy: share of questions whose right choice has the fewest nats. chance: of a uniform guess. centred: accuracy
    from 0 at chance to 1 at the ceiling. bits_per_byte: of right choices. choice_nats: -ln of the right choice's share
    in the softmax over choices. Standard errors take questions as independent, and chance and ceiling as known.
    """
    Q = len(answers_Q)
    right_Q, bytes_Q = nats_QK[np.arange(Q), answers_Q], bytes_QK[np.arange(Q), answers_Q]
    accuracy, stderr = mean_and_stderr(nats_QK.argmin(axis=1) == answers_Q)
    chance = float((1 / np.isfinite(nats_QK).sum(axis=1)).mean())
    bits, bits_stderr = ratio_and_stderr(right_Q / math.log(2), bytes_Q)
    choice_nats, choice_stderr = mean_and_stderr(right_Q + np.logaddexp.reduce(-nats_QK, axis=1))
    span = ceiling - chance
    return {
        "accuracy": Value(accuracy, Q, stderr),
        "centred": Value((accuracy - chance) / span, Q, stderr / span),
        "bits_per_byte": Value(bits, Q, bits_stderr),
        "choice_nats": Value(choice_nats, Q, choice_stderr),
        "chance": Value(chance, 0, 0.0),
        "ceiling": Value(ceiling, 0, 0.0),
    }


def mean_and_stderr(values_Q: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, nan of a single value."""
    Q = len(values_Q)
    return float(values_Q.mean()), float(values_Q.std(ddof=1)) / math.sqrt(Q) if Q > 1 else math.nan


def ratio_and_stderr(above_Q: np.ndarray, below_Q: np.ndarray) -> tuple[float, float]:
    """Sum over sum, and its standard error by the delta method, nan of a single pair."""
    Q, value = len(above_Q), float(above_Q.sum() / below_Q.sum())
    off_Q = above_Q - value * below_Q
    return value, math.sqrt(Q / (Q - 1) * float(off_Q @ off_Q)) / float(below_Q.sum()) if Q > 1 else math.nan
