"""What is said of answers to multiple-choice questions, whoever asked them."""

from __future__ import annotations

import math

import numpy as np

from scaling.record import Measurement


def statistics(
    nats_QK: np.ndarray, answers_Q: np.ndarray, bytes_QK: np.ndarray, ceiling: float = 1.0
) -> dict[str, Measurement]:
    """nats_QK: minus the logarithm of the probability of each of K choices, inf where a question has fewer; answers_Q:
    place of the right one; bytes_QK: UTF-8 bytes of each; ceiling: accuracy of the best possible answers.

    accuracy: share of questions whose right choice has the fewest nats. chance: of a uniform guess. centred: accuracy
    from 0 at chance to 1 at the ceiling. bits_per_byte: of right choices. choice_nats: -ln of the right choice's share
    in the softmax over choices. Standard errors take questions as independent, and chance and ceiling as known.
    """
    Q = len(answers_Q)
    right_Q, bytes_Q = nats_QK[np.arange(Q), answers_Q], bytes_QK[np.arange(Q), answers_Q]
    accuracy, stderr = mean(nats_QK.argmin(axis=1) == answers_Q)
    chance = float((1 / np.isfinite(nats_QK).sum(axis=1)).mean())
    bits, bits_stderr = ratio(right_Q / math.log(2), bytes_Q)
    choice_nats, choice_stderr = mean(right_Q + np.logaddexp.reduce(-nats_QK, axis=1))
    span = ceiling - chance
    return {
        "accuracy": (accuracy, Q, stderr),
        "centred": ((accuracy - chance) / span, Q, stderr / span),
        "bits_per_byte": (bits, Q, bits_stderr),
        "choice_nats": (choice_nats, Q, choice_stderr),
        "chance": (chance, 0, 0.0),
        "ceiling": (ceiling, 0, 0.0),
    }


def mean(values_Q: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, nan of a single value."""
    Q = len(values_Q)
    return float(values_Q.mean()), float(values_Q.std(ddof=1)) / math.sqrt(Q) if Q > 1 else math.nan


def ratio(above_Q: np.ndarray, below_Q: np.ndarray) -> tuple[float, float]:
    """Sum over sum, and its standard error by the delta method, nan of a single pair."""
    Q, value = len(above_Q), float(above_Q.sum() / below_Q.sum())
    off_Q = above_Q - value * below_Q
    return value, math.sqrt(Q / (Q - 1) * float(off_Q @ off_Q)) / float(below_Q.sum()) if Q > 1 else math.nan
