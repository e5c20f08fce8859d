"""Corpora in the user's own files: text, JSON, Parquet and Hugging Face datasets.

The hash of a document's text decides whether it is a validation document (corpus.py).
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import hashlib
import importlib
import io
import itertools
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaling.data.corpus import NamedCorpus, SplitName, split_documents
from scaling.data.json_values import is_json_stream, read_json_stream
from scaling.data.source_files import COMPRESSED, decode_utf8, files_below, files_of_glob, open_source
from scaling.data.tokenizer import encode_utf8
from scaling.errors import InputError, suggest_name


@dataclass(frozen=True)
class UserCorpus(NamedCorpus):
    """A corpus of documents that the user has. skip_bad: whether documents that cannot be read are left out; else the
    first of them is an error."""

    skip_bad: bool = dataclasses.field(default=False, kw_only=True)

    def read_outcomes(self) -> Iterator[str | InputError]:
        """Each document of both splits, in order, or the error that says why it cannot be read, and where it is."""
        raise NotImplementedError

    def read_documents(self) -> Iterator[str]:
        """All documents, of both splits, in order. Raises the first error unless `skip_bad`."""
        for outcome in self.read_outcomes():
            if isinstance(outcome, str):
                yield outcome
            elif not self.skip_bad:
                raise outcome

    def skipped(self) -> Iterator[str]:
        """Where and why documents are left out if `skip_bad`. Reads the corpus once more."""
        return (str(outcome) for outcome in self.read_outcomes() if not isinstance(outcome, str))

    def documents(self, split: SplitName) -> Iterator[str]:
        return split_documents(self.read_documents, split)

    def advice_to_split(self) -> str:
        """What to do about a corpus of too few documents for two splits."""
        return "add documents"


@dataclass(frozen=True)
class FileCorpus(UserCorpus):
    """A corpus in local files, which may be compressed (gzip, zstandard, xz, bzip2).

    path: a file, a glob, or a folder, which stands for the files below it whose name matches the first of `patterns`
    that any name matches."""

    path: str

    patterns: typing.ClassVar[tuple[str, ...]] = ("(?s).*",)

    def files(self) -> tuple[Path, ...]:
        """The files, sorted. Raises InputError when there is none, and suggests the nearest name."""
        root = Path(self.path)
        if root.is_dir():
            below = files_below(root)
            matches = ([path for path in below if re.fullmatch(pattern, path.name)] for pattern in self.patterns)
            if not (paths := next(filter(None, matches), [])):
                names = sorted({path.suffix or path.name for path in below})
                raise InputError(
                    f"corpus {self.name!r}: no file below the folder is {self.kind}"
                    + (f"; its files end in {', '.join(names[:5])}; name one, or a glob" if names else "; it is empty")
                )
        else:
            paths = [root] if root.is_file() else files_of_glob(self.path)
        if not paths:
            siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
            raise InputError(
                f"corpus {self.name!r}: no such file" + (suggest_name(root.name, siblings) if siblings else "")
            )
        return tuple(paths)

    def unread_files(self) -> list[Path]:
        """Files of the folder that `files` leaves out, though their names match another of `patterns`."""
        if not Path(self.path).is_dir():
            return []
        of_kind = [path for path in files_below(Path(self.path)) if re.fullmatch("|".join(self.patterns), path.name)]
        return sorted(set(of_kind) - set(self.files()))

    def source_hash(self) -> str:
        """Hash of paths, sizes and modification times, 16 hex digits: a rewritten file counts as changed."""
        stamps = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]

    def read_outcomes(self) -> Iterator[str | InputError]:
        for path in self.files():
            try:
                yield from self.read_file(path)
            except InputError as error:  # the rest of the file cannot be read
                yield error

    def read_file(self, path: Path) -> Iterator[str | InputError]:
        """The outcomes of a file. Raises InputError where it cannot be read further."""
        raise NotImplementedError


@dataclass(frozen=True)
class Text(FileCorpus):
    """UTF-8 text files. document: what one document is: a file, a line, or a paragraph (which ends at blank lines).
    Empty means a file when there are several files, and a paragraph when there is one. Line ends are kept: joined, the
    documents are the text."""

    document: Literal["", "file", "line", "paragraph"] = ""
    kind: typing.ClassVar[str] = "text"

    @functools.cached_property
    def unit(self) -> str:
        """What one document is, when `document` leaves it open too."""
        return self.document or ("file" if len(self.files()) > 1 else "paragraph")

    def read_file(self, path: Path) -> Iterator[str | InputError]:
        with open_source(path) as file:
            if self.unit == "file":
                if content := file.read():
                    yield decode_utf8(content, path)
                return
            line = 1
            for content in file if self.unit == "line" else _paragraphs(file):
                yield _outcome(decode_utf8, content, path, line)
                line += content.count(b"\n")

    def advice_to_split(self) -> str:
        lines = dataclasses.replace(self, document="line")
        if len(list(itertools.islice(lines.read_documents(), 2))) > 1:
            return f"make each line a document: {lines.name}"
        return "break it into lines or paragraphs, or name more files"


def _paragraphs(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Joins lines to paragraphs. A paragraph runs up to and including the blank lines after it, or to the end."""
    paragraph: list[bytes] = []
    is_ended, size = False, 0
    for line in lines:
        is_blank = line.isspace() and re.fullmatch(rb"[ \t]*\r?\n", line) is not None
        if is_ended and not is_blank:
            yield b"".join(paragraph)
            paragraph, is_ended, size = [], False, 0
        # A blank line ends a paragraph of one character or more, its line end not counted.
        is_ended = is_blank and size > 1
        paragraph.append(line)
        size += len(line)
    if paragraph:
        yield b"".join(paragraph)


def _outcome(read: Callable[..., str], *arguments: Any) -> str | InputError:
    """What `read` returns, or the InputError that it raises."""
    try:
        return read(*arguments)
    except InputError as error:
        return error


@dataclass(frozen=True)
class Jsonl(FileCorpus):
    """JSON objects: one a line (JSONL), printed over several lines, or the elements of an array. field: the key of the
    string that is the document. Of a folder, the files that end in .jsonl, or where there are none, those that end in
    .json, .ndjson, .jsonl.gz and the like."""

    field: str = "text"
    kind: typing.ClassVar[str] = "jsonl"
    patterns: typing.ClassVar[tuple[str, ...]] = (r".*\.jsonl", rf".*\.(jsonl|ndjson|json){COMPRESSED}")

    def read_file(self, path: Path) -> Iterator[str | InputError]:
        with open_source(path) as file:
            if is_json_stream(file.peek(512)):
                characters = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
                try:
                    for line, value in read_json_stream(characters.read, str(path)):
                        yield _outcome(self._document, value, path, line)
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}: not UTF-8 ({error.reason}); convert it to UTF-8") from None
                return
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield _outcome(self._parse_line, line, path, number)

    def _parse_line(self, content: bytes, path: Path, line: int) -> str:
        text = decode_utf8(content, path, line)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON ({error})") from None
        return self._document(value, path, line)

    def _document(self, value: Any, path: Path, line: int) -> str:
        where = f"{path}, line {line}"
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a JSON object")
        if self.field not in value:
            raise InputError(f"{where}: no field {self.field!r}{suggest_name(self.field, value)}")
        return _checked_string(value[self.field], f"{where}: field {self.field!r}")


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
    patterns: typing.ClassVar[tuple[str, ...]] = (r".*\.parquet",)

    def read_file(self, path: Path) -> Iterator[str | InputError]:
        parquet = importlib.import_module("pyarrow.parquet")
        try:
            file = parquet.ParquetFile(path)
        except Exception as error:
            raise InputError(f"{path}: not Parquet ({' '.join(str(error).split())[:120]})") from None
        if self.column not in file.schema_arrow.names:
            raise InputError(f"{path}: no column {self.column!r}{suggest_name(self.column, file.schema_arrow.names)}")
        batches, rows = file.iter_batches(batch_size=1024, columns=[self.column]), 0
        while True:
            try:
                values = next(batches).column(0).to_pylist()
            except StopIteration:
                return
            except Exception as error:
                message = " ".join(str(error).split())[:120]
                raise InputError(f"{path}: damaged Parquet after row {rows} ({message})") from None
            for row, value in enumerate(values, rows + 1):
                yield _outcome(_checked_string, value, f"{path}, row {row}: column {self.column!r}")
            rows += len(values)


@dataclass(frozen=True)
class HuggingFace(UserCorpus):
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

    def read_outcomes(self) -> Iterator[str | InputError]:
        dataset = _load_hugging_face(self)
        if self.column not in dataset.column_names:
            raise InputError(
                f"corpus {self.name!r}: no column {self.column!r}{suggest_name(self.column, dataset.column_names)}"
            )
        for number, row in enumerate(dataset.select_columns([self.column]), 1):
            where = f"corpus {self.name!r}, row {number}: column {self.column!r}"
            yield _outcome(_checked_string, row[self.column], where)


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
