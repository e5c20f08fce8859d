"""Files that processes share: written by rename, appended by whole lines, locked, and checked when they are read."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scaling.errors import InputError
from scaling.terminal import printable
from scaling.type_checks import find_misfit

try:
    import fcntl
except ImportError:  # Windows has no flock: there, no lock excludes another process
    fcntl = None

MAX_DEPTH = 50
"""How deep lists and objects may be nested in a file; those that we write have less than 10 levels."""


@functools.cache
def warn_once(text: str) -> None:
    """Prints a warning on stderr, once in a process."""
    print(printable(f"warning: {text}"), file=sys.stderr, flush=True)


def refuse_url(name: str, path: Path | str) -> None:
    """Raises InputError where a path is a URL, such as gs://bucket/x: Python would take it for a local folder `gs:`.

    name: of the flag or field, for the error. A Path has lost one of the two slashes. A drive, as C:/, has one letter.
    """
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path)):
        scheme, rest = match.groups()
        raise InputError(
            f"{name} = {scheme}://{rest}: {scheme}:// is not supported: must be a path on this machine; "
            "download the file, or mount the bucket as a folder"
        )


def user_cache_folder() -> Path | None:
    """The folder of this program in the user's cache folder, which may not exist yet; None where the user has no home
    folder, as a container that runs under a number without an entry in /etc/passwd."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaling-laws"
    except RuntimeError:
        return None


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file by rename, so that a reader sees the old file or the whole new one. Makes its folder.

    durable: waits for the disk, so that this holds after a loss of power too. Raises OSError when it cannot be written;
    the old file then stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes JSON as `write_bytes` does. Raises ValueError on a number that JSON lacks (infinite, not a number)."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), durable=durable)


REPLACED_PREFIX = ".replaced-"
"""Begins the name of an old folder until `replace_folder` has deleted it."""


def replace_folder(new: Path, folder: Path) -> None:
    """Renames the folder `new` to `folder`. An old `folder` is moved aside first and deleted last, so that a killed
    process leaves the old one or the new one whole. Both must have the same parent."""
    old = folder.with_name(f"{REPLACED_PREFIX}{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def try_lock(path: Path, *, wait: bool = False) -> tuple[bool, int | None]:
    """Takes an exclusive lock (flock) on a file, which it creates.

    wait: wait until no other process holds it. Returns (whether it is ours, descriptor): the kernel frees the lock when
    the descriptor is closed in this process and in all that inherited it. Where the file system has no flock (ENOLCK on
    some shared folders) it is ours without a descriptor: then nothing keeps others out.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False, None
        except OSError:
            os.close(descriptor)
            return True, None
    return True, descriptor


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder, which must exist, has locks (flock). True on Windows, where other programs
    have locks of another kind."""
    if fcntl is None:
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def lock_file(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of `try_lock` inside the block, and creates the folder of the file. Yields whether it is ours;
    always true with `wait`. Where the file system has no locks, one line on stderr says that nothing keeps others
    out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_ours, descriptor = try_lock(path, wait=wait)
    if is_ours and descriptor is None:
        warning = "this disk has no file locks, so nothing stops a second process that writes here: start one at a time"
        print(printable(f"{path.parent}: {warning}"), file=sys.stderr, flush=True)
    try:
        yield is_ours
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError, and nothing else, on any other text, and on what would fail
    later: lists or objects that are nested more than MAX_DEPTH deep, and halves of surrogate pairs."""
    text = text.decode() if isinstance(text, bytes) else text
    try:
        value = _DECODER.decode(text)
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

    expected: the type that it must have: a TypedDict, or any annotation that scaling/type_checks.py knows. remedy: what
    the user can do about a damaged file. Raises InputError that names the file when it is absent, cannot be read or is
    not whole JSON, and the part and its value when that is not as expected.
    """
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it a readable file") from None
    except ValueError as error:
        raise InputError(f"{path}: not whole JSON ({error}); {remedy}") from None
    if misfit := find_misfit(value, expected):
        raise InputError(f"{path}: {misfit}; {remedy}")
    return value


def append_json_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one line of JSON. Where a crash left a torn last line, a newline comes first, so that only that line is
    lost."""
    torn = path.exists() and path.stat().st_size > 0 and not _ends_with_newline(path)
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(line) + "\n")


def read_json_lines(
    path: Path, expected: Any = Any, *, warn: Callable[[str], None] = warn_once
) -> Iterator[tuple[int, Any]]:
    """The lines of a JSONL file as (line number from 1, value); none of a file that is not there.

    Torn lines are left out: the last one after a crash, and one in the middle where a later process went on. Every
    other line that is not as expected is left out too, and `warn` is called with its number and what is wrong.

    expected: the type of a line, as in `read_json`.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it a readable file") from None
    for number, line in enumerate(text.split(b"\n"), 1):
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


def set_aside(path: Path) -> Path:
    """Renames a file, so that a new one can be written and the old one stays readable. Returns its new path: the name
    with `.old`, and a number where there is such a file."""
    names = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.count())
    new = next(name for name in names if not name.exists())
    path.rename(new)
    return new


def repair_json_lines(path: Path, expected: Any) -> None:
    """Sets a JSONL file aside that has damaged lines, and writes it anew without them. expected: as in `read_json`."""
    warnings: list[str] = []
    values = [value for _, value in read_json_lines(path, expected, warn=warnings.append)]
    if warnings:
        old = set_aside(path)
        for warning in warnings:
            warn_once(f"{warning}; {old} has it")
        write_bytes(path, b"".join(json.dumps(value).encode() + b"\n" for value in values))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
