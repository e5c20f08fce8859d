"""Recall: names are given values, then one of them is named again; which value was it?

The wrong choices are the values of the other names. After Arora et al. 2023 (multi-query associative recall).
"""

from __future__ import annotations

import string

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME, KEYS = "recall", 4


def recall(length: int) -> Measurement:
    """Four letters, each with a digit of its own, as lines of code."""

    def ask(vocabulary: Tokenizer, generator: Generator) -> Question:
        names = generator.permutation(list(string.ascii_lowercase))[:KEYS]
        values = generator.permutation(list(string.digits))[:KEYS]
        one = int(generator.integers(KEYS))
        lines = "".join(f"{name} = {value}\n" for name, value in zip(names, values, strict=True))
        wrong = [str(value) for value in values if value != values[one]]
        return question_from_text(vocabulary, f"{lines}{names[one]} = ", str(values[one]), wrong, generator)

    return multiple_choice(NAME, KEYS, ask, length)
