"""Writes files by rename, so that a reader sees the old file or the whole new one, never half of one; and reads and
checks the JSON that machines wrote.

scaling/files.py has the same readers for its own package.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from analysis.errors import TableError
from analysis.terminal import printable
from analysis.type_checks import find_misfit

MAX_DEPTH = 50
"""How deep lists and objects may be nested in a file; those that we write have less than 10 levels."""


def write_by_rename(path: Path, writer: Callable[[Path], Any]) -> Path:
    """Calls `writer` with a temporary path in the same folder, then renames that file to `path` and returns `path`.

    Raises TableError if the file cannot be written: no space, or no permission.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TableError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON by rename and returns the path. Raises ValueError for a number that is infinite or not a number."""

    def write(temporary: Path) -> None:
        # piece by piece: the text of a large table's fit.json, at once in memory, takes several times its size
        with temporary.open("w") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")

    return write_by_rename(path, write)


@functools.cache
def warn_once(text: str) -> None:
    """Prints a warning on stderr, once in a process."""
    print(printable(f"warning: {text}"), file=sys.stderr, flush=True)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError, and nothing else, on any other text, and on what would fail
    later: lists or objects that are nested more than MAX_DEPTH deep, and halves of surrogate pairs."""
    text = text.decode() if isinstance(text, bytes) else text
    return decode_json(text, _DECODER)


def decode_json(text: str, decoder: json.JSONDecoder) -> Any:
    """As `parse_json`, with a decoder that may accept more, such as NaN."""
    try:
        value = decoder.decode(text)
        is_too_deep = _is_deeper(value, MAX_DEPTH)
    except RecursionError:
        value, is_too_deep = None, True
    if is_too_deep:
        raise ValueError(f"lists or objects are nested more than {MAX_DEPTH} deep")
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError, on "\ud800" alone
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists or objects are nested more than `depth` deep."""
    if not isinstance(value, list | dict):
        return False
    return depth == 0 or any(
        _is_deeper(part, depth - 1) for part in (value.values() if isinstance(value, dict) else value)
    )


def read_json(path: Path, expected: Any = Any, *, remedy: str = "delete it and run the same command again") -> Any:
    """The content of a JSON file that a machine wrote.

    expected: the type that it must have: a TypedDict, or any annotation that analysis/type_checks.py knows. remedy:
    what the user can do about a damaged file. Raises TableError that names the file when it is absent, cannot be read
    or is not whole JSON, and the part and its value when that is not as expected.
    """
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise TableError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}); make it a readable file") from None
    except ValueError as error:
        raise TableError(f"{path}: not whole JSON ({error}); {remedy}") from None
    if misfit := find_misfit(value, expected):
        raise TableError(f"{path}: {misfit}; {remedy}")
    return value


def read_json_lines(
    path: Path, expected: Any = Any, *, warn: Callable[[str], None] = warn_once
) -> Iterator[tuple[int, Any]]:
    """The lines of a JSONL file as (line number from 1, value); none of a file that is not there.

    Torn lines are left out: the last one after a crash, and one in the middle where a later process went on. Every
    other line that is not as expected is left out too, and `warn` is called with its number and what is wrong.

    expected: the type of a line, as in `read_json`.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}); make it a readable file") from None
    yield from parse_json_lines(content, path, expected, warn=warn)


def parse_json_lines(
    content: bytes, path: Path, expected: Any = Any, *, warn: Callable[[str], None] = warn_once
) -> Iterator[tuple[int, Any]]:
    """As `read_json_lines`, of the content of a file. path: of the file, for warnings."""
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            value = parse_json(line)
            misfit = find_misfit(value, expected)
        except ValueError as error:
            if is_torn(line):
                continue
            value, misfit = None, str(error)
        if misfit:
            warn(f"{path}: line {number} is left out: {misfit}")
        else:
            yield number, value


def is_torn(line: bytes) -> bool:
    """Whether a line of JSONL is empty, or an object that ends before its last brace, as a crash leaves it."""
    line = line.strip(b" \t\r\n\0")
    return not line or (line.startswith(b"{") and not line.endswith(b"}"))
