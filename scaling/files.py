"""Files that processes share: written by rename, appended by whole lines, or locked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no flock: there, no lock excludes another process
    fcntl = None


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


def replace_folder(new: Path, folder: Path) -> None:
    """Renames the folder `new` to `folder`. An old `folder` is moved aside first and deleted last, so that a killed
    process leaves the old one or the new one whole. Both must have the same parent."""
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.with_name(f".replaced-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


@contextlib.contextmanager
def lock_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds an exclusive flock on a file, which it creates; the kernel frees it when the process ends.

    wait: whether to wait for another holder; otherwise raises BlockingIOError when there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def read_json(path: Path) -> Any:
    """Raises InputError naming the file when it is absent or torn."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not whole JSON ({error}): a torn write? delete it and run again") from None


def append_json_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one line of JSON. A torn last line left by a crash is closed first, so that it harms no other."""
    torn = path.exists() and path.stat().st_size > 0 and not _ends_whole(path)
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(line) + "\n")


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
