"""Task `recall`: four names get values, then one of the names appears again. What was its value?

The wrong choices are the values of the other names. After multi-query associative recall (Arora et al. 2023).
"""

from __future__ import annotations

import string

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME, KEYS = "recall", 4


def recall(sequence_length: int) -> Measurement:
    """The names are letters, the values are different digits, and each pair is a line such as `a = 7`."""

    def make_question(tokenizer: Tokenizer, generator: Generator) -> Question:
        names = generator.permutation(list(string.ascii_lowercase))[:KEYS]
        values = generator.permutation(list(string.digits))[:KEYS]
        index = int(generator.integers(KEYS))
        lines = "".join(f"{name} = {value}\n" for name, value in zip(names, values, strict=True))
        wrong = [str(value) for value in values if value != values[index]]
        return question_from_text(tokenizer, f"{lines}{names[index]} = ", str(values[index]), wrong, generator)

    return multiple_choice(NAME, KEYS, make_question, sequence_length)
