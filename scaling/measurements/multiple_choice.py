"""Multiple choice: builds a Measurement from a function that makes questions, and computes its metrics.

A model chooses the choice with the highest log probability, summed over the choice's tokens. The questions are a pure
function of (key, budget), so that every run of a sweep gets the same ones.
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
from scaling.measurements.likelihood import ContextPair, require_finite, score_pairs
from scaling.model.decoder import Decoder
from scaling.record.run_folder import Value


@dataclass(frozen=True)
class Question:
    """Token ids of a context and of its possible continuations. answer: index of the right choice."""

    context: np.ndarray
    choices: tuple[np.ndarray, ...]
    answer: int


QuestionMaker = Callable[[Tokenizer, np.random.Generator], Question]
"""(tokenizer, generator) -> a random question, whose right choice has a random index."""


def shuffle_choices(
    context: np.ndarray, right: np.ndarray, wrong: Sequence[np.ndarray], generator: np.random.Generator
) -> Question:
    """A question with the right choice at a uniformly random index among the wrong ones."""
    index = int(generator.integers(len(wrong) + 1))
    return Question(context, (*wrong[:index], right, *wrong[index:]), index)


def question_from_text(
    tokenizer: Tokenizer, context: str, right: str, wrong: Sequence[str], generator: np.random.Generator
) -> Question:
    """`shuffle_choices` for texts. The context begins a document, hence an end-of-document id comes first."""
    context_ids = np.r_[tokenizer.eos_id, tokenizer.encode(context)]
    wrong_ids = [tokenizer.encode(text) for text in wrong]
    return shuffle_choices(context_ids, tokenizer.encode(right), wrong_ids, generator)


def multiple_choice(name: str, choices: int, make_question: QuestionMaker, sequence_length: int) -> Measurement:
    """A measurement of multiple choice among `choices`, whose chance level is 1 / choices.

    The budget is a number of questions. sequence_length: the model's longest input in tokens; the measurement's run and
    check raise InputError when a question is longer, or its choices are empty or equal.
    """

    @functools.lru_cache(maxsize=2)
    def make_questions(tokenizer: Tokenizer, seed: tuple[int, ...], budget: int) -> list[Question]:
        generator = np.random.default_rng(seed)
        questions = [make_question(tokenizer, generator) for _ in range(budget)]
        for number, question in enumerate(questions):
            check_choices(name, number, question)
        longest = max(len(question.context) + max(map(len, question.choices)) for question in questions) - 1
        if longest > sequence_length:
            raise InputError(
                f"{name}: has questions of {longest} tokens, data.sequence_length = {sequence_length}: must be at "
                f"least {longest}; leave the task out of --tasks"
            )
        return questions

    def check(tokenizer: Tokenizer, key: jax.Array, budget: int) -> list[Question]:
        return make_questions(tokenizer, tuple(np.ravel(jax.random.key_data(key)).tolist()), budget)

    def run(model: Decoder, params: Any, tokenizer: Tokenizer, key: jax.Array, budget: int) -> dict[str, Value]:
        questions = check(tokenizer, key, budget)
        nats_QK = score_choices(model, params, questions, sequence_length)
        return score_answers(questions, nats_QK, tokenizer.bytes_per_token)

    return Measurement(name, chance=1 / choices, ceiling=1.0, budget="questions", run=run, check=check)


def check_choices(name: str, number: int, question: Question) -> None:
    """Raises InputError when a choice has no tokens, which would always win, or two choices have the same."""
    encoded = [tuple(np.asarray(choice).tolist()) for choice in question.choices]
    problem = (
        "a choice without tokens" if () in encoded else "two equal choices" if len({*encoded}) < len(encoded) else ""
    )
    if problem:
        raise InputError(
            f"{name}: question {number} has {problem} in the tokenizer of this run: choices must differ; leave "
            "the task out of --tasks"
        )


def score_choices(model: Decoder, params: Any, questions: Sequence[Question], sequence_length: int) -> np.ndarray:
    """[Q, K], minus the log probability of each choice after its context."""
    pairs = [ContextPair(question.context, choice) for question in questions for choice in question.choices]
    return score_pairs(model, params, pairs, sequence_length).nats_P.reshape(len(questions), -1)


def score_answers(
    questions: Sequence[Question], nats_QK: np.ndarray, bytes_per_token_V: np.ndarray
) -> dict[str, Value]:
    """The metrics of `choice_statistics` for Q questions, from the nats of each choice. Raises InputError when a number
    is not finite, as from a model that has diverged."""
    require_finite(nats_QK)
    bytes_QK = np.array([[bytes_per_token_V[choice].sum() for choice in question.choices] for question in questions])
    return choice_statistics(nats_QK, np.array([question.answer for question in questions]), bytes_QK)


def choice_statistics(
    nats_QK: np.ndarray, answers_Q: np.ndarray, bytes_QK: np.ndarray, ceiling: float = 1.0
) -> dict[str, Value]:
    """The metrics of multiple choice.

    nats_QK: minus the log probability of each of K choices, inf where a question has fewer. answers_Q: index of the
    right one. bytes_QK: UTF-8 bytes of each choice. ceiling: accuracy of the best possible model.

    Returns accuracy: share of questions whose right choice has the highest log probability. chance: accuracy of a
    uniform guess. centred: accuracy rescaled to 0 at chance and 1 at the ceiling. bits_per_byte: of the right choices.
    choice_nats: minus the log of the right choice's share of the probability of all choices. Standard errors assume
    independent questions, and take chance and ceiling as known.
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
    """The mean and its standard error, which is nan for a single value."""
    Q = len(values_Q)
    return float(values_Q.mean()), float(values_Q.std(ddof=1)) / math.sqrt(Q) if Q > 1 else math.nan


def ratio_and_stderr(above_Q: np.ndarray, below_Q: np.ndarray) -> tuple[float, float]:
    """The ratio of two sums and its standard error by the delta method, which is nan for a single pair."""
    Q, value = len(above_Q), float(above_Q.sum() / below_Q.sum())
    residual_Q = above_Q - value * below_Q
    return value, math.sqrt(Q / (Q - 1) * float(residual_Q @ residual_Q)) / float(below_Q.sum()) if Q > 1 else math.nan
