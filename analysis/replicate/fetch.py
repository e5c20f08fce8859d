"""Downloads public tables from the repositories that published them, at pinned commits, and checks their sha256.

Used by `scaling replicate --fetch` and notebooks/replicate_chinchilla.py.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from analysis.errors import TableError
from analysis.files import write_by_rename
from analysis.replicate.study import PinnedFile, Replication

GITHUB_RAW = "https://raw.githubusercontent.com"
TIMEOUT_SECONDS = 60


def fetch_files(study: Replication, folder: Path, base: str = GITHUB_RAW) -> list[Path]:
    """Downloads the files of a study into folder/<the study's folder>, except those already there with the right hash.

    Args:
      base: address that OWNER/REPOSITORY/COMMIT/PATH is appended to.
    Raises:
      TableError: the file is not there or cannot be reached, or its bytes are not those of the pinned commit.
    """
    return [_fetch_file(study, file, folder / study.folder / file.local_name, base) for file in study.files]


def _fetch_file(study: Replication, file: PinnedFile, path: Path, base: str) -> Path:
    if path.exists() and _sha256(path.read_bytes()) == file.sha256:
        return path
    address = f"{base}/{study.repository}/{study.commit}/{urllib.parse.quote(file.path)}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        raise TableError(
            f"{address}: {error.code} {error.reason}; if the repository moved, put the file at {path} by hand"
        ) from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise TableError(f"{address}: not reached ({reason}); without a network, put the file at {path}") from None
    content_sha256 = _sha256(content)
    if content_sha256 != file.sha256:
        raise TableError(
            f"{address}: sha256 {content_sha256[:12]}... must be {file.sha256[:12]}..., the pinned one; nothing was "
            f"written. Try again, or download the file of that commit to {path} by hand"
        )
    return write_by_rename(path, lambda temporary: temporary.write_bytes(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
