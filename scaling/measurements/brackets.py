"""Brackets: a string of three kinds of them stops short; which closer is the only one that may come next?"""

from __future__ import annotations

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME = "brackets"
OPENERS, CLOSERS = "([{", ")]}"
SHORTEST, LONGEST, DEEPEST = 12, 25, 6


def brackets(length: int) -> Measurement:
    """Strings of 12 to 25 brackets in which openers and closers come at even odds, never more than six deep."""

    def ask(vocabulary: Tokenizer, generator: Generator) -> Question:
        text, due = random_prefix(generator)
        return question_from_text(vocabulary, text, due, [one for one in CLOSERS if one != due], generator)

    return multiple_choice(NAME, len(CLOSERS), ask, length)


def random_prefix(generator: Generator) -> tuple[str, str]:
    """A text that is open, and the closer that is due."""
    most = int(generator.integers(SHORTEST, LONGEST))
    text, due = "", ""
    while len(text) < most or not due:
        if due and (len(due) == DEEPEST or generator.random() < 0.5):
            text, due = text + due[-1], due[:-1]
        else:
            kind = int(generator.integers(len(OPENERS)))
            text, due = text + OPENERS[kind], due + CLOSERS[kind]
    return text, due[-1]
