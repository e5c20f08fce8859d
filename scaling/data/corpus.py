"""What a corpus is: documents in two splits, a name, and the rule by which documents are held out.

Not in the design's list of modules: embedded corpora, readers and synthetic corpora share it.
"""

from __future__ import annotations

import hashlib
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Literal, Protocol

from scaling.config.fields import check_types
from scaling.data.tokenizer import encode_utf8

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")
HELD_OUT_ONE_IN = 40
"""One document in this many is validation, by hash: 2.5 %."""


class Corpus(Protocol):
    """name: canonical, parses back to the same corpus. slug: the same as a folder.
    source: a hash that changes when the documents may have."""

    @property
    def name(self) -> str: ...
    @property
    def slug(self) -> str: ...
    def source_hash(self) -> str: ...
    def documents(self, split: SplitName) -> Iterator[str]: ...


class NamedCorpus:
    """Name and slug of a corpus dataclass: its kind, its path and the fields that are not at their defaults."""

    kind: typing.ClassVar[str]

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def name(self) -> str:
        path = getattr(self, "path", "")
        changed = [
            f"{spec.name}={getattr(self, spec.name)}"
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


def is_held_out(key: str) -> bool:
    """Whether the document of this key is validation: a fixed hash, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) % HELD_OUT_ONE_IN == 0


def split_documents(read: Callable[[], Iterator[str]], split: SplitName) -> Iterator[str]:
    """Documents of a split, by the hash of their content, so that equal documents never straddle the splits.

    Where no hash falls into validation (a corpus of a few documents), the document of the smallest hash does.
    """
    smallest: str | None = None
    if not any(map(is_held_out, read())):
        smallest = min(read(), key=lambda text: hashlib.sha256(encode_utf8(text)).digest(), default=None)
    for text in read():
        if (is_held_out(text) or text == smallest) == (split == "validation"):
            yield text


def read_utf8(path: Path) -> str | None:
    """The text of a file, line ends untouched, or None where it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
