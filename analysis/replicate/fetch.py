"""Public tables from the repositories that published them, at pinned commits, checked by their hash."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from analysis.errors import TableError
from analysis.files import write_by_rename
from analysis.replicate.study import File, Study

BASE = "https://raw.githubusercontent.com"
TIMEOUT_SECONDS = 60


def fetch(study: Study, folder: Path, base: str = BASE) -> list[Path]:
    """Gets the files of a study into folder/<study's own folder>, those apart that already lie there whole.

    Args:
      base: address under which OWNER/REPOSITORY/COMMIT/PATH is found.
    Raises:
      TableError: the file is not there or cannot be reached, or its bytes are not those of the pinned commit.
    """
    return [_fetch(study, file, folder / study.folder / file.local, base) for file in study.files]


def _fetch(study: Study, file: File, path: Path, base: str) -> Path:
    if path.exists() and _sha256(path.read_bytes()) == file.sha256:
        return path
    address = f"{base}/{study.repository}/{study.commit}/{urllib.parse.quote(file.path)}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        raise TableError(
            f"{address}: {error.code} {error.reason}; if the repository moved, put the file at {path} by hand"
        ) from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise TableError(f"{address}: not reached ({reason}); without a network, put the file at {path}") from None
    found = _sha256(content)
    if found != file.sha256:
        raise TableError(
            f"{address}: sha256 {found[:12]}... where {file.sha256[:12]}... was pinned, nothing was written; "
            f"something between changed it: try again, or get the file at that commit by hand, to {path}"
        )
    return write_by_rename(path, lambda temporary: temporary.write_bytes(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
