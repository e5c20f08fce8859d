"""Copying, or induction (Olsson et al. 2022): a random string is begun again; how does it go on?

The wrong choices are other pieces of the same string, so that knowing which letters were seen does not help.
"""

from __future__ import annotations

import string

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME, CHOICES = "copy", 4
LETTERS, PIECE, CUE = 12, 3, 2
"""Different letters of the string; those of a choice; those of the string seen again, at least."""


def copy(length: int) -> Measurement:
    """Every letter stands once in the string, so that one answer is right."""

    def ask(vocabulary: Tokenizer, generator: Generator) -> Question:
        text = "".join(generator.permutation(list(string.ascii_lowercase))[:LETTERS])
        starts = generator.permutation(LETTERS - PIECE - CUE + 1)[:CHOICES] + CUE
        right, *wrong = (text[start : start + PIECE] for start in starts)
        return question_from_text(vocabulary, f"{text}\n{text[: starts[0]]}", right, wrong, generator)

    return multiple_choice(NAME, CHOICES, ask, length)
