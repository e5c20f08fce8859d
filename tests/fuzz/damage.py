"""Hypothesis strategies of damaged files: valid content with other values, keys, bytes and lengths."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Numbers at the edges of what a file, an int64, a float and an object can hold.
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400]),
    st.sampled_from([0.0, -0.0, 1e-320, 1.5, -3.25, 1e308, -1e308, float("nan"), float("inf"), float("-inf")]),
    st.integers(-5, 1000),
)
TEXTS = st.one_of(
    st.sampled_from(["", "x", "null", "1", "1e999", "done", "../..", "a\nb", "\0", "\ud800", "[bold]", "x" * 5000]),
    st.text(max_size=5),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(TEXTS, part, max_size=3)),
    max_leaves=6,
)
DEPTHS = st.sampled_from([10, 40, 60, 900, 5000, 200_000])


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to each part of a JSON value, the value itself first."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths(part, (*path, key))


@st.composite
def changed_values(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value in which one or two parts are replaced, removed, added or repeated."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(paths(value))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(VALUES)
            continue
        *way, last = path
        parent = value
        for key in way:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if kind == "replace":
            parent[last] = draw(VALUES)
        elif kind == "remove":
            del parent[last]
        elif isinstance(parent, dict):
            parent[draw(TEXTS)] = draw(VALUES)
        else:
            parent.append(draw(st.one_of(VALUES, st.just(copy.deepcopy(parent[last])))))
    return value


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are flipped, cut off, inserted, repeated or zero."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zeros"]))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "flip":
        flipped = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            if flipped:
                flipped[draw(st.integers(0, len(flipped) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
    if kind == "repeat":
        return content + content[place:]
    return content[:place] + bytes(len(content) - place)


@st.composite
def damaged_json(draw: st.DrawFn, valid: Any) -> bytes:
    """The bytes of a JSON document that is damaged in its values or as bytes, or that is nested deeply somewhere."""
    kind = draw(st.sampled_from(["values", "values", "values", "bytes", "nesting"]))
    if kind == "values":
        return json.dumps(draw(changed_values(valid))).encode()
    text = json.dumps(valid).encode()
    if kind == "bytes":
        return draw(damaged_bytes(text))
    depth, (start, end) = draw(DEPTHS), draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
    nested = start * depth + b"1" + (end * depth if draw(st.booleans()) else b"")
    place = draw(st.sampled_from([0, len(text), text.find(b": ") + 2, text.rfind(b": ") + 2]))
    rest = text.find(b",", place)
    return text[:place] + nested + (text[rest:] if rest >= 0 else b"")


@st.composite
def damaged_lines(draw: st.DrawFn, valid: list[Any]) -> bytes:
    """The bytes of a JSONL file of which one line or the whole is damaged."""
    lines = [json.dumps(line).encode() for line in valid]
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged_bytes(b"\n".join(lines) + b"\n"))
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = draw(damaged_json(valid[number]))
    return b"\n".join(lines) + b"\n" * draw(st.booleans())
