"""Values from files are compared with annotations, and what is wrong is named."""

from __future__ import annotations

import math
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from scaling.type_checks import find_misfit


class Inner(TypedDict, total=False):
    tokens: int | None


class Outer(TypedDict):
    schema: Literal[1]
    loss: float
    reason: NotRequired[str]
    row: Inner
    values: dict[str, tuple[float | None, int]]
    parts: list[Inner] | None


RIGHT: dict[str, Any] = {"schema": 1, "loss": 2, "row": {"tokens": 5}, "values": {"a": [None, 3]}, "parts": None}


@pytest.mark.parametrize(
    "change",
    [{}, {"loss": 2.5}, {"loss": 10**300}, {"row": {}}, {"later": [1]}, {"parts": [{}, {"tokens": None}]}],
)
def test_right_values_fit(change: dict[str, Any]) -> None:
    assert find_misfit(RIGHT | change, Outer) == ""


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"schema": True}, "schema", "True"),
        ({"schema": 2}, "schema", "2"),
        ({"loss": "2"}, "loss", "'2'"),
        ({"loss": math.nan}, "loss", "nan"),
        ({"loss": 10**400}, "loss", "1000"),
        ({"reason": None}, "reason", "None"),
        ({"reason": "\ud800"}, "reason", r"\ud800"),
        ({"row": None}, "row", "None"),
        ({"row": {"tokens": 2**63}}, "row.tokens", str(2**63)),
        ({"row": {"tokens": False}}, "row.tokens", "False"),
        ({"values": {"a": [1]}}, "values.a", "[1]"),
        ({"values": {"a": [1, 2.0]}}, "values.a[1]", "2.0"),
        ({"values": [1]}, "values", "[1]"),
        ({"parts": [{}, {"tokens": "x"}]}, "parts[1].tokens", "'x'"),
    ],
)
def test_the_first_wrong_part_is_named(change: dict[str, Any], name: str, value: str) -> None:
    misfit = find_misfit(RIGHT | change, Outer)
    assert misfit.startswith(f"{name} = ")
    assert value in misfit
    assert len(misfit.encode()) < 300


def test_a_missing_key_is_named() -> None:
    assert find_misfit({key: RIGHT[key] for key in RIGHT if key != "row"}, Outer).startswith("row is missing")
    assert find_misfit(None, Outer)
