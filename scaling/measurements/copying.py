"""Task `copy`, or induction (Olsson et al. 2022): a random string starts a second time. How does it continue?

The wrong choices are other pieces of the same string, so that knowing its letters is not enough.
"""

from __future__ import annotations

import string

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME, CHOICES = "copy", 4
LETTERS = 12
"""Letters of the string, all different."""
CHOICE_LETTERS = 3
"""Letters of a choice."""
MIN_REPEATED = 2
"""Letters of the string that the context repeats, at least."""


def copy(sequence_length: int) -> Measurement:
    """Every letter occurs once in the string, so that exactly one choice is right."""

    def make_question(tokenizer: Tokenizer, generator: Generator) -> Question:
        text = "".join(generator.permutation(list(string.ascii_lowercase))[:LETTERS])
        starts = generator.permutation(LETTERS - CHOICE_LETTERS - MIN_REPEATED + 1)[:CHOICES] + MIN_REPEATED
        right, *wrong = (text[start : start + CHOICE_LETTERS] for start in starts)
        return question_from_text(tokenizer, f"{text}\n{text[: starts[0]]}", right, wrong, generator)

    return multiple_choice(NAME, CHOICES, make_question, sequence_length)
