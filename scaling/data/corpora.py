"""Corpora by name: `stdlib`, `walk?nodes=32`, `zipf?facts=512`, `text:notes/*.md`, `jsonl:a.jsonl?field=body`,
`parquet:a.parquet?column=text`, `hf:NAME_OR_FOLDER?split=train`, `mixture:NAME`, `seqio:TASK?module=my_package.tasks`,
`simulated?noise=.01`, which has no documents (scaling/training/simulated_run.py).
After `?` stand fields, joined by `&`.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import math
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

__all__ = ["CORPUS_KINDS", "SPLITS", "Corpus", "Mixture", "Seqio", "SplitName", "Stdlib", "parse_corpus", "parse_rates"]


@dataclass(frozen=True)
class Stdlib(NamedCorpus):
    """Every .py file of the running interpreter's standard library, held-out split by file. Tens of MB, no download."""

    kind: typing.ClassVar[str] = "stdlib"

    def files(self) -> tuple[tuple[str, Path], ...]:
        """(relative POSIX path, path), sorted by the former."""
        root = Path(sysconfig.get_path("stdlib"))
        found = ((path.relative_to(root), path) for path in root.rglob("*.py"))
        ours = ((rel.as_posix(), path) for rel, path in found if not {"site-packages", "dist-packages"} & {*rel.parts})
        return tuple(sorted((rel, path) for rel, path in ours if path.is_file()))

    def source_hash(self) -> str:
        """Hash of the relative paths and contents, 16 hex."""
        digest = hashlib.sha256()
        for relative, path in self.files():
            content = path.read_bytes()
            digest.update(f"{relative}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:16]

    def count_skipped(self) -> int:
        """Files that are not UTF-8 (test data of the interpreter itself), hence left out."""
        return sum(read_utf8(path) is None for _, path in self.files())

    def documents(self, split: SplitName) -> Iterator[str]:
        for relative, path in self.files():
            if is_held_out(relative) == (split == "validation") and (text := read_utf8(path)) is not None:
                yield text


@dataclass(frozen=True)
class Mixture(NamedCorpus):
    """Several corpora at stated rates, written by `scaling data mixture`."""

    path: str
    kind: typing.ClassVar[str] = "mixture"

    def source_hash(self) -> str:
        raise InputError(
            f"corpus {self.name!r}: prepare it with scaling data mixture {self.path} CORPUS=RATE ... --train-tokens N"
        )

    def documents(self, split: SplitName) -> Iterator[str]:
        raise InputError(f"corpus {self.name!r}: has no documents of its own; name one of its corpora")


@dataclass(frozen=True)
class Seqio(NamedCorpus):
    """A seqio Task or Mixture that a Python module of yours registers; `feature` is the one of its features to write.
    A Mixture ends where the first of its Tasks does, and leaves out those without the split."""

    path: str
    module: str = ""
    feature: str = "targets"
    kind: typing.ClassVar[str] = "seqio"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.module:
            raise InputError("needs module=NAME, the Python module that registers this Task or Mixture")

    def source_hash(self) -> str:
        """Hash of the module's file, which is not run, 16 hex: what lies behind the Task may change unseen."""
        where: list[str] | None = ["", *sys.path]
        parts = self.module.split(".")
        spec = None
        for depth in range(len(parts)):
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), where)
            where = spec.submodule_search_locations if spec else None
            if where is None:
                break
        if spec is None or spec.name != self.module or not spec.origin:
            raise InputError(f"corpus {self.name!r}: no module {self.module!r} here or on the path of Python")
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]

    def documents(self, split: SplitName) -> Iterator[str]:
        raise InputError(f"corpus {self.name!r}: its text is tokens already; only scaling data prepare reads it")


CORPUS_KINDS: dict[str, type[NamedCorpus]] = {
    kind.kind: kind for kind in (Stdlib, Walk, Zipf, Text, Jsonl, Parquet, HuggingFace, Mixture, Seqio, Simulated)
}


def parse_corpus(name: str) -> Corpus:
    """The corpus of this name, `KIND[:PATH][?FIELD=VALUE&...]`. Reads no file.

    Raises InputError on an unknown kind or field, with the nearest name, a missing path or a wrong value.
    """
    kind_path, query = _split_query(name)
    kind_name, colon, path = kind_path.partition(":")
    if kind_name not in CORPUS_KINDS:
        raise InputError(f"unknown corpus {name!r}{suggest_name(kind_name, CORPUS_KINDS)}")
    kind = CORPUS_KINDS[kind_name]
    hints = {n: h for n, h in typing.get_type_hints(kind).items() if typing.get_origin(h) is not typing.ClassVar}
    if ("path" in hints) != bool(path) or (colon and not path):
        raise InputError(
            f"corpus {name!r}: "
            + (f"{kind_name}:PATH needs a path" if "path" in hints else f"{kind_name} takes no path")
        )
    for field in query:
        if field not in hints or field == "path":
            raise InputError(f"corpus {name!r}: unknown field {field}{suggest_name(field, hints.keys() - {'path'})}")
    given = {field: _value(name, text, hints[field]) for field, text in query.items()}
    try:
        return build_dataclass(kind, {**given, **({"path": path} if path else {})}, "")
    except InputError as error:
        raise InputError(f"corpus {name!r}: {error}") from None


def parse_rates(name: str, parts: Iterable[str]) -> dict[str, float]:
    """CORPUS=RATE texts as a table. Raises InputError on any other text, an unknown corpus, a rate not above 0."""
    table: dict[str, float] = {}
    for part in parts:
        corpus, _, text = part.rpartition("=")
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not corpus or math.isnan(rate):
            raise InputError(f"mixture {name!r}: {part!r}: must be CORPUS=RATE")
        if isinstance(parse_corpus(corpus), Mixture | Seqio):
            raise InputError(f"mixture {name!r}: {corpus!r} is mixed or tokenized already; name corpora of documents")
        if corpus in table:
            raise InputError(f"mixture {name!r}: {corpus!r} is named twice")
        if not 0 < rate < math.inf:
            raise InputError(f"mixture {name!r}: rate of {corpus!r} is {rate}, must be more than 0")
        table[corpus] = rate
    if not table:
        raise InputError(f"mixture {name!r}: names no corpus; must be CORPUS=RATE ...")
    return table


def _split_query(name: str) -> tuple[str, dict[str, str]]:
    found = re.fullmatch(r"(?s)(.*?)\?(\w+=[^&]*(?:&\w+=[^&]*)*)", name)
    if not found:
        return name, {}
    return found[1], dict(part.split("=", 1) for part in found[2].split("&"))


def _value(name: str, text: str, hint: Any) -> Any:
    if hint not in (int, float):
        return text
    try:
        return hint(text)
    except ValueError:
        raise InputError(f"corpus {name!r}: {text!r} is not a {'whole ' if hint is int else ''}number") from None
