"""Writes by rename, lines of JSON, locks, and folders put in place of others."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest

from scaling import files
from scaling.errors import InputError, exception_chain


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": math.nan})
    assert files.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")


def test_torn_lines_are_left_out_and_harm_no_later_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(files.read_json_lines(path)) == []
    files.append_json_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert list(files.read_json_lines(path)) == [(1, {"step": 1})]
    files.append_json_line(path, {"step": 3})
    assert list(files.read_json_lines(path)) == [(1, {"step": 1}), (3, {"step": 3})]


@pytest.mark.parametrize(
    "content", [b"", b"\xff{}", b"[" * 100_000, b"[" * 100 + b"]" * 100, b"null", b'{"a": "x"}', b"1" * 5000]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: .*mend it"):
        files.read_json(tmp_path / "a.json", dict[str, int], remedy="mend it")
    with pytest.raises(InputError, match=str(tmp_path)):
        files.read_json(tmp_path)


def test_damaged_lines_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = (b'{"a": 1}', b'{"a": "x"}', b'{"\xff": 2}', b"null", b'{"a": 1, "to', b"[" * 9999 + b"]", b'{"a": 2}', b"")
    path.write_bytes(b"\n".join(lines))
    warnings: list[str] = []
    assert list(files.read_json_lines(path, dict[str, int], warn=warnings.append)) == [(1, {"a": 1}), (7, {"a": 2})]
    assert [warning.partition(": line ")[2].split()[0] for warning in warnings] == ["2", "3", "4", "6"]
    assert all(warning.startswith(str(path)) for warning in warnings)


def test_a_damaged_file_is_set_aside_and_never_overwritten(tmp_path: Path) -> None:
    for content in ("a", "b", "c"):
        (tmp_path / "x.json").write_text(content)
        assert files.set_aside(tmp_path / "x.json").read_text() == content
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_lock_has_one_holder_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    with files.lock_file(path) as first, files.lock_file(path, wait=False) as second:
        assert (first, second) == (True, False)
    with files.lock_file(path, wait=False) as third:
        assert third


def test_a_file_system_without_locks_excludes_nobody_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.has_locks(tmp_path)
    assert files.try_lock(tmp_path / "lock")[1] is not None
    assert capsys.readouterr().err == ""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    assert not files.has_locks(tmp_path)
    assert files.try_lock(tmp_path / "lock") == (True, None)
    with files.lock_file(tmp_path / "lock") as first, files.lock_file(tmp_path / "lock", wait=False) as second:
        assert first
        assert second
    assert capsys.readouterr().err.count(str(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    files.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [folder.name for folder in tmp_path.iterdir()] == ["old"]


def test_the_chain_of_an_error_goes_to_the_first() -> None:
    first, second, third = OSError("first"), KeyError("second"), ValueError("third")
    third.__cause__, second.__context__ = second, first
    assert list(exception_chain(third)) == [third, second, first]
