"""Token shards, read through memory maps, and the batches of a run. Training and planning import this module.

A batch is a pure function of (seed, step). Window i of a split covers tokens[i*T : i*T + T + 1]: neighbours share one
token, so that every token but the first is a target exactly once. Each epoch visits every window once, in an order
given by a keyed bijection (`permute`), which needs no memory.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from scaling.data.corpora import SPLITS, Mixture, parse_corpus
from scaling.data.tokenizer import load_tokenizer
from scaling.data.verification import TABLE, verify_shards
from scaling.errors import InputError
from scaling.files import read_json
from scaling.type_checks import describe_value

SCHEMA = 1
"""Version of the layout of meta.json and the shards."""
FEISTEL_ROUNDS = 6


class SplitMeta(TypedDict):
    """A split in meta.json: the names of its shards, and what they hold together."""

    shards: list[str]
    tokens: int
    documents: int
    bytes: int
    max_id: int


class Meta(TypedDict):
    """The content of meta.json. source: hash of where the documents come from. dtype: of the ids in the shards.
    checksums: SHA-256 by file. skipped_documents: how many `skip_bad` left out; skipped_first: where and why."""

    schema: Literal[1]
    corpus: str
    vocabulary: str
    vocab_size: int
    eos_id: int
    dtype: Literal["<u2", "<u4"]
    shard_tokens: int
    source: str
    splits: dict[str, SplitMeta]
    fingerprint: str
    checksums: NotRequired[dict[str, str]]
    skipped_documents: NotRequired[int]
    skipped_first: NotRequired[list[str]]


@dataclass(frozen=True)
class Split:
    """One split of a prepared corpus.

    shards: memory maps, uint16 or uint32 [shard_tokens] each; the last one is shorter. tokens, documents: how many it
    holds. bytes: UTF-8 bytes of its text. max_id: its largest token id.
    """

    shards: tuple[np.ndarray, ...]
    shard_tokens: int
    tokens: int
    documents: int
    bytes: int
    max_id: int

    def count_windows(self, sequence_length: int) -> int:
        """Number of whole windows of `sequence_length` targets."""
        return max(self.tokens - 1, 0) // sequence_length

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """int32 tokens at the given positions of the split, in the shape of `positions`."""
        if len(self.shards) == 1:
            return self.shards[0][positions].astype(np.int32)
        shard_of, offsets = np.divmod(positions, self.shard_tokens)
        out = np.empty(positions.shape, np.int32)
        for shard in np.unique(shard_of):
            in_shard = shard_of == shard
            out[in_shard] = self.shards[shard][offsets[in_shard]]
        return out


@dataclass(frozen=True)
class TokenShards:
    """A prepared corpus, opened.

    corpus: its canonical name. vocabulary: the slug of its tokenizer, which has `vocab_size` ids. fingerprint: hash of
    all tokens and of the tokenizer's table. bytes_per_token: int64 [V], UTF-8 bytes of text that each id stands for.
    """

    corpus: str
    vocabulary: str
    vocab_size: int
    eos_id: int
    fingerprint: str
    bytes_per_token: np.ndarray
    train: Split
    validation: Split

    def unique_tokens(self, tokens_trained: int, sequence_length: int) -> int:
        """Number of distinct target tokens among the first `tokens_trained`: all of them, at most one epoch."""
        return min(tokens_trained, self.train.count_windows(sequence_length) * sequence_length)


def shards_folder(directory: Path | str, corpus: str, vocabulary: str) -> Path:
    """<directory>/<corpus slug>/<tokenizer slug>. Raises InputError on an unknown corpus or vocabulary."""
    return Path(directory) / parse_corpus(corpus).slug / load_tokenizer(vocabulary).slug


def read_meta(folder: Path) -> dict[str, Any] | None:
    """meta.json of a folder of shards; None when nothing is prepared there. Raises InputError when the file is damaged
    or has another schema."""
    path = folder / "meta.json"
    if not path.exists():
        return None
    remedy = f"delete {folder} and run scaling data prepare again"
    meta = read_json(path, Meta, remedy=remedy)
    if set(meta["splits"]) != set(SPLITS):
        raise InputError(f"{path}: splits = {describe_value([*meta['splits']])}: must be {', '.join(SPLITS)}; {remedy}")
    return meta


def prepare_command(directory: Path | str, corpus: str, vocabulary: str) -> str:
    """The command that prepares a corpus, for error messages."""
    parsed = parse_corpus(corpus)
    mixture = f"mixture {parsed.path} CORPUS=RATE ... --train-tokens N" if isinstance(parsed, Mixture) else ""
    options = f"--directory {directory}" + ("" if vocabulary == "byte" else f" --vocabulary {vocabulary}")
    return f"scaling data {mixture or f'prepare {corpus!r}'} {options}"


def verify_prepared(
    directory: Path | str, corpus: str, vocabulary: str = "byte", *, again: bool = False
) -> tuple[dict[str, Any], int]:
    """The meta.json of a prepared corpus whose files are as prepared (verification.py), and how many bytes were read to
    see that. again: reads all files, though this machine has verified them before.

    Raises InputError when the corpus is unknown or not prepared, or a file is damaged.
    """
    folder, command = shards_folder(directory, corpus, vocabulary), prepare_command(directory, corpus, vocabulary)
    meta = read_meta(folder)
    if meta is None:
        raise InputError(f"corpus {corpus!r}: not prepared in {directory}; run {command}")
    return meta, verify_shards(folder, meta, command, again=again)


def open_shards(directory: Path | str, corpus: str, vocabulary: str = "byte", fingerprint: str = "") -> TokenShards:
    """Opens a prepared corpus through memory maps. fingerprint: when not empty, the shards must have this one.

    Raises InputError when the fingerprint differs, and as `verify_prepared` does.
    """
    folder = shards_folder(directory, corpus, vocabulary)
    meta, _ = verify_prepared(directory, corpus, vocabulary)
    if fingerprint and fingerprint != meta["fingerprint"]:
        raise InputError(
            f"corpus {corpus!r}: data.fingerprint = {fingerprint}: must be {meta['fingerprint']}, that of {folder}; "
            "prepare the corpus again from the same source, or plan again"
        )
    return TokenShards(
        corpus=meta["corpus"],
        vocabulary=meta["vocabulary"],
        vocab_size=meta["vocab_size"],
        eos_id=meta["eos_id"],
        fingerprint=meta["fingerprint"],
        bytes_per_token=np.load(folder / TABLE),
        train=_map_split(folder, meta, "train"),
        validation=_map_split(folder, meta, "validation"),
    )


def limit_unique_tokens(tokens: TokenShards, unique_tokens: int | None) -> TokenShards:
    """The corpus with its training split cut to the first `unique_tokens` targets; None means all of them. The numbers
    of documents and bytes stay those of the whole split."""
    if unique_tokens is None:
        return tokens
    train_tokens = min(tokens.train.tokens, unique_tokens + 1)
    return dataclasses.replace(tokens, train=dataclasses.replace(tokens.train, tokens=train_tokens))


def _map_split(folder: Path, meta: dict[str, Any], name: str) -> Split:
    facts, dtype = meta["splits"][name], np.dtype(meta["dtype"])
    shards = (np.asarray(np.memmap(folder / shard, dtype, mode="r")) for shard in facts["shards"])
    counts = {name: facts[name] for name in ("tokens", "documents", "bytes", "max_id")}
    return Split(tuple(shards), meta["shard_tokens"], **counts)


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    return tuple(np.random.SeedSequence([seed, epoch]).generate_state(FEISTEL_ROUNDS, np.uint64))


def permute(index: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """A bijection of [0, size) that depends on (seed, epoch): int64 in and out, in the shape of `index`.

    An unbalanced Feistel network permutes the next power of two; it is applied again to every result outside
    [0, size) until all lie inside ("cycle walking", Black & Rogaway 2002).
    """
    bits = max((size - 1).bit_length(), 2)
    low_bits = bits // 2
    keys = _round_keys(seed, epoch)
    out = np.asarray(index, np.uint64).copy()
    outside = np.ones(out.shape, bool)
    while outside.any():
        out[outside] = _feistel(out[outside], np.uint64(low_bits), np.uint64(bits - low_bits), keys)
        outside = out >= size
    return out.astype(np.int64)


def _feistel(x: np.ndarray, low_bits: np.uint64, high_bits: np.uint64, keys: tuple[np.uint64, ...]) -> np.ndarray:
    """Splits x into its high and low bits and, round by round, XORs one half with a hash of the other and a key. Each
    round can be undone, hence the whole is a bijection of [0, 2^(low_bits + high_bits))."""
    one = np.uint64(1)
    high, low = x >> low_bits, x & ((one << low_bits) - one)
    for number, key in enumerate(keys):
        if number % 2 == 0:
            high = high ^ (_mix(low + key) & ((one << high_bits) - one))
        else:
            low = low ^ (_mix(high + key) & ((one << low_bits) - one))
    return (high << low_bits) | low


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of 64-bit integers: the finaliser of SplitMix64 (Steele et al. 2014), except that the last step is a plain
    shift."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x >> np.uint64(31)


def check_batches(tokens: TokenShards, *, sequence_length: int, validation_tokens: int, vocab_size: int) -> None:
    """Checks before the first step what `gather_batch` checks at every one. Raises InputError when a sequence is longer
    than a split, or the shards hold an id that is not below `vocab_size`."""
    for name, split in (("train", tokens.train), ("validation", tokens.validation)):
        if split.count_windows(sequence_length) == 0:
            raise _too_short(tokens, name, split, sequence_length)
        if split.max_id >= vocab_size:
            raise InputError(
                f"model.vocab_size = {vocab_size}: must be at least {split.max_id + 1}, because corpus "
                f"{tokens.corpus!r} has token {split.max_id} in its {name} split; raise --model.vocab_size"
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
    """int32 [rows, T+1], windows of the training split: the rows `rows` of the batch of step `step`; all by default.

    Row r is sequence step * batch_sequences + r of the run, on whichever process it is gathered. Raises InputError when
    a sequence is longer than the split, or an id is not below `vocab_size` (by default that of the shards).
    """
    windows = tokens.train.count_windows(sequence_length)
    if windows == 0:
        raise _too_short(tokens, "train", tokens.train, sequence_length)
    sequence_B = step * batch_sequences + np.arange(batch_sequences)[rows or slice(None)]
    epoch_B, index_B = np.divmod(sequence_B, windows)
    window_B = np.empty_like(index_B)
    for epoch in np.unique(epoch_B):
        in_epoch = epoch_B == epoch
        window_B[in_epoch] = permute(index_B[in_epoch], windows, seed=seed, epoch=int(epoch))
    return _gather_windows(tokens, tokens.train, window_B, sequence_length, vocab_size)


def read_validation_windows(
    tokens: TokenShards, sequence_length: int, validation_tokens: int, vocab_size: int | None = None
) -> np.ndarray:
    """int32 [n, T+1], the first windows of the validation split: the most with n*T <= validation_tokens targets.

    The windows are the same every time; n is smaller when the split is. Raises InputError when not one window fits.
    """
    if tokens.validation.count_windows(sequence_length) == 0:
        raise _too_short(tokens, "validation", tokens.validation, sequence_length)
    if validation_tokens < sequence_length:
        raise InputError(
            f"measure.validation_tokens = {validation_tokens}: must be at least data.sequence_length = "
            f"{sequence_length}; raise --measure.validation_tokens"
        )
    count = min(validation_tokens // sequence_length, tokens.validation.count_windows(sequence_length))
    return _gather_windows(tokens, tokens.validation, np.arange(count), sequence_length, vocab_size)


def read_documents(tokens: TokenShards, split: Split, max_tokens: int = 1 << 22) -> list[np.ndarray]:
    """int32 ids of each whole document among the first `max_tokens` of a split, without the end of document."""
    ids = split.gather(np.arange(min(split.tokens, max_tokens)))
    ends = np.flatnonzero(ids == tokens.eos_id)
    return [ids[start:end] for start, end in zip((0, *(ends[:-1] + 1)), ends, strict=True)] if len(ends) else []


def _gather_windows(
    tokens: TokenShards, split: Split, window_B: np.ndarray, sequence_length: int, vocab_size: int | None
) -> np.ndarray:
    """int32 [B, T+1], the windows with these numbers. Raises InputError on an id that is not below `vocab_size`."""
    tokens_BS = split.gather(window_B[:, None] * sequence_length + np.arange(sequence_length + 1))
    size = tokens.vocab_size if vocab_size is None else vocab_size
    if tokens_BS.size and (max_id := int(tokens_BS.max())) >= size:
        raise InputError(
            f"corpus {tokens.corpus!r}: token {max_id} is not below model.vocab_size = {size}; the tokenizer "
            f"{tokens.vocabulary!r} has {tokens.vocab_size} ids; raise --model.vocab_size"
        )
    return tokens_BS


def _too_short(tokens: TokenShards, name: str, split: Split, sequence_length: int) -> InputError:
    return InputError(
        f"data.sequence_length = {sequence_length}: corpus {tokens.corpus!r} has {split.tokens} tokens in its {name} "
        f"split: must be at most {max(split.tokens - 1, 0)}; lower --data.sequence_length"
    )
