"""Corpora by name: `stdlib`, `walk?nodes=32`, `zipf?facts=512`, `text:notes/*.md`, `jsonl:a.jsonl?field=body`,
`parquet:a.parquet?column=text`, `hf:NAME_OR_FOLDER?split=train`, `mixture:NAME`. After `?` stand fields, joined by `&`.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.documents import SPLITS, Corpus, Named, SplitName, held_out, read_utf8
from scaling.readers import HuggingFace, Jsonl, Parquet, Text
from scaling.strict import InputError, build, nearest
from scaling.synthetic import Walk, Zipf

__all__ = ["CORPORA", "SPLITS", "Corpus", "Mixture", "SplitName", "Stdlib", "parse_corpus"]


@dataclass(frozen=True)
class Stdlib(Named):
    """Every .py file of the running interpreter's standard library, held-out split by file. Tens of MB, no download."""

    kind: typing.ClassVar[str] = "stdlib"

    def files(self) -> tuple[tuple[str, Path], ...]:
        """(relative POSIX path, path), sorted by the former."""
        root = Path(sysconfig.get_path("stdlib"))
        found = ((path.relative_to(root), path) for path in root.rglob("*.py"))
        ours = ((rel.as_posix(), path) for rel, path in found if not {"site-packages", "dist-packages"} & {*rel.parts})
        return tuple(sorted((rel, path) for rel, path in ours if path.is_file()))

    def source(self) -> str:
        """Hash of the relative paths and contents, 16 hex."""
        digest = hashlib.sha256()
        for relative, path in self.files():
            content = path.read_bytes()
            digest.update(f"{relative}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:16]

    def skipped(self) -> int:
        """Files that are not UTF-8 (test data of the interpreter itself), hence left out."""
        return sum(read_utf8(path) is None for _, path in self.files())

    def documents(self, split: SplitName) -> Iterator[str]:
        for relative, path in self.files():
            if held_out(relative) == (split == "validation") and (text := read_utf8(path)) is not None:
                yield text


@dataclass(frozen=True)
class Mixture(Named):
    """Several corpora at stated rates. Only seqio prepares it: `scaling.tasks.prepare_mixture`."""

    path: str
    kind: typing.ClassVar[str] = "mixture"

    def source(self) -> str:
        raise InputError(
            f"corpus {self.name!r}: prepare it with python -m scaling.tasks mixture {self.path} CORPUS=RATE ..."
        )

    def documents(self, split: SplitName) -> Iterator[str]:
        raise NotImplementedError(self.name)


CORPORA: dict[str, type[Named]] = {
    kind.kind: kind for kind in (Stdlib, Walk, Zipf, Text, Jsonl, Parquet, HuggingFace, Mixture)
}


def parse_corpus(name: str) -> Corpus:
    """The corpus of this name, `KIND[:PATH][?FIELD=VALUE&...]`. Reads no file.

    Raises InputError on an unknown kind or field, with the nearest name, a missing path or a wrong value.
    """
    kind_path, query = _split_query(name)
    kind_name, colon, path = kind_path.partition(":")
    if kind_name not in CORPORA:
        raise InputError(f"unknown corpus {name!r}{nearest(kind_name, CORPORA)}")
    kind = CORPORA[kind_name]
    hints = {n: h for n, h in typing.get_type_hints(kind).items() if typing.get_origin(h) is not typing.ClassVar}
    if ("path" in hints) != bool(path) or (colon and not path):
        raise InputError(
            f"corpus {name!r}: "
            + (f"{kind_name}:PATH needs a path" if "path" in hints else f"{kind_name} takes no path")
        )
    for field in query:
        if field not in hints or field == "path":
            raise InputError(f"corpus {name!r}: unknown field {field}{nearest(field, hints.keys() - {'path'})}")
    given = {field: _value(name, text, hints[field]) for field, text in query.items()}
    try:
        return build(kind, {**given, **({"path": path} if path else {})}, "")
    except InputError as error:
        raise InputError(f"corpus {name!r}: {error}") from None


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
