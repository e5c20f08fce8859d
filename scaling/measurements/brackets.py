"""Task `brackets`: a random string of three kinds of brackets stops early. Which closing bracket may come next?"""

from __future__ import annotations

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME = "brackets"
OPENERS, CLOSERS = "([{", ")]}"
MIN_LENGTH, MAX_LENGTH, MAX_DEPTH = 12, 25, 6


def brackets(sequence_length: int) -> Measurement:
    """Strings of 12 to 25 brackets, at most six deep, in which an opening and a closing bracket are equally likely."""

    def make_question(tokenizer: Tokenizer, generator: Generator) -> Question:
        text, right = random_prefix(generator)
        wrong = [closer for closer in CLOSERS if closer != right]
        return question_from_text(tokenizer, text, right, wrong, generator)

    return multiple_choice(NAME, len(CLOSERS), make_question, sequence_length)


def random_prefix(generator: Generator) -> tuple[str, str]:
    """A string in which a bracket is open, and the closing bracket that is due."""
    min_length = int(generator.integers(MIN_LENGTH, MAX_LENGTH))
    text, due = "", ""  # due: the closing brackets of all that is open, outermost first
    while len(text) < min_length or not due:
        if due and (len(due) == MAX_DEPTH or generator.random() < 0.5):
            text, due = text + due[-1], due[:-1]
        else:
            kind = int(generator.integers(len(OPENERS)))
            text, due = text + OPENERS[kind], due + CLOSERS[kind]
    return text, due[-1]
