"""Numbers as people write them: 7B, 1.4T, 70,000,000, 7_000_000_000, 1e22FLOPs.

The packages analysis and scaling each have this module, because neither imports the other; a test
(tests/scaling/test_quantities.py) keeps the two alike.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:_\d+)*(?:\.\d*)?|\.\d+)"
    r"(?:e(?P<exponent>[+-]?\d{1,4}))?"
    r"\s*(?:(?P<scale>[KMBGT])?\s*(?:tokens?|param(?:eter)?s?)?|(?P<prefix>[KMGTPEZY])?FLOPs?)",
    re.IGNORECASE | re.ASCII,
)
_POWERS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12, "P": 15, "E": 18, "Z": 21, "Y": 24}
"""Suffix of a number -> power of ten. B is a billion; P, E, Z and Y stand before FLOPs only."""
_TOO_LARGE = 10**308
"""A float holds few numbers above this, and a whole number far above it takes long to compute."""

FORMS = "a number, as 7B, 1.4T, 1e21 or 70_000_000"
"""What a quantity must be, for an error."""


def parse_quantity(text: str) -> int | float:
    """The number that a text states: an exact int where it is whole, else the nearest float.

    It may have a sign; commas between groups of three digits, or underscores; an exponent; K, M, B, G or T for powers
    of a thousand, in upper or lower case; and the unit tokens, params or FLOPs, the last with SI prefixes, as 3 ZFLOPs.

    Raises ValueError for any other text, nan and inf among them, and for 1e308 or more.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"must be {FORMS}")
    power = _POWERS[(match["scale"] or match["prefix"] or "").upper()] + int(match["exponent"] or 0)
    # exact arithmetic: .1T is 100000000000, and 1e23 is 10**23
    value = Fraction(match["sign"] + match["digits"].replace(",", "").replace("_", "")) * Fraction(10) ** power
    if abs(value) >= _TOO_LARGE:
        raise ValueError("must be below 1e308")
    return int(value) if value.denominator == 1 else float(value)


def parse_count(text: str) -> int:
    """As parse_quantity, and the number is whole. Raises ValueError for any other, too."""
    value = parse_quantity(text)
    if not isinstance(value, int):
        raise ValueError("must be a whole number")
    return value
