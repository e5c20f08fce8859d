"""Corpora in the user's own files: text, JSONL, Parquet, Hugging Face datasets. Documents are held out by content.

Not in the design's list of modules: corpora.py held two concepts, what is embedded and what is read.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib
import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaling.data.corpus import NamedCorpus, SplitName, read_utf8, split_documents
from scaling.data.tokenizer import encode_utf8
from scaling.errors import InputError, suggest_name


@dataclass(frozen=True)
class FileCorpus(NamedCorpus):
    """A corpus in local files. path: a file, a glob, or a folder (everything under it that ends in `suffix`)."""

    path: str

    suffix: typing.ClassVar[str] = ""

    def files(self) -> tuple[Path, ...]:
        """Sorted. Raises InputError when there is none."""
        root = Path(self.path)
        if root.is_dir():
            found = [path for path in root.rglob(f"*{self.suffix}") if path.is_file()]
        elif root.is_file():
            found = [root]
        else:
            found = [Path(name) for name in glob.glob(self.path, recursive=True) if Path(name).is_file()]
        if not found:
            siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
            raise InputError(
                f"corpus {self.name!r}: no such file" + (suggest_name(root.name, siblings) if siblings else "")
            )
        return tuple(sorted(found))

    def source_hash(self) -> str:
        """Hash of paths, sizes and modification times, 16 hex: a rewritten file counts as changed."""
        stamps = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]

    def read_documents(self) -> Iterator[str]:
        raise NotImplementedError

    def documents(self, split: SplitName) -> Iterator[str]:
        return split_documents(self.read_documents, split)


@dataclass(frozen=True)
class Text(FileCorpus):
    """UTF-8 text. document: a file, a line, or a paragraph (ends at blank lines); empty means a file where there are
    several and a paragraph where there is one. Line ends stay: the documents in order are the text."""

    document: Literal["", "file", "line", "paragraph"] = ""
    kind: typing.ClassVar[str] = "text"

    def read_documents(self) -> Iterator[str]:
        files = self.files()
        unit = self.document or ("file" if len(files) > 1 else "paragraph")
        for path in files:
            if unit == "line":
                yield from _lines(path)
            elif unit == "paragraph":
                text = _utf8_text_or_raise(path)
                yield from (found[0] for found in re.finditer(r"(?s).+?(?:\n(?:[ \t]*\r?\n)+|\Z)", text))
            elif text := _utf8_text_or_raise(path):
                yield text


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        try:
            yield from lines
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 ({error.reason})") from None


def _utf8_text_or_raise(path: Path) -> str:
    text = read_utf8(path)
    if text is None:
        raise InputError(f"{path}: not UTF-8")
    return text


@dataclass(frozen=True)
class Jsonl(FileCorpus):
    """One JSON object a line; the document is its string `field`."""

    field: str = "text"
    kind: typing.ClassVar[str] = "jsonl"
    suffix: typing.ClassVar[str] = ".jsonl"

    def read_documents(self) -> Iterator[str]:
        for path in self.files():
            for number, line in enumerate(_lines(path), 1):
                if line.strip():
                    yield self._document(line, f"{path}, line {number}")

    def _document(self, line: str, where: str) -> str:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: not a JSON object")
        if self.field not in record:
            raise InputError(f"{where}: no field {self.field!r}{suggest_name(self.field, record)}")
        return _string(record[self.field], f"{where}: field {self.field!r}")


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is {type(value).__name__}: must be a string")
    try:
        encode_utf8(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return value


@dataclass(frozen=True)
class Parquet(FileCorpus):
    """The strings of one column of Parquet files, read a batch at a time."""

    column: str = "text"
    kind: typing.ClassVar[str] = "parquet"
    suffix: typing.ClassVar[str] = ".parquet"

    def read_documents(self) -> Iterator[str]:
        parquet = importlib.import_module("pyarrow.parquet")
        for path in self.files():
            try:
                file = parquet.ParquetFile(path)
            except Exception as error:
                raise InputError(f"{path}: not Parquet ({' '.join(str(error).split())[:120]})") from None
            if self.column not in file.schema_arrow.names:
                raise InputError(
                    f"{path}: no column {self.column!r}{suggest_name(self.column, file.schema_arrow.names)}"
                )
            for rows in file.iter_batches(batch_size=1024, columns=[self.column]):
                for value in rows.column(0).to_pylist():
                    yield _string(value, f"{path}: column {self.column!r}")


@dataclass(frozen=True)
class HuggingFace(NamedCorpus):
    """A dataset of `datasets`: a folder written by save_to_disk, else whatever load_dataset takes (local folders too).
    config: its configuration; split: which of its splits becomes the corpus, of which the held-out part is taken."""

    path: str
    config: str = ""
    split: str = "train"
    column: str = "text"
    kind: typing.ClassVar[str] = "hf"

    def source_hash(self) -> str:
        """Fingerprint that `datasets` keeps, hashed to 16 hex."""
        return hashlib.sha256(str(_hugging_face(self)._fingerprint).encode()).hexdigest()[:16]

    def read_documents(self) -> Iterator[str]:
        dataset = _hugging_face(self)
        if self.column not in dataset.column_names:
            raise InputError(
                f"corpus {self.name!r}: no column {self.column!r}{suggest_name(self.column, dataset.column_names)}"
            )
        for row in dataset.select_columns([self.column]):
            yield _string(row[self.column], f"corpus {self.name!r}: column {self.column!r}")

    def documents(self, split: SplitName) -> Iterator[str]:
        return split_documents(self.read_documents, split)


@functools.lru_cache(maxsize=4)
def _hugging_face(corpus: HuggingFace) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            f"corpus {corpus.name!r} needs the package datasets: pip install 'scaling-laws[data]'"
        ) from None
    folder = Path(corpus.path)
    try:
        if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(corpus.path)
        else:
            loaded = datasets.load_dataset(corpus.path, corpus.config or None)
    except Exception as error:
        raise InputError(f"corpus {corpus.name!r}: {type(error).__name__}, {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        return loaded
    if corpus.split not in loaded:
        raise InputError(f"corpus {corpus.name!r}: no split {corpus.split!r}{suggest_name(corpus.split, loaded)}")
    return loaded[corpus.split]
