"""Files written by rename, so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.errors import TableError


def write_by_rename(path: Path, writer: Callable[[Path], Any]) -> Path:
    """Writes a file beside its place and renames it in, so that a reader sees the old file or the whole new one.

    Raises TableError where there is no room, or no leave to write.
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
    """Writes JSON by rename. Raises ValueError on a number that JSON lacks (infinite, not a number)."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    return write_by_rename(path, lambda temporary: temporary.write_text(text))
