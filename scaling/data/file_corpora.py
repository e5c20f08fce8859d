"""Corpora in the user's own files: text, JSONL, Parquet and Hugging Face datasets.

The hash of a document's text decides whether it is a validation document (corpus.py).
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
from scaling.files import refuse_url


@dataclass(frozen=True)
class FileCorpus(NamedCorpus):
    """A corpus in local files. path: a file, a glob, or a folder, which stands for every file below it whose name ends
    in `suffix`."""

    path: str

    suffix: typing.ClassVar[str] = ""

    def files(self) -> tuple[Path, ...]:
        """The files, sorted. Raises InputError when there is none, and suggests the nearest name."""
        refuse_url(f"corpus {self.name!r}: path", self.path)
        root = Path(self.path)
        if root.is_dir():
            paths = [path for path in root.rglob(f"*{self.suffix}") if path.is_file()]
        elif root.is_file():
            paths = [root]
        else:
            paths = [Path(name) for name in glob.glob(self.path, recursive=True) if Path(name).is_file()]
        if not paths:
            siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
            raise InputError(
                f"corpus {self.name!r}: no such file" + (suggest_name(root.name, siblings) if siblings else "")
            )
        return tuple(sorted(paths))

    def source_hash(self) -> str:
        """Hash of paths, sizes and modification times, 16 hex digits: a rewritten file counts as changed."""
        stamps = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]

    def read_documents(self) -> Iterator[str]:
        """All documents, of both splits, in order."""
        raise NotImplementedError

    def documents(self, split: SplitName) -> Iterator[str]:
        return split_documents(self.read_documents, split)


@dataclass(frozen=True)
class Text(FileCorpus):
    """UTF-8 text files. document: what one document is: a file, a line, or a paragraph (which ends at blank lines).
    Empty means a file when there are several files, and a paragraph when there is one. Line ends are kept: joined, the
    documents are the text."""

    document: Literal["", "file", "line", "paragraph"] = ""
    kind: typing.ClassVar[str] = "text"

    def read_documents(self) -> Iterator[str]:
        files = self.files()
        unit = self.document or ("file" if len(files) > 1 else "paragraph")
        for path in files:
            if unit == "line":
                yield from _read_lines(path)
            elif unit == "paragraph":
                # A paragraph runs up to and including the blank lines after it, or to the end of the file.
                paragraphs = re.finditer(r"(?s).+?(?:\n(?:[ \t]*\r?\n)+|\Z)", _read_utf8_or_raise(path))
                yield from (paragraph[0] for paragraph in paragraphs)
            elif text := _read_utf8_or_raise(path):
                yield text


def _read_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        try:
            yield from lines
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def _read_utf8_or_raise(path: Path) -> str:
    text = read_utf8(path)
    if text is None:
        raise InputError(f"{path}: not UTF-8; convert the file to UTF-8")
    return text


@dataclass(frozen=True)
class Jsonl(FileCorpus):
    """JSONL files: one JSON object a line. field: the key of the string that is the document."""

    field: str = "text"
    kind: typing.ClassVar[str] = "jsonl"
    suffix: typing.ClassVar[str] = ".jsonl"

    def read_documents(self) -> Iterator[str]:
        for path in self.files():
            for number, line in enumerate(_read_lines(path), 1):
                if line.strip():
                    yield self._parse_line(line, f"{path}, line {number}")

    def _parse_line(self, line: str, where: str) -> str:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: not a JSON object")
        if self.field not in record:
            raise InputError(f"{where}: no field {self.field!r}{suggest_name(self.field, record)}")
        return _checked_string(record[self.field], f"{where}: field {self.field!r}")


def _checked_string(value: Any, where: str) -> str:
    """The value. Raises InputError, beginning with `where`, when it is no string or holds a lone surrogate."""
    if not isinstance(value, str):
        raise InputError(f"{where} is {type(value).__name__}: must be a string")
    try:
        encode_utf8(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return value


@dataclass(frozen=True)
class Parquet(FileCorpus):
    """Parquet files, read 1024 rows at a time. column: the column of strings that are the documents."""

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
                    yield _checked_string(value, f"{path}: column {self.column!r}")


@dataclass(frozen=True)
class HuggingFace(NamedCorpus):
    """A dataset of the package `datasets`.

    path: a folder written by save_to_disk, or whatever load_dataset accepts, local folders included. config: the
    dataset's configuration. split: the one of its splits that becomes the corpus; both our splits are taken from it.
    column: the column of strings that are the documents."""

    path: str
    config: str = ""
    split: str = "train"
    column: str = "text"
    kind: typing.ClassVar[str] = "hf"

    def source_hash(self) -> str:
        """The fingerprint that `datasets` keeps of the dataset, hashed to 16 hex digits."""
        return hashlib.sha256(str(_load_hugging_face(self)._fingerprint).encode()).hexdigest()[:16]

    def read_documents(self) -> Iterator[str]:
        """All documents, of both splits, in order."""
        dataset = _load_hugging_face(self)
        if self.column not in dataset.column_names:
            raise InputError(
                f"corpus {self.name!r}: no column {self.column!r}{suggest_name(self.column, dataset.column_names)}"
            )
        for row in dataset.select_columns([self.column]):
            yield _checked_string(row[self.column], f"corpus {self.name!r}: column {self.column!r}")

    def documents(self, split: SplitName) -> Iterator[str]:
        return split_documents(self.read_documents, split)


@functools.lru_cache(maxsize=4)
def _load_hugging_face(corpus: HuggingFace) -> Any:
    """The dataset. Raises InputError when the package, the dataset or its split is absent."""
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
