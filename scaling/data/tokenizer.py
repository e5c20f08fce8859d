"""Text to token ids and back without loss, with the exact number of text bytes that each id stands for.

Not in the design's list of modules: readers (corpora), shards (tokens) and seqio (tasks) all need it, and it depends
on none of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scaling.errors import InputError

SPACE_SYMBOL = "▁"
"""U+2581, by which SentencePiece writes a space inside a piece."""


class Tokenizer(Protocol):
    """Ids in [0, size). `pieces`: [V] text bytes of every id; empty for pad, end of document and unknown.
    `bytes_per_token`: int64 [V], how many those are."""

    @property
    def name(self) -> str: ...
    @property
    def slug(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pieces(self) -> tuple[bytes, ...]: ...
    @property
    def bytes_per_token(self) -> np.ndarray: ...
    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, ids: Iterable[int]) -> str: ...


def piece_bytes(vocabulary: Tokenizer, i: int) -> bytes:
    """Text bytes of an id; none of one beyond the vocabulary, of which a model may have some."""
    return vocabulary.pieces[i] if i < len(vocabulary.pieces) else b""


def encode_utf8(text: str) -> bytes:
    """UTF-8 of text. Raises InputError on a lone surrogate, which no UTF-8 text can hold."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of {text[:40]!r}... is a lone surrogate: the text is not Unicode"
        ) from None


@dataclass(frozen=True)
class ByteTokenizer:
    """Byte b is id b + 3; pad 0, end of document 1, unknown 2: the ids of seqio.ByteVocabulary
    (Xue et al. 2022, ByT5)."""

    name: str = "byte"
    slug: str = "byte"
    size: int = 259
    eos_id: int = 1

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """[V] the byte of every id; empty for specials."""
        return (b"", b"", b"", *(bytes([byte]) for byte in range(256)))

    @cached_property
    def bytes_per_token(self) -> np.ndarray:
        return np.r_[np.zeros(3, np.int64), np.ones(256, np.int64)]

    def encode(self, text: str) -> np.ndarray:
        """uint16 ids, one for each UTF-8 byte, without end of document."""
        return np.frombuffer(encode_utf8(text), np.uint8).astype(np.uint16) + np.uint16(3)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; specials and ids beyond the vocabulary are dropped, bytes that are not UTF-8 become
        U+FFFD."""
        return b"".join(piece_bytes(self, int(i)) for i in ids).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model (Kudo & Richardson 2018) that loses nothing: see `train_sentencepiece`.

    A literal U+2581, which SentencePiece cannot tell from a space, is spelt as its three bytes.
    """

    name: str

    def __post_init__(self) -> None:
        if not Path(self.name).is_file():
            raise InputError(
                f"vocabulary {self.name!r}: no such SentencePiece model; known otherwise: byte; "
                "scaling data vocabulary CORPUS makes one"
            )
        _check_lossless(self)

    @cached_property
    def slug(self) -> str:
        return f"{Path(self.name).stem}-{hashlib.sha256(Path(self.name).read_bytes()).hexdigest()[:8]}"

    @cached_property
    def processor(self) -> Any:
        try:
            return _sentencepiece().SentencePieceProcessor(model_file=self.name)
        except RuntimeError as error:
            raise InputError(f"vocabulary {self.name!r}: not a SentencePiece model ({str(error)[:80]})") from None

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """[V] text bytes of every id; empty for specials."""
        return tuple(_piece_bytes(self.processor, i) for i in range(self.size))

    @property
    def size(self) -> int:
        return self.processor.get_piece_size()

    @property
    def eos_id(self) -> int:
        return self.processor.eos_id()

    @cached_property
    def bytes_per_token(self) -> np.ndarray:
        return np.array([len(piece) for piece in self.pieces], np.int64)

    @cached_property
    def space_ids(self) -> tuple[int, ...]:
        """The ids that spell a literal U+2581 byte by byte."""
        return tuple(self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode())

    def encode(self, text: str) -> np.ndarray:
        """int32 ids without end of document. Raises InputError on a lone surrogate."""
        encode_utf8(text)
        first, *others = self.processor.encode(text.split(SPACE_SYMBOL))
        return np.array([*first, *(i for ids in others for i in (*self.space_ids, *ids))], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """As that of bytes."""
        return b"".join(piece_bytes(self, int(i)) for i in ids).decode("utf-8", errors="replace")


def _sentencepiece() -> Any:
    try:
        return importlib.import_module("sentencepiece")
    except ImportError:
        raise InputError(
            "a SentencePiece vocabulary needs the package sentencepiece: pip install 'scaling-laws[data]'"
        ) from None


def _piece_bytes(processor: Any, i: int) -> bytes:
    if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i):
        return b""
    if processor.is_byte(i):
        return bytes([int(processor.id_to_piece(i)[3:5], 16)])
    return processor.id_to_piece(i).replace(SPACE_SYMBOL, " ").encode()


def _check_lossless(vocabulary: SentencePieceTokenizer) -> None:
    probe = "".join(map(chr, range(256))) + "  ﬁ ½\u00a0a\u0301\r\n\t▁😀\ufeff  "
    if vocabulary.eos_id < 0:
        raise InputError(f"vocabulary {vocabulary.name!r}: has no end-of-sentence id; train it with eos_id=1")
    if vocabulary.decode(vocabulary.encode(probe)) != probe:
        raise InputError(
            f"vocabulary {vocabulary.name!r}: does not give every text back; train it with byte_fallback, "
            "identity normalisation, no dummy prefix and remove_extra_whitespaces=false"
        )


def load_tokenizer(name: str) -> Tokenizer:
    """ "byte" or the path of a SentencePiece model. Raises InputError when it is missing or loses text."""
    return ByteTokenizer() if name == "byte" else SentencePieceTokenizer(name)


def train_sentencepiece(texts: Iterable[str], size: int, path: Path | str) -> SentencePieceTokenizer:
    """Trains a BPE model of `size` ids and writes it to `path`, whole or not at all. Raises InputError when the texts
    do not suffice or `path` cannot be written.

    Every text comes back exactly: bytes as a fallback, identity normalisation, no dummy prefix, no white space removed.
    """
    path, texts = Path(path), iter(texts)
    if (first := next(texts, None)) is None:
        raise InputError(f"vocabulary of {size} ids could not be trained: no text to train it on")
    model = io.BytesIO()
    failures: list[InputError] = []
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": size,
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.9995,
        "minloglevel": 2,
    }
    try:
        _sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=_sentences(itertools.chain([first], texts), failures), model_writer=model, **settings
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise InputError(f"vocabulary of {size} ids could not be trained: {' '.join(str(error).split())}") from None
    _write_whole(path, model.getvalue())
    return SentencePieceTokenizer(str(path))


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_name(f".writing-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise InputError(
            f"vocabulary {str(path)!r}: cannot be written ({error.strerror}: {error.filename or path})"
        ) from None


def _sentences(texts: Iterable[str], failures: list[InputError], characters: int = 1000) -> Iterator[str]:
    """Pieces of lines, below SentencePiece's limit of 4192 bytes, above which it would skip them.

    Notes an InputError of the texts in `failures`: SentencePiece wraps it.
    """
    try:
        for text in texts:
            for line in text.split("\n"):
                yield from (line[i : i + characters] for i in range(0, len(line), characters))
    except InputError as error:
        failures.append(error)
        raise
