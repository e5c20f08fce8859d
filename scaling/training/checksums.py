"""Checksums of the files of a checkpoint, which show damage that came after it was written.

    checkpoints/<step>/default/             what Orbax writes and restores
    checkpoints/<step>/default/checksums.json   {"algorithm": "crc32", "files": {"<path in default/>": [bytes, crc32]}}

Process 0 writes checksums.json when the files of all processes are written, before Orbax renames the folder to its
step: a step that has its name has its checksums, and takes them along when it is copied, renamed or deleted. CRC-32
finds every flipped bit and every damage within 32 bits, and misses others once in 4e9. Steps of earlier versions have
no checksums and are restored unchecked. The sweep runner uses this module without JAX.
"""

from __future__ import annotations

import functools
import itertools
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

from scaling.errors import InputError
from scaling.files import read_json, write_json

ITEM = "default"
"""The folder in a step in which Orbax keeps the state."""
CHECKSUMS = "checksums.json"
STEP_METADATA = "_CHECKPOINT_METADATA"
"""Orbax's own JSON in a step. It is not needed to restore the step."""
HANDLER = "ChecksummedHandler"
"""The class of checkpoints.py, which STEP_METADATA names in a step with checksums: one that has lost checksums.json is
damaged, not old."""
CHUNK_BYTES = 1 << 20


class DamagedCheckpointError(InputError):
    """A checkpoint is not as it was written. reason: what is wrong with it; remedy: what to do."""

    def __init__(self, step_folder: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{step_folder}: the checkpoint is damaged ({reason}): {remedy}")
        self.reason = reason


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending. Orbax names other folders otherwise, and so does
    `set_aside`."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())


def has_been_set_aside(step_folder: Path) -> bool:
    """Whether a checkpoint of this name was damaged and has been renamed."""
    return any(step_folder.parent.glob(f"{step_folder.name}.damaged*"))


def write_checksums(item: Path) -> None:
    """Writes the checksums of all files below the folder `default` of a step. Raises OSError when it cannot."""
    files = sorted(path for path in item.rglob("*") if path.is_file())
    table = {path.relative_to(item).as_posix(): checksum(path) for path in files}
    # Not durable: a table that a loss of power tears counts as damage, as the files do that it may have torn too.
    write_json(item / CHECKSUMS, {"algorithm": "crc32", "files": table}, durable=False)


def checksum(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file, which is read in chunks."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def has_checksums(step_folder: Path) -> bool:
    """Whether a checkpoint has its checksums."""
    return (step_folder / ITEM / CHECKSUMS).exists()


def find_damage(step_folder: Path) -> str:
    """What is wrong with the files of a checkpoint, or "". Says once on stderr when one has no checksums because an
    earlier version wrote it.

    Raises InputError when a file may not be read.
    """
    item = step_folder / ITEM
    try:
        if not has_checksums(step_folder):
            if HANDLER in (step_folder / STEP_METADATA).read_text(errors="replace"):
                return f"{ITEM}/{CHECKSUMS} is missing"
            _say_unchecked()
            return ""
        table = read_json(item / CHECKSUMS)["files"]
        return next((reason for name, written in table.items() if (reason := _difference(item, name, written))), "")
    except PermissionError as error:
        raise InputError(f"{error.filename}: may not be read: give this user the right to") from None
    except FileNotFoundError:
        return f"{ITEM}/{CHECKSUMS} and {STEP_METADATA} are missing"
    except (InputError, OSError, LookupError, TypeError, AttributeError):
        return f"{ITEM}/{CHECKSUMS} is not whole"


def _difference(item: Path, name: str, written: list[int]) -> str:
    """How the file `name` differs from what was written, [bytes, CRC-32], or ""."""
    try:
        size, crc = checksum(item / name)
    except PermissionError:
        raise
    except OSError as error:
        return f"{ITEM}/{name}: {error.strerror}"
    if size != written[0]:
        return f"{ITEM}/{name} has {size} bytes, and was written with {written[0]}"
    return "" if crc == written[1] else f"{ITEM}/{name} is not as it was written: its checksum differs"


@functools.cache
def _say_unchecked() -> None:
    print("note: checkpoints of an earlier version have no checksums; they are restored unchecked", file=sys.stderr)


def set_damaged_aside(step_folders: Iterable[Path]) -> None:
    """Sets checkpoints aside that are damaged, up to the first that is whole."""
    for step_folder in step_folders:
        if not (reason := find_damage(step_folder)):
            return
        set_aside(step_folder, reason)


def set_aside(step_folder: Path, reason: str) -> None:
    """Renames a damaged checkpoint, so that nothing restores it, and says on stderr which, why and where it is now."""
    names = (f"{step_folder.name}.damaged{f'.{number}' * (number > 1)}" for number in itertools.count(1))
    aside = next(path for path in map(step_folder.with_name, names) if not path.exists())
    try:
        step_folder.rename(aside)
    except FileNotFoundError:
        return  # another process has set it aside
    except OSError as error:
        remedy = f"it cannot be renamed ({error.strerror}); rename it to {aside.name} and run the same command again"
        raise DamagedCheckpointError(step_folder, reason, remedy) from None
    what = f"the checkpoint is damaged ({reason}): renamed to {aside.name}; the run goes on from the state before it"
    print(f"{step_folder}: {what}", file=sys.stderr, flush=True)
