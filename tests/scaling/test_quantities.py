"""Numbers as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

import analysis.quantities
import scaling.quantities
from scaling.quantities import parse_count, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7B", 7 * 10**9),
        ("1.4T", 14 * 10**11),
        ("124m", 124 * 10**6),
        ("0.5B", 5 * 10**8),
        (".1T", 10**11),
        ("20 B tokens", 20 * 10**9),
        ("70,000,000", 7 * 10**7),
        ("7_000_000_000", 7 * 10**9),
        ("1,000e18", 10**21),
        ("1e22FLOPs", 10**22),
        ("3 ZFLOPs", 3 * 10**21),
        ("1e3", 1000),
        ("1e23", 10**23),
        (str(2**60 + 1), 2**60 + 1),
        (" +5 ", 5),
        ("-1", -1),
        ("2.0", 2),
        (".34", 0.34),
        ("-1.5e-3", -0.0015),
    ],
)
def test_a_quantity_is_exact(text: str, value: float) -> None:
    assert parse_quantity(text) == value
    assert type(parse_quantity(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "7X", "nan", "inf", "-inf", "1,2", "1,0000", "1__0", "_1", "e5", "0x10", "1e400", "12345678e901", "٣"),
        *("1 2", "--1", "3 FLOP/s", "7BB", "1e3.5", "."),
    ],
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_quantity(text)


def test_a_count_is_whole() -> None:
    assert parse_count("1e3") == 1000
    with pytest.raises(ValueError, match="whole"):
        parse_count("1.5")


def test_both_packages_read_the_same_numbers() -> None:
    ours, theirs = (Path(module.__file__ or "").read_text() for module in (scaling.quantities, analysis.quantities))
    assert ours == theirs
