"""Task `addition`: add two numbers with k digits, after two worked examples. Each wrong sum differs in one digit.

All wrong sums differ in the same place. If each differed in another place, the right sum would be the one closest to
all the others, and a model that only prefers some digits to others would not be at chance.
"""

from __future__ import annotations

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME, CHOICES, EXAMPLES = "addition", 4, 2


def addition(sequence_length: int, digits: int = 2) -> Measurement:
    """Both numbers have `digits` digits, the first of which is not zero. sequence_length: the model's longest input."""

    low, high = 10 ** (digits - 1), 10**digits - 1

    def make_question(tokenizer: Tokenizer, generator: Generator) -> Question:
        *examples, (a, b) = generator.integers(low, high + 1, (EXAMPLES + 1, 2)).tolist()
        worked_examples = "".join(f"{c}+{d}={c + d}\n" for c, d in examples)
        changes = [sums for sums in one_digit_changes(a + b, 2 * low, 2 * high) if len(sums) >= CHOICES - 1]
        sums = changes[int(generator.integers(len(changes)))]
        wrong = [sums[index] for index in generator.permutation(len(sums))[: CHOICES - 1]]
        return question_from_text(tokenizer, f"{worked_examples}{a}+{b}=", str(a + b), wrong, generator)

    return multiple_choice(NAME, CHOICES, make_question, sequence_length)


def one_digit_changes(number: int, lowest: int, highest: int) -> list[list[str]]:
    """For each digit of a number: the numbers that differ from it in this digit alone, ascending.

    Only numbers from `lowest` to `highest` with as many digits are listed: others are recognizably not sums."""
    text = str(number)
    lowest_first_digit = 0 if len(text) == 1 else 1
    changes = (
        [text[:place] + digit + text[place + 1 :] for digit in "0123456789"[0 if place else lowest_first_digit :]]
        for place in range(len(text))
    )
    return [[other for other in others if other != text and lowest <= int(other) <= highest] for others in changes]
