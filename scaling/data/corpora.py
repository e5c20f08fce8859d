"""All kinds of corpora, and the parser of their names.

Names: `stdlib`, `walk?nodes=32`, `zipf?facts=512`, `text:notes/*.md`, `jsonl:a.jsonl?field=body`,
`parquet:a.parquet?column=text`, `hf:NAME_OR_FOLDER?split=train`, `mixture:NAME`, `seqio:TASK?module=my_package.tasks`,
and `simulated?noise=.01`, which has no documents (scaling/training/simulated_run.py). After `?` come fields, joined
by `&`.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import math
import os
import re
import sys
import sysconfig
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.config.fields import build_dataclass
from scaling.data.corpus import SPLITS, Corpus, NamedCorpus, SplitName, is_held_out, read_utf8
from scaling.data.file_corpora import HuggingFace, Jsonl, Parquet, Text
from scaling.data.simulated_corpus import Simulated
from scaling.data.synthetic import Walk, Zipf
from scaling.errors import InputError, suggest_name
from scaling.quantities import parse_count, parse_quantity
from scaling.type_checks import describe_value

__all__ = ["CORPUS_KINDS", "SPLITS", "Corpus", "Mixture", "Seqio", "SplitName", "Stdlib", "parse_corpus", "parse_rates"]


@dataclass(frozen=True)
class Stdlib(NamedCorpus):
    """Every .py file of the running interpreter's standard library; tens of MB, no download. The hash of a file's name
    decides whether it is a validation document."""

    kind: typing.ClassVar[str] = "stdlib"

    def files(self) -> tuple[tuple[str, Path], ...]:
        """(relative POSIX path, path) of every file, sorted by the relative path; installed packages are left out."""
        root, installed = Path(sysconfig.get_path("stdlib")), {"site-packages", "dist-packages"}
        paths = ((path.relative_to(root), path) for path in root.rglob("*.py"))
        own = ((relative.as_posix(), path) for relative, path in paths if not installed & {*relative.parts})
        return tuple(sorted((relative, path) for relative, path in own if path.is_file()))

    def source_hash(self) -> str:
        """Hash of the relative paths and contents, 16 hex digits."""
        digest = hashlib.sha256()
        for relative, path in self.files():
            content = path.read_bytes()
            digest.update(f"{relative}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:16]

    def count_skipped(self) -> int:
        """Number of files that `documents` leaves out because they are not UTF-8 (test data of the interpreter)."""
        return sum(read_utf8(path) is None for _, path in self.files())

    def documents(self, split: SplitName) -> Iterator[str]:
        for relative, path in self.files():
            if is_held_out(relative) == (split == "validation") and (text := read_utf8(path)) is not None:
                yield text


@dataclass(frozen=True)
class Mixture(NamedCorpus):
    """Several corpora at stated rates, written by `scaling data mixture`. Only its token shards exist."""

    path: str
    kind: typing.ClassVar[str] = "mixture"

    def source_hash(self) -> str:
        raise InputError(
            f"corpus {self.name!r}: a mixture has no files of its own; prepare it with "
            f"scaling data mixture {self.path} CORPUS=RATE ... --train-tokens N"
        )

    def documents(self, split: SplitName) -> Iterator[str]:
        raise InputError(f"corpus {self.name!r}: a mixture has no documents of its own; name one of its corpora")


@dataclass(frozen=True)
class Seqio(NamedCorpus):
    """A seqio Task or Mixture that a Python module of yours registers.

    path: its name. module: the module that registers it. feature: the feature whose ids become the shards. A Mixture
    ends where the first of its Tasks ends, and leaves out Tasks that lack the split."""

    path: str
    module: str = ""
    feature: str = "targets"
    kind: typing.ClassVar[str] = "seqio"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.module:
            raise InputError("module = '': must name the Python module that registers the Task; add ?module=NAME")

    def source_hash(self) -> str:
        """Hash of the module's file, 16 hex digits. The module is not imported, so a change in the data that the Task
        reads goes unnoticed. Raises InputError when there is no such module."""
        folders: list[str] | None = ["", *sys.path]
        parts = self.module.split(".")
        spec = None
        # Each package of a dotted name says where the next part is to be looked for.
        for depth in range(len(parts)):
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), folders)
            folders = spec.submodule_search_locations if spec else None
            if folders is None:
                break
        if spec is None or spec.name != self.module or not spec.origin:
            raise InputError(
                f"corpus {self.name!r}: module = {self.module!r}: must be a module in this folder or on sys.path; "
                "set PYTHONPATH"
            )
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]

    def documents(self, split: SplitName) -> Iterator[str]:
        raise InputError(f"corpus {self.name!r}: holds tokens, no text; only scaling data prepare reads it")


SHOWN_CHARACTERS = 200
"""A longer name of a corpus is cut in errors."""
CORPUS_KINDS: dict[str, type[NamedCorpus]] = {
    kind.kind: kind for kind in (Stdlib, Walk, Zipf, Text, Jsonl, Parquet, HuggingFace, Mixture, Seqio, Simulated)
}


def parse_corpus(name: str) -> Corpus:
    """The corpus with this name, `KIND[:PATH][?FIELD=VALUE&...]`. Reads no file.

    Raises InputError on an unknown kind or field (and suggests the nearest), a missing path or a wrong value.
    """
    shown = repr(name) if len(name) <= SHOWN_CHARACTERS else describe_value(name)
    kind_path, query = _split_query(name, shown)
    kind_name, colon, path = kind_path.partition(":")
    if kind_name not in CORPUS_KINDS:
        raise InputError(f"unknown corpus {shown}{_suggest_kind(name, kind_name)}")
    kind = CORPUS_KINDS[kind_name]
    field_types = {n: t for n, t in typing.get_type_hints(kind).items() if typing.get_origin(t) is not typing.ClassVar}
    if ("path" in field_types) != bool(path) or (colon and not path):
        raise InputError(
            f"corpus {shown}: "
            + (f"needs a path; write {kind_name}:PATH" if "path" in field_types else f"{kind_name} takes no path")
        )
    for field in query:
        if field not in field_types or field == "path":
            raise InputError(
                f"corpus {shown}: unknown field {field}{suggest_name(field, field_types.keys() - {'path'})}"
            )
    values = {field: _parse_value(shown, field, text, field_types[field]) for field, text in query.items()}
    try:
        return build_dataclass(kind, {**values, **({"path": path} if path else {})}, "")
    except InputError as error:
        raise InputError(f"corpus {shown}: {error}") from None


def parse_rates(name: str, parts: Iterable[str]) -> dict[str, float]:
    """Parses CORPUS=RATE texts into {corpus: rate}, for the mixture called `name`. Raises InputError on any other text,
    an unknown corpus, or a rate that is not above 0."""
    rates: dict[str, float] = {}
    for part in parts:
        corpus, _, text = part.rpartition("=")
        try:
            rate = float(parse_quantity(text))
        except ValueError:
            rate = math.nan
        if not corpus or math.isnan(rate):
            raise InputError(f"mixture {name!r}: {part!r}: must be CORPUS=RATE, such as stdlib=2.0")
        if isinstance(parse_corpus(corpus), Mixture | Seqio):
            raise InputError(f"mixture {name!r}: {corpus!r} holds tokens, no documents; name corpora of documents")
        if corpus in rates:
            raise InputError(f"mixture {name!r}: {corpus!r} appears twice; give it one rate")
        if not 0 < rate < math.inf:
            raise InputError(f"mixture {name!r}: rate of {corpus!r} = {rate}: must be more than 0 and finite")
        rates[corpus] = rate
    if not rates:
        raise InputError(f"mixture {name!r}: has no corpus; add CORPUS=RATE ...")
    return rates


def _suggest_kind(name: str, kind_name: str) -> str:
    """The end of the error about an unknown kind: of a path, the name with the kind of its file."""
    path = Path(kind_name)
    is_path = os.path.exists(kind_name) or "/" in kind_name or path.suffix
    if is_path and not name.startswith(f"{kind_name}:") and len(name) <= SHOWN_CHARACTERS:
        suffixes = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
        kinds = [suffixes[suffix] for suffix in path.suffixes if suffix in suffixes]
        return f"; did you mean {kinds[0] if kinds else 'text'}:{name}?"
    return suggest_name(kind_name, CORPUS_KINDS)


def _split_query(name: str, shown: str) -> tuple[str, dict[str, str]]:
    """KIND:PATH and the fields after the `?`. A `?` that no FIELD=VALUE follows belongs to the path, as in a glob.

    shown: the name in errors. Raises InputError on a field that is given twice."""
    match = re.fullmatch(r"(?s)(.*?)\?(\w+=[^&]*(?:&\w+=[^&]*)*)", name)
    if not match:
        return name, {}
    query: dict[str, str] = {}
    for part in match[2].split("&"):
        field, _, value = part.partition("=")
        if field in query:
            raise InputError(f"corpus {shown}: {field} is given twice: must be given once")
        query[field] = value
    return match[1], query


def _parse_value(shown: str, field: str, text: str, field_type: Any) -> Any:
    if field_type is bool:
        if text not in ("true", "false"):
            raise InputError(f"corpus {shown}: {field} = {text!r}: must be true or false")
        return text == "true"
    if field_type not in (int, float):
        return text
    try:
        return parse_count(text) if field_type is int else float(parse_quantity(text))
    except ValueError as error:
        raise InputError(f"corpus {shown}: {field} = {describe_value(text)}: {error}") from None
