"""Lossless tokenizers: text to token ids and back, and how many bytes of text each id stands for.

Corpora, shards, measurements, generation and exports use them; config.data.vocabulary names one.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scaling.errors import InputError
from scaling.files import write_bytes

SPACE_SYMBOL = "▁"
"""U+2581: SentencePiece writes a space inside a piece as this character."""


class Tokenizer(Protocol):
    """What every tokenizer offers. Its ids are 0 to size - 1.

    name: as config.data.vocabulary has it. slug: the name as a folder. eos_id: the id that ends a document.
    pieces: [V] text bytes of every id; b"" for pad, end of document and unknown. bytes_per_token: int64 [V], the
    lengths of those.
    """

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


def piece_bytes(tokenizer: Tokenizer, i: int) -> bytes:
    """Text bytes of an id; b"" for an id beyond the tokenizer's, which a model with a padded vocabulary may emit."""
    return tokenizer.pieces[i] if i < len(tokenizer.pieces) else b""


def encode_utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text. Raises InputError on a lone surrogate, which UTF-8 cannot encode."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of {text[:40]!r}... is a lone surrogate: must be valid Unicode; remove it"
        ) from None


@dataclass(frozen=True)
class ByteTokenizer:
    """One id a byte: byte b is id b + 3; 0 is pad, 1 end of document, 2 unknown. These are the ids of
    seqio.ByteVocabulary (Xue et al. 2022, ByT5)."""

    name: str = "byte"
    slug: str = "byte"
    size: int = 259
    eos_id: int = 1

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """[V] the byte of every id; b"" for the three special ids."""
        return (b"", b"", b"", *(bytes([byte]) for byte in range(256)))

    @cached_property
    def bytes_per_token(self) -> np.ndarray:
        return np.r_[np.zeros(3, np.int64), np.ones(256, np.int64)]

    def encode(self, text: str) -> np.ndarray:
        """uint16 [n] ids, one a UTF-8 byte, without the end of document. Raises InputError on a lone surrogate."""
        return np.frombuffer(encode_utf8(text), np.uint8).astype(np.uint16) + np.uint16(3)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Special ids and ids beyond the tokenizer's are dropped; bytes that are not UTF-8 become
        U+FFFD."""
        return b"".join(piece_bytes(self, int(i)) for i in ids).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A lossless SentencePiece model (Kudo & Richardson 2018), as `train_sentencepiece` makes one. name: its path.

    SentencePiece cannot distinguish a literal U+2581 from a space, so this class encodes it as its three UTF-8 bytes.
    Raises InputError when the file is absent, is not such a model, or loses text.
    """

    name: str

    def __post_init__(self) -> None:
        if not Path(self.name).is_file():
            raise InputError(
                f"vocabulary {self.name!r}: no such file; must be byte or the path of a SentencePiece model, which "
                "scaling data vocabulary CORPUS trains"
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
            raise InputError(
                f"vocabulary {self.name!r}: not a SentencePiece model ({str(error)[:80]}); "
                "scaling data vocabulary CORPUS trains one"
            ) from None

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """[V] text bytes of every id; b"" for special ids."""
        return tuple(_sentencepiece_bytes(self.processor, i) for i in range(self.size))

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
        """The ids of the three bytes of a literal U+2581."""
        return tuple(self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode())

    def encode(self, text: str) -> np.ndarray:
        """int32 [n] ids without the end of document. Raises InputError on a lone surrogate."""
        encode_utf8(text)
        # The text is encoded in parts between literal U+2581, which are joined by the ids of its three bytes.
        first, *others = self.processor.encode(text.split(SPACE_SYMBOL))
        return np.array([*first, *(i for ids in others for i in (*self.space_ids, *ids))], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """As `ByteTokenizer.decode`."""
        return b"".join(piece_bytes(self, int(i)) for i in ids).decode("utf-8", errors="replace")


def _sentencepiece() -> Any:
    try:
        return importlib.import_module("sentencepiece")
    except ImportError:
        raise InputError(
            "a SentencePiece tokenizer needs the package sentencepiece: pip install 'scaling-laws[data]'"
        ) from None


def _sentencepiece_bytes(processor: Any, i: int) -> bytes:
    """Text bytes of an id of a SentencePiece model."""
    if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i):
        return b""
    if processor.is_byte(i):
        return bytes([int(processor.id_to_piece(i)[3:5], 16)])  # a byte's piece is written <0x41>
    return processor.id_to_piece(i).replace(SPACE_SYMBOL, " ").encode()


def _check_lossless(tokenizer: SentencePieceTokenizer) -> None:
    """Raises InputError unless a text of control characters, spaces and characters that normalisation would change
    survives encoding and decoding."""
    probe = "".join(map(chr, range(256))) + "  ﬁ ½\u00a0a\u0301\r\n\t▁😀\ufeff  "
    if tokenizer.eos_id < 0:
        raise InputError(f"vocabulary {tokenizer.name!r}: has no end-of-sentence id: train it with eos_id=1")
    if tokenizer.decode(tokenizer.encode(probe)) != probe:
        raise InputError(
            f"vocabulary {tokenizer.name!r}: loses text: must decode to what it encoded; train it with byte_fallback, "
            "identity normalisation, no dummy prefix and remove_extra_whitespaces=false"
        )


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that config.data.vocabulary names: "byte" or the path of a SentencePiece model. Raises InputError
    when it is missing or loses text."""
    return ByteTokenizer() if name == "byte" else SentencePieceTokenizer(name)


def train_sentencepiece(texts: Iterable[str], size: int, path: Path | str) -> SentencePieceTokenizer:
    """Trains a BPE model of `size` ids and writes it to `path` by rename.

    The model is lossless: it falls back to bytes, normalises nothing, adds no prefix and removes no white space.
    Raises InputError when there is too little text for `size` or `path` cannot be written.
    """
    path, texts = Path(path), iter(texts)
    if (first := next(texts, None)) is None:
        raise InputError(f"size = {size}: no text to train a tokenizer on; name a corpus with documents")
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
        raise InputError(f"size = {size}: SentencePiece cannot train it: {' '.join(str(error).split())}") from None
    try:
        write_bytes(path, model.getvalue())
    except OSError as error:
        raise InputError(
            f"path = {str(path)!r}: cannot be written ({error.strerror}: {error.filename or path}); give another --path"
        ) from None
    return SentencePieceTokenizer(str(path))


def _sentences(texts: Iterable[str], failures: list[InputError], characters: int = 1000) -> Iterator[str]:
    """Lines cut into parts of `characters`, which keeps them below 4192 bytes: SentencePiece skips longer ones.

    Appends an InputError that `texts` raises to `failures`, because SentencePiece wraps it in another error.
    """
    try:
        for text in texts:
            for line in text.split("\n"):
                yield from (line[i : i + characters] for i in range(0, len(line), characters))
    except InputError as error:
        failures.append(error)
        raise
