"""The files that a corpus names by a path, and their content: folders, links, globs, compressed files."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import glob
import gzip
import importlib
import io
import itertools
import lzma
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scaling.errors import InputError


def _open_zstandard(path: Path) -> Any:
    return importlib.import_module("pyarrow").input_stream(str(path), compression="zstd")


COMPRESSIONS: dict[str, tuple[re.Pattern[bytes], Callable[[Path], Any]]] = {
    "gzip": (re.compile(rb"\x1f\x8b"), gzip.open),
    "zstandard": (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _open_zstandard),
    "xz": (re.compile(rb"\xfd7zXZ\x00"), lzma.open),
    "bzip2": (re.compile(rb"BZh[1-9]1AY&SY"), bz2.open),
}
"""How a compressed file begins, whatever its name, and what reads it. No text begins like this."""
COMPRESSED = r"(\.(gz|zst|xz|bz2))?"
"""Ends the pattern of a file's name that may be compressed."""
LEFT_OUT = re.compile(r"\._.*|\.git")
"""Files of macOS beside those of a user, and the folders of git. Neither is read from a folder."""


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and of all folders below it, sorted. Links are followed; a folder that several of them lead
    to is read once.

    Leaves out LEFT_OUT, and hidden files that are neither UTF-8 nor Parquet, such as .DS_Store. Raises InputError on a
    link that leads nowhere and on a folder that cannot be read.
    """
    files: list[Path] = []
    read: set[str] = set()
    # Folders come before links to folders, so that the path of a file that both lead to is the one without a link.
    pending = deque([folder])
    while pending:
        parent = pending.popleft()
        real_parent = os.path.realpath(parent)
        if real_parent in read:
            continue
        read.add(real_parent)
        try:
            names = sorted(os.listdir(parent))
        except OSError as error:
            raise InputError(f"{parent}: cannot be read ({error.strerror})") from None
        for path in (parent / name for name in names if not LEFT_OUT.fullmatch(name)):
            if path.is_dir() and path.is_symlink():
                # A link to a folder above it would bring in all of that folder's other contents.
                if not real_parent.startswith(os.path.join(os.path.realpath(path), "")):
                    pending.append(path)
            elif path.is_dir():
                pending.appendleft(path)
            elif path.name.startswith(".") and not _is_text_or_parquet(path):
                continue
            elif path.is_file() or _is_dangling(path):
                files.append(_existing(path))
    return sorted(files)


def files_of_glob(pattern: str) -> list[Path]:
    """The files that match a glob, sorted. Raises InputError on a link that leads nowhere, and where `**` would follow
    a link to a folder above it, and so find every file again and again."""
    if "**" in pattern:
        folder = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
        if (link := _find_circle(folder, tuple(map(str, folder.resolve().parents)), set())) is not None:
            raise InputError(
                f"{pattern}: {link} links to a folder above it, which ** follows without end; remove the link, or name "
                "a folder: it is read once"
            )
    return sorted(path for name in glob.glob(pattern, recursive=True) if (path := _existing(Path(name))).is_file())


def _find_circle(folder: Path, above: tuple[str, ...], visited: set[str]) -> Path | None:
    """The first link below a folder that leads to one of the folders on the way to it. above: the real paths of
    those."""
    real = os.path.realpath(folder)
    if real in above:
        return folder
    if real not in visited and folder.is_dir() and os.access(folder, os.R_OK):
        visited.add(real)
        folders = (Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
        return next(filter(None, (_find_circle(inner, (*above, real), visited) for inner in folders)), None)
    return None


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _existing(path: Path) -> Path:
    if _is_dangling(path):
        raise InputError(f"{path}: a link to {os.readlink(path)}, which does not exist; remove the link or repair it")
    return path


def _is_text_or_parquet(path: Path) -> bool:
    """Whether the first 64 KB of a file are UTF-8, or it is Parquet. False of a link that leads nowhere."""
    head = b""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may go on after the last byte
    except UnicodeDecodeError:
        return head.startswith(b"PAR1")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed while they are read. Raises InputError, also while they are read, when the file
    cannot be read, its compressed content is damaged or cut, or it is UTF-16 or a tar archive."""
    kind = ""
    try:
        with path.open("rb") as file:
            head = file.read(16)
        kind = next((kind for kind, (start, _) in COMPRESSIONS.items() if start.match(head)), "")
        raw = COMPRESSIONS[kind][1](path) if kind else path.open("rb", buffering=0)
        with raw, io.BufferedReader(raw, 1 << 16) as file:
            _check_head(path, file.peek(512))
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = f"damaged {kind}: is the file cut?" if kind else "cannot be read"
        raise InputError(f"{path}: {what} ({getattr(error, 'strerror', None) or error})") from None


def _check_head(path: Path, head: bytes) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: not UTF-8 but UTF-16; convert it: iconv -f UTF-16 -t UTF-8 '{path}'")
    if head[257:262] == b"ustar":
        raise InputError(f"{path}: a tar archive; unpack it and name the folder")


def decode_utf8(content: bytes, path: Path, line: int | None = None) -> str:
    """The text of some bytes, its line ends unchanged. Raises InputError, which names the file and the line, on bytes
    that are not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{path}, line {line}" if line else path
        raise InputError(f"{where}: not UTF-8 at byte {error.start} ({error.reason}); convert it to UTF-8") from None
