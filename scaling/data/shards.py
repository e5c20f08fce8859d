"""Token shards read through memory maps; a batch is a pure function of (seed, step).

Window i of a split covers tokens[i*T : i*T + T + 1]: windows share one token, so that every token but the first is a
target once. Each epoch visits each window once, in an order given by a keyed bijection that takes no memory.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data.corpora import parse_corpus
from scaling.data.tokenizer import load_tokenizer
from scaling.errors import InputError

SCHEMA = 1
FEISTEL_ROUNDS = 6


@dataclass(frozen=True)
class Split:
    """One split. shards: uint16 or uint32 [shard_tokens], the last one shorter. `bytes`: UTF-8 bytes of its text."""

    shards: tuple[np.ndarray, ...]
    shard_tokens: int
    tokens: int
    documents: int
    bytes: int
    max_id: int

    def count_windows(self, sequence_length: int) -> int:
        """How many windows of `sequence_length` targets it holds."""
        return max(self.tokens - 1, 0) // sequence_length

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """int32 tokens at these positions (any shape), wherever they lie."""
        if len(self.shards) == 1:
            return self.shards[0][positions].astype(np.int32)
        shard_of, offsets = np.divmod(positions, self.shard_tokens)
        out = np.empty(positions.shape, np.int32)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            out[here] = self.shards[shard][offsets[here]]
        return out


@dataclass(frozen=True)
class TokenShards:
    """A prepared corpus. bytes_per_token: int64 [V], exact text bytes of each id. fingerprint: hash of the contents."""

    corpus: str
    vocabulary: str
    vocab_size: int
    eos_id: int
    fingerprint: str
    bytes_per_token: np.ndarray
    train: Split
    validation: Split

    def unique_tokens(self, tokens_trained: int, sequence_length: int) -> int:
        """Distinct target tokens seen after training on `tokens_trained`: all of them, or what one epoch holds."""
        return min(tokens_trained, self.train.count_windows(sequence_length) * sequence_length)


def shards_folder(directory: Path | str, corpus: str, vocabulary: str) -> Path:
    """<directory>/<corpus slug>/<vocabulary slug>. Raises InputError on an unknown corpus or vocabulary."""
    return Path(directory) / parse_corpus(corpus).slug / load_tokenizer(vocabulary).slug


def read_meta(folder: Path) -> dict[str, Any] | None:
    """meta.json of a folder of shards, or None where nothing is prepared. Raises InputError on another schema."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise InputError(f"{folder}/meta.json: not whole JSON ({error}); delete the folder and prepare again") from None
    if meta.get("schema") != SCHEMA:
        raise InputError(f"{folder}/meta.json: schema = {meta.get('schema')!r}, this version reads {SCHEMA}")
    return meta


def open_shards(directory: Path | str, corpus: str, vocabulary: str = "byte", fingerprint: str = "") -> TokenShards:
    """Maps a prepared corpus. A non-empty `fingerprint` must be that of the shards.

    Raises InputError when the corpus is unknown or not prepared, or the shards are others or torn.
    """
    folder = shards_folder(directory, corpus, vocabulary)
    meta = read_meta(folder)
    if meta is None:
        options = f"--directory {directory}" + ("" if vocabulary == "byte" else f" --vocabulary {vocabulary}")
        raise InputError(f"corpus {corpus!r} is not prepared in {directory}: scaling data prepare {corpus!r} {options}")
    if fingerprint and fingerprint != meta["fingerprint"]:
        raise InputError(
            f"corpus {corpus!r}: the config wants fingerprint {fingerprint}, {folder} holds {meta['fingerprint']}; "
            "prepare it again from the same source, or plan again"
        )
    return TokenShards(
        corpus=meta["corpus"],
        vocabulary=meta["vocabulary"],
        vocab_size=meta["vocab_size"],
        eos_id=meta["eos_id"],
        fingerprint=meta["fingerprint"],
        bytes_per_token=np.load(folder / "bytes_per_token.npy"),
        train=_map_split(folder, meta, "train"),
        validation=_map_split(folder, meta, "validation"),
    )


def limit_unique_tokens(tokens: TokenShards, unique_tokens: int | None) -> TokenShards:
    """The corpus with no training targets but the first `unique_tokens`; None means all. Documents and bytes of the
    split stay those of the whole."""
    if unique_tokens is None:
        return tokens
    kept = min(tokens.train.tokens, unique_tokens + 1)
    return dataclasses.replace(tokens, train=dataclasses.replace(tokens.train, tokens=kept))


def _map_split(folder: Path, meta: dict[str, Any], name: str) -> Split:
    facts, dtype = dict(meta["splits"][name]), np.dtype(meta["dtype"])
    shards = []
    left = facts["tokens"]
    for shard in facts.pop("shards"):
        expected = min(left, meta["shard_tokens"])
        path = folder / shard
        size = path.stat().st_size if path.is_file() else 0
        if size != expected * dtype.itemsize:
            raise InputError(f"{path}: {size} bytes where meta.json says {expected * dtype.itemsize}; prepare again")
        shards.append(np.asarray(np.memmap(path, dtype, mode="r")))
        left -= expected
    return Split(tuple(shards), meta["shard_tokens"], **facts)


@functools.lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    return tuple(np.random.SeedSequence([seed, epoch]).generate_state(FEISTEL_ROUNDS, np.uint64))


def permute(index: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The keyed bijection of [0, size): int64 in and out, any shape, no memory beyond the index.

    An unbalanced Feistel network over the next power of two, walked until it falls inside (Black & Rogaway 2002).
    """
    bits = max((size - 1).bit_length(), 2)
    low = bits // 2
    keys = _keys(seed, epoch)
    out = np.asarray(index, np.uint64).copy()
    outside = np.ones(out.shape, bool)
    while outside.any():
        out[outside] = _feistel(out[outside], np.uint64(low), np.uint64(bits - low), keys)
        outside = out >= size
    return out.astype(np.int64)


def _feistel(x: np.ndarray, low: np.uint64, high: np.uint64, keys: tuple[np.uint64, ...]) -> np.ndarray:
    one = np.uint64(1)
    left, right = x >> low, x & ((one << low) - one)
    for number, key in enumerate(keys):
        if number % 2 == 0:
            left = left ^ (_mix(right + key) & ((one << high) - one))
        else:
            right = right ^ (_mix(left + key) & ((one << low) - one))
    return (left << low) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014), shortened by its last step."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x >> np.uint64(31)


def check_batches(tokens: TokenShards, *, sequence_length: int, validation_tokens: int, vocab_size: int) -> None:
    """Raises InputError when a sequence is longer than a split, or the shards hold an id that is not below
    `vocab_size`: what `batch` would say at some step, said before the first."""
    for name, split in (("train", tokens.train), ("validation", tokens.validation)):
        if split.count_windows(sequence_length) == 0:
            raise _too_short(tokens, name, split, sequence_length)
        if split.max_id >= vocab_size:
            raise InputError(
                f"corpus {tokens.corpus!r}: token {split.max_id} in its {name} split is out of vocabulary, "
                f"vocab_size = {vocab_size}: must be at least {split.max_id + 1}"
            )
    read_validation_windows(tokens, sequence_length, validation_tokens, vocab_size)


def gather_batch(
    tokens: TokenShards,
    *,
    seed: int,
    step: int,
    batch_sequences: int,
    sequence_length: int,
    rows: slice | None = None,
    vocab_size: int | None = None,
) -> np.ndarray:
    """int32 [rows, T+1] of the training split: rows `rows` of the batch of step `step`, all by default.

    Row r is sequence step * batch_sequences + r of the run, whichever process asks for it. Raises InputError when a
    sequence is longer than the split, or an id is not below `vocab_size` (that of the shards by default).
    """
    windows = tokens.train.count_windows(sequence_length)
    if windows == 0:
        raise _too_short(tokens, "train", tokens.train, sequence_length)
    sequence_B = step * batch_sequences + np.arange(batch_sequences)[rows or slice(None)]
    epoch_B, index_B = np.divmod(sequence_B, windows)
    window_B = np.empty_like(index_B)
    for epoch in np.unique(epoch_B):
        here = epoch_B == epoch
        window_B[here] = permute(index_B[here], windows, seed=seed, epoch=int(epoch))
    return _windows(tokens, tokens.train, window_B, sequence_length, vocab_size)


def read_validation_windows(
    tokens: TokenShards, sequence_length: int, validation_tokens: int, vocab_size: int | None = None
) -> np.ndarray:
    """int32 [n, T+1]: the first windows of the validation split, n*T <= validation_tokens targets, the same every time.

    n is smaller where the split is. Raises InputError when not one window fits.
    """
    if tokens.validation.count_windows(sequence_length) == 0:
        raise _too_short(tokens, "validation", tokens.validation, sequence_length)
    if validation_tokens < sequence_length:
        raise InputError(f"validation_tokens = {validation_tokens}: must be at least sequence_length={sequence_length}")
    count = min(validation_tokens // sequence_length, tokens.validation.count_windows(sequence_length))
    return _windows(tokens, tokens.validation, np.arange(count), sequence_length, vocab_size)


def read_documents(tokens: TokenShards, split: Split, most: int = 1 << 22) -> list[np.ndarray]:
    """Ids of each whole document among the first `most` tokens of a split, without the end of document."""
    ids = split.gather(np.arange(min(split.tokens, most)))
    ends = np.flatnonzero(ids == tokens.eos_id)
    return [ids[start:end] for start, end in zip((0, *(ends[:-1] + 1)), ends, strict=True)] if len(ends) else []


def _windows(
    tokens: TokenShards, split: Split, window_B: np.ndarray, sequence_length: int, vocab_size: int | None
) -> np.ndarray:
    tokens_BT = split.gather(window_B[:, None] * sequence_length + np.arange(sequence_length + 1))
    size = tokens.vocab_size if vocab_size is None else vocab_size
    if tokens_BT.size and (worst := int(tokens_BT.max())) >= size:
        raise InputError(
            f"corpus {tokens.corpus!r}: token {worst} is out of the model's vocabulary, vocab_size={size}; "
            f"the vocabulary {tokens.vocabulary!r} has {tokens.vocab_size}"
        )
    return tokens_BT


def _too_short(tokens: TokenShards, name: str, split: Split, sequence_length: int) -> InputError:
    return InputError(
        f"sequence_length = {sequence_length}: longer than the corpus {tokens.corpus!r}, whose {name} split has "
        f"{split.tokens} tokens; at most {max(split.tokens - 1, 0)}"
    )
