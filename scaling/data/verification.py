"""Verifies that token shards hold the bytes that were prepared: once on each machine, and again when a file changes.

meta.json holds the SHA-256 of each file and of its own other keys. Shards of before it did are verified against their
fingerprint, which is a hash of the same bytes. A file in the user's cache folder holds the sizes and times that the
files of a folder had when they were verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from scaling.errors import InputError
from scaling.files import user_cache_folder, write_json
from scaling.terminal import make_console

META, TABLE = "meta.json", "bytes_per_token.npy"
ANNOUNCED_BYTES = 1 << 30
"""From this size on, a line on standard error says that the shards are being read: from about a second on."""


def shard_files(meta: dict[str, Any]) -> list[str]:
    """Names of the files beside meta.json."""
    return [TABLE, *(shard for split in meta["splits"].values() for shard in split["shards"])]


def compute_checksums(folder: Path, meta: dict[str, Any]) -> dict[str, str]:
    """SHA-256 in hex digits by name of file. That of meta.json covers its keys but `checksums`."""
    facts = json.dumps({key: value for key, value in meta.items() if key != "checksums"}, sort_keys=True)
    names = shard_files(meta)
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        digests = list(threads.map(_hash_file, [folder / name for name in names]))
    return {META: hashlib.sha256(facts.encode()).hexdigest(), **dict(zip(names, digests, strict=True))}


def verify_shards(folder: Path, meta: dict[str, Any], command: str, *, again: bool = False) -> int:
    """Verifies the files of a folder of shards, and returns how many bytes were read: 0 when this machine has verified
    them before and no size or time of theirs has changed.

    command: what prepares the shards again. again: reads them in any case. Raises InputError, which names the file,
    when a file is absent or unreadable, has another size than meta.json says, or differs from what was prepared.
    """
    try:
        return _verify(folder, meta, command, again)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be read ({error.strerror}); make it readable, or delete {folder} and "
            f"run {command}"
        ) from None


def _verify(folder: Path, meta: dict[str, Any], command: str, again: bool) -> int:
    _check_sizes(folder, meta, command)
    stamps = _file_stamps(folder, meta)
    if not again and _read_record(folder) == stamps:
        return 0
    size = sum(stamp[0] for stamp in stamps.values())
    label = f"{folder}: verifying {size / 1e9:.1f} GB of token shards, once on this machine"
    with make_console(stderr=True).status(Text(label)) if size >= ANNOUNCED_BYTES else contextlib.nullcontext():
        if "checksums" in meta:
            _compare_checksums(folder, meta, command)
        else:
            _compare_fingerprint(folder, meta, command)
    _write_record(folder, stamps)
    return size


def record_verified(folder: Path, meta: dict[str, Any]) -> None:
    """Notes that the shards, which this process has just written and hashed, need no verification on this machine."""
    _write_record(folder, _file_stamps(folder, meta))


def _check_sizes(folder: Path, meta: dict[str, Any], command: str) -> None:
    sizes: dict[Path, int | None] = {folder / TABLE: None}
    for facts in meta["splits"].values():
        for number, shard in enumerate(facts["shards"]):
            tokens = min(facts["tokens"] - number * meta["shard_tokens"], meta["shard_tokens"])
            sizes[folder / shard] = tokens * np.dtype(meta["dtype"]).itemsize
    for path, expected in sizes.items():
        size = path.stat().st_size if path.is_file() else 0
        if size != expected if expected is not None else size == 0:
            must = f"{expected}, as {META} says" if expected is not None else "more"
            raise InputError(f"{path}: {size} bytes: must be {must}; delete {folder} and run {command}")


def _compare_checksums(folder: Path, meta: dict[str, Any], command: str) -> None:
    for name, digest in compute_checksums(folder, meta).items():
        if digest != meta["checksums"].get(name):
            raise InputError(
                f"{folder / name}: damaged: its content differs from what was prepared (its SHA-256 is {digest}: must "
                f"be {meta['checksums'].get(name)}); delete {folder} and run {command}"
            )


def _compare_fingerprint(folder: Path, meta: dict[str, Any], command: str) -> None:
    digest = hashlib.sha256(f"{meta['vocab_size']} {meta['eos_id']} {meta['dtype']}".encode())
    with contextlib.suppress(ValueError, OSError):  # no array in the file: the hash then differs
        digest.update(np.load(folder / TABLE).tobytes())
    for split, facts in meta["splits"].items():
        digest.update(split.encode())
        for shard in facts["shards"]:
            with (folder / shard).open("rb") as file:
                while content := file.read(1 << 20):
                    digest.update(content)
    if digest.hexdigest()[:16] != meta["fingerprint"]:
        raise InputError(
            f"{folder}: damaged: its content has fingerprint {digest.hexdigest()[:16]}: must be {meta['fingerprint']}, "
            f"as {META} says; one of {', '.join(shard_files(meta))} has changed; delete {folder} and run {command}"
        )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_stamps(folder: Path, meta: dict[str, Any]) -> dict[str, list[int]]:
    """[bytes, time of modification, time of change] by name of file. A copy that keeps the first time has another
    second one, and so it is verified."""
    stats = {name: (folder / name).stat() for name in (META, *shard_files(meta))}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}


def _record_path(folder: Path) -> Path | None:
    cache = user_cache_folder()
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return None if cache is None else cache / "verified" / f"{name}.json"


def _read_record(folder: Path) -> Any:
    """The stamps of the files when they were verified; None when there are none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text()) if (path := _record_path(folder)) else None
    return None


def _write_record(folder: Path, stamps: dict[str, list[int]]) -> None:
    """Where the cache folder cannot be written, the shards are verified each time that they are opened."""
    with contextlib.suppress(OSError):
        if path := _record_path(folder):
            write_json(path, stamps, durable=False)
