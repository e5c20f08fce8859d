"""The interface of a corpus (documents in two splits, and a name) and the rule that chooses validation documents.

Every kind of corpus in this folder implements it."""

from __future__ import annotations

import hashlib
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Literal, Protocol

from scaling.config.fields import check_types, require_path
from scaling.data.tokenizer import encode_utf8

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")
HELD_OUT_ONE_IN = 40
"""One document in this many is a validation document, chosen by hash: 2.5 %."""


class Corpus(Protocol):
    """What every corpus offers.

    name: canonical; `parse_corpus` turns it back into the same corpus. slug: the name as a folder. source_hash: 16 hex
    digits that change whenever the documents may have changed. documents: the texts of a split, in a fixed order.
    """

    @property
    def name(self) -> str: ...
    @property
    def slug(self) -> str: ...
    def source_hash(self) -> str: ...
    def documents(self, split: SplitName) -> Iterator[str]: ...


class NamedCorpus:
    """Gives a corpus dataclass its name and slug: the kind, the path and the fields that differ from their defaults."""

    kind: typing.ClassVar[str]

    def __post_init__(self) -> None:
        check_types(self)
        if hasattr(self, "path"):
            require_path(self, "path")

    @property
    def name(self) -> str:
        path = getattr(self, "path", "")
        changed = [
            f"{spec.name}={format_value(getattr(self, spec.name))}"
            for spec in fields(self)  # pyrefly: ignore
            if spec.name != "path" and getattr(self, spec.name) != spec.default
        ]
        return self.kind + (f":{path}" if path else "") + (f"?{'&'.join(changed)}" if changed else "")

    @property
    def slug(self) -> str:
        if self.name == self.kind:
            return self.kind
        stem = re.sub(r"\W+", "_", Path(getattr(self, "path", "")).stem)[:40]
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        return "-".join(filter(None, (self.kind, stem, digest)))


def format_value(value: object) -> str:
    """A field's value in the name of a corpus: true and false are written small."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_held_out(key: str) -> bool:
    """Whether the document with this key belongs to validation; a fixed hash, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) % HELD_OUT_ONE_IN == 0


def split_documents(read: Callable[[], Iterator[str]], split: SplitName) -> Iterator[str]:
    """Yields the documents of a split. The hash of a text decides its split, so equal texts are always in the same one.

    read: yields all documents; it is called again for every pass. Where no hash falls into validation, as in a corpus
    of few documents, the document with the smallest hash becomes the validation split.
    """
    smallest: str | None = None
    if not any(map(is_held_out, read())):
        smallest = min(read(), key=lambda text: hashlib.sha256(encode_utf8(text)).digest(), default=None)
    for text in read():
        if (is_held_out(text) or text == smallest) == (split == "validation"):
            yield text


def read_utf8(path: Path) -> str | None:
    """The text of a file with its line ends unchanged, or None when it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
