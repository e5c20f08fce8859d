"""Damaged JSON that a machine wrote is named, and costs its own line alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import files
from analysis.errors import TableError


@pytest.mark.parametrize(
    "content", [b"", b"\xff{}", b"[" * 100_000, b"[" * 100 + b"]" * 100, b"null", b'{"a": "x"}', b"1" * 5000]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(TableError, match=r"a\.json: .*mend it"):
        files.read_json(tmp_path / "a.json", dict[str, int], remedy="mend it")
    with pytest.raises(TableError, match=str(tmp_path)):
        files.read_json(tmp_path)


def test_damaged_lines_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = (b'{"a": 1}', b'{"a": "x"}', b'{"\xff": 2}', b"null", b'{"a": 1, "to', b"[" * 9999 + b"]", b'{"a": 2}', b"")
    path.write_bytes(b"\n".join(lines))
    warnings: list[str] = []
    assert list(files.read_json_lines(path, dict[str, int], warn=warnings.append)) == [(1, {"a": 1}), (7, {"a": 2})]
    assert [warning.partition(": line ")[2].split()[0] for warning in warnings] == ["2", "3", "4", "6"]
