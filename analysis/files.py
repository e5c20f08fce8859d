"""Writes files by rename, so that a reader sees the old file or the whole new one, never half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.errors import TableError


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
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    return write_by_rename(path, lambda temporary: temporary.write_text(text))
