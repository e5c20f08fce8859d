"""Addition of numbers with k digits, after two worked examples; the wrong sums differ from the right one in a digit."""

from __future__ import annotations

from numpy.random import Generator

from scaling.measurements import Measure
from scaling.measurements.choices import Question, measure, spelt
from scaling.vocabulary import Vocabulary

NAME, CHOICES, EXAMPLES = "addition", 4, 2


def addition(length: int, digits: int = 2) -> Measure:
    """Both numbers have so many digits, the first of which is not zero."""

    low, high = 10 ** (digits - 1), 10**digits - 1

    def ask(vocabulary: Vocabulary, generator: Generator) -> Question:
        *examples, (a, b) = generator.integers(low, high + 1, (EXAMPLES + 1, 2)).tolist()
        shown = "".join(f"{c}+{d}={c + d}\n" for c, d in examples)
        near = neighbours(a + b, 2 * low, 2 * high)
        wrong = [near[one] for one in generator.permutation(len(near))[: CHOICES - 1]]
        return spelt(vocabulary, f"{shown}{a}+{b}=", str(a + b), wrong, generator)

    return measure(NAME, CHOICES, ask, length)


def neighbours(number: int, least: int, most: int) -> list[str]:
    """Numbers from `least` to `most` of as many digits that differ from this one in one digit, ascending. Others would
    betray themselves as no sums."""
    text = str(number)
    found = {
        text[:place] + digit + text[place + 1 :]
        for place in range(len(text))
        for digit in "0123456789"
        if digit != text[place] and (place, digit) != (0, "0")
    }
    return sorted(one for one in found if least <= int(one) <= most)
