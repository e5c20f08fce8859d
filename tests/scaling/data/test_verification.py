"""Token shards that are not what was prepared are refused, by the name of the file; others are read once a machine."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaling.data.prepare import prepare
from scaling.data.shards import open_shards, verify_prepared
from scaling.errors import InputError

CORPUS = "walk?tokens=4096"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return prepare(CORPUS, tmp_path / "out", backend="plain", shard_tokens=1000).folder


def bytes_read(folder: Path, *, again: bool = False) -> int:
    return verify_prepared(folder.parents[1], CORPUS, again=again)[1]


def total_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def flip_bit(path: Path) -> None:
    """Flips one bit, and leaves the size and the time of modification as they are."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def double(path: Path) -> None:
    np.save(path, np.load(path) * 2)


def edit_meta(path: Path) -> None:
    meta = json.loads(path.read_text())
    meta["splits"]["train"]["bytes"] *= 2
    path.write_text(json.dumps(meta))


def remove_checksums(folder: Path) -> None:
    """Makes a folder as it was before meta.json had checksums."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["checksums"]
    (folder / "meta.json").write_text(json.dumps(meta))


DAMAGES = [
    (flip_bit, "train-00002.bin"),
    (flip_bit, "validation-00000.bin"),
    (zero, "train-00000.bin"),
    (double, "bytes_per_token.npy"),
    (zero, "bytes_per_token.npy"),
]


@pytest.mark.parametrize(("damage", "name"), [*DAMAGES, (edit_meta, "meta.json")])
def test_a_damaged_file_is_named_with_the_command_that_prepares_it(
    folder: Path, damage: Callable[[Path], None], name: str
) -> None:
    damage(folder / name)
    named = f"{re.escape(str(folder / name))}: .*scaling data prepare '{re.escape(CORPUS)}' --directory"
    for use in (lambda: open_shards(folder.parents[1], CORPUS), lambda: prepare(CORPUS, folder.parents[1])):
        with pytest.raises(InputError, match=named):
            use()
    shutil.rmtree(folder)
    prepare(CORPUS, folder.parents[1], backend="plain")
    assert open_shards(folder.parents[1], CORPUS).train.tokens == 4097


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_shards_without_checksums_are_verified_by_their_fingerprint(
    folder: Path, damage: Callable[[Path], None], name: str
) -> None:
    remove_checksums(folder)
    fingerprint = open_shards(folder.parents[1], CORPUS).fingerprint
    damage(folder / name)
    with pytest.raises(InputError, match=rf"{fingerprint}.*{re.escape(name)}.*scaling data prepare"):
        open_shards(folder.parents[1], CORPUS)


def test_the_machine_that_prepared_reads_nothing_and_another_reads_once(folder: Path, tmp_path: Path) -> None:
    assert bytes_read(folder) == 0
    shutil.rmtree(tmp_path / "cache")
    assert [bytes_read(folder), bytes_read(folder)] == [total_bytes(folder), 0]
    assert bytes_read(folder, again=True) == total_bytes(folder)


def test_a_touched_file_is_read_again(folder: Path) -> None:
    (folder / "train-00001.bin").touch()
    assert [bytes_read(folder), bytes_read(folder)] == [total_bytes(folder), 0]


def test_without_a_cache_folder_every_opening_reads(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    assert [bytes_read(folder), bytes_read(folder)] == [total_bytes(folder)] * 2


def test_a_failing_disk_is_an_error_of_the_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(InputError, match=rf"{folder}.*{os.strerror(errno.EIO)}"):
        bytes_read(folder, again=True)
