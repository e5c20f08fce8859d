"""Addition of numbers with k digits, after two worked examples; the wrong sums have another digit in one place.

It is the same place in all of them: were each changed elsewhere, the right one would be in the middle of the choices,
and liked least by whoever merely prefers some digits to others.
"""

from __future__ import annotations

from numpy.random import Generator

from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.measurements.multiple_choice import Question, multiple_choice, question_from_text

NAME, CHOICES, EXAMPLES = "addition", 4, 2


def addition(length: int, digits: int = 2) -> Measurement:
    """Both numbers have so many digits, the first of which is not zero."""

    low, high = 10 ** (digits - 1), 10**digits - 1

    def ask(vocabulary: Tokenizer, generator: Generator) -> Question:
        *examples, (a, b) = generator.integers(low, high + 1, (EXAMPLES + 1, 2)).tolist()
        shown = "".join(f"{c}+{d}={c + d}\n" for c, d in examples)
        near = [found for found in one_digit_changes(a + b, 2 * low, 2 * high) if len(found) >= CHOICES - 1]
        changed = near[int(generator.integers(len(near)))]
        wrong = [changed[one] for one in generator.permutation(len(changed))[: CHOICES - 1]]
        return question_from_text(vocabulary, f"{shown}{a}+{b}=", str(a + b), wrong, generator)

    return multiple_choice(NAME, CHOICES, ask, length)


def one_digit_changes(number: int, least: int, most: int) -> list[list[str]]:
    """For each place of a number, the numbers from `least` to `most`, of as many digits, with another digit there,
    ascending. Others would betray themselves as no sums."""
    text = str(number)
    first = 0 if len(text) == 1 else 1
    changed = (
        [text[:place] + digit + text[place + 1 :] for digit in "0123456789"[0 if place else first :]]
        for place in range(len(text))
    )
    return [[one for one in found if one != text and least <= int(one) <= most] for found in changed]
