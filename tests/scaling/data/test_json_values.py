"""JSON values of an array, or printed over several lines, with their line numbers, from text read in parts."""

import io
import itertools
import json
import tracemalloc
from typing import Any

import pytest

from scaling.data import json_values
from scaling.data.json_values import is_json_stream, read_json_stream
from scaling.errors import InputError

ROWS = [{"text": f'one {i} "quoted" \\ é\n', "n": [i, 1.5e300, None, True, {"a": {}}]} for i in range(200)]


def values(text: str) -> list[tuple[int, Any]]:
    return list(read_json_stream(io.StringIO(text).read, "a.json"))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_values_do_not_depend_on_how_they_are_printed_or_read(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "CHUNK", chunk)
    for text in (
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        ",\n".join(json.dumps(row) for row in ROWS),
    ):
        assert [value for _, value in values(text)] == ROWS


def test_a_value_has_the_number_of_its_first_line() -> None:
    assert [line for line, _ in values('[\n{"a": 1},\n\n{"a":\n 2}, {"a": 3}\n]')] == [2, 4, 5]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"a": 1},\n{"a": nul}]' + " " * 50, 2),
        ('[{"a": 1},\n{"a": "cut', 2),
        ('[{"a": 1},\n{"a": 1}', 2),
        ('{"a": 1}\n]', 2),
        ('{\n"a": 1,\n', 3),
    ],
)
def test_what_is_not_whole_json_names_the_line(text: str, line: int) -> None:
    with pytest.raises(InputError, match=rf"a\.json\D*\b{line}\b"):
        values(text)


def test_lines_of_objects_are_no_stream() -> None:
    assert not any(map(is_json_stream, (b'{"text": "a"}\n', b"", b"text")))
    assert all(map(is_json_stream, (b"[1]", b'\xef\xbb\xbf \n[{"', b'{\r\n "text"', b'{\n"text"')))


def test_a_large_array_is_not_held_in_memory() -> None:
    element = json.dumps({"text": "x" * 9990})
    parts = itertools.chain(["["], itertools.repeat(f"{element},", 3999), [f"{element}]"])
    tracemalloc.start()
    assert sum(1 for _ in read_json_stream(lambda size: next(parts, ""), "a.json")) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
