"""Files that processes share: JSON written by rename, and JSON lines appended whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scaling.errors import InputError


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes JSON by rename, so that a reader sees the old file or the whole new one.

    durable: waits for the disk, so that this holds after a loss of power too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
