"""Which files a folder or glob stands for, and their decompressed content, a part at a time."""

import bz2
import gzip
import lzma
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from scaling.data.source_files import files_below, files_of_glob, open_source
from scaling.errors import InputError

CONTENT = "".join(f"line {i} é\n" for i in range(50_000)).encode()


def zstandard(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


COMPRESSORS = pytest.mark.parametrize("compress", [gzip.compress, zstandard, lzma.compress, bz2.compress])


def write(path: Path, content: bytes = b"text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


def read(path: Path) -> bytes:
    with open_source(path) as file:
        return b"".join(file)


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "other" / "deep" / "b.txt")
    write(tmp_path / "root" / "a.txt")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "root" / "c.txt").symlink_to(tmp_path / "other" / "deep" / "b.txt")
    assert names(tmp_path / "root") == ["a.txt", "c.txt", "link/deep/b.txt"]


def test_a_folder_that_several_paths_lead_to_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "root" / "z" / "a.txt")
    (tmp_path / "root" / "a").symlink_to("z")
    write(tmp_path / "other" / "b.txt")
    for name in ("x", "y"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "other")
    assert names(tmp_path / "root") == ["x/b.txt", "z/a.txt"]


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path / "outside.txt")
    write(tmp_path / "root" / "deep" / "a.txt")
    (tmp_path / "root" / "deep" / "up").symlink_to("../..")
    (tmp_path / "root" / "self").symlink_to(".")
    assert names(tmp_path / "root") == ["deep/a.txt"]


def test_a_glob_over_circles_of_links_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path / "root" / "deep" / "a.txt")
    (tmp_path / "root" / "link").symlink_to("deep")
    assert files_of_glob(f"{tmp_path}/root/**/*.txt") == [
        tmp_path / "root" / name / "a.txt" for name in ("deep", "link")
    ]
    for name in "xyz":  # glob alone would follow 3^40 paths
        (tmp_path / "root" / "deep" / name).symlink_to("../..")
    with pytest.raises(InputError, match=r"root/\*\*/\*\.txt.*/[xyz] "):
        files_of_glob(f"{tmp_path}/root/**/*.txt")
    assert files_of_glob(f"{tmp_path}/root/*/*.txt")


@pytest.mark.parametrize("find", [files_below, lambda folder: files_of_glob(f"{folder}/*")])
def test_a_link_to_nowhere_is_named(tmp_path: Path, find: Callable[[Path], list[Path]]) -> None:
    write(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("gone.txt")
    with pytest.raises(InputError, match=r"/b\.txt\b.*\bgone\.txt\b"):
        find(tmp_path)


def test_hidden_files_are_left_out_unless_they_are_text(tmp_path: Path) -> None:
    for name in (".DS_Store", "deep/.DS_Store", "._a.txt", ".git/index", "a.txt", ".note", ".git/config"):
        write(tmp_path / name, b"\x00Bud1\xff" if name.endswith(("Store", "index")) else b"text")
    (tmp_path / ".#a.txt").symlink_to("user@machine.1234")  # a lock of Emacs
    assert names(tmp_path) == [".note", "a.txt"]


@COMPRESSORS
def test_compressed_files_are_known_by_their_content(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / "a.txt", compress(CONTENT[:9]) + compress(CONTENT[9:]))  # two members, as of `cat a b`
    assert read(path) == CONTENT


def test_zstandard_may_begin_with_a_frame_to_skip(tmp_path: Path) -> None:
    """As pzstd writes it."""
    assert read(write(tmp_path / "a", b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab" + zstandard(CONTENT))) == CONTENT


@COMPRESSORS
def test_a_cut_compressed_file_is_named(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(os.urandom(1000) + CONTENT)
    path = write(tmp_path / "a.gz", whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"/a\.gz\b"):
        read(path)


@COMPRESSORS
def test_a_large_compressed_file_is_not_held_in_memory(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / "a.gz", compress((b"x" * 9999 + b"\n") * 4000))
    tracemalloc.start()
    with open_source(path) as file:
        assert sum(map(len, file)) == 40_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_utf16_and_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/a\.txt\b.*UTF-16.*iconv"):
        read(write(tmp_path / "a.txt", "some text".encode("utf-16")))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(InputError, match=r"/a\.tar\.gz\b.*tar"):
        read(tmp_path / "a.tar.gz")
