"""Synthetic corpora of known entropy, so that the best possible loss is known exactly.

They consist of printable ASCII: with the byte tokenizer, a character is a token. Each split is one document, so that
no window holds an end of document except at the split's end. Both corpora are our own; the entropy rate of a random
walk is from Cover & Thomas 2006, section 4.3.
"""

from __future__ import annotations

import functools
import hashlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scaling.config.fields import check_seed, require
from scaling.data.corpus import NamedCorpus, SplitName
from scaling.errors import InputError

VALIDATION_DIVISOR = 16
"""The validation split has 1 / 16 of the tokens of the training split."""
MAX_TOKENS = 1 << 30
FIRST_CHARACTER = 33
"""The byte of node 0 of a walk: "!", the first printable character after the space."""


def _random_stream(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))


@dataclass(frozen=True)
class SyntheticCorpus(NamedCorpus):
    """A corpus computed from its fields alone, so that its name determines its documents.

    tokens: length of the training split without the end of document; the validation split has a sixteenth of it.
    """

    tokens: int = 1_048_576
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("seed", self.seed)
        least = 8 * VALIDATION_DIVISOR
        require(least <= self.tokens <= MAX_TOKENS, self, "tokens", f"in [{least}, {MAX_TOKENS}]: a split is in memory")

    def source_hash(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def length(self, split: SplitName) -> int:
        """Number of tokens of a split without the end of document."""
        return self.tokens // (1 if split == "train" else VALIDATION_DIVISOR)

    def text(self, split: SplitName) -> str:
        """The one document of a split."""
        raise NotImplementedError

    def documents(self, split: SplitName) -> Iterator[str]:
        yield self.text(split)


@dataclass(frozen=True)
class Walk(SyntheticCorpus):
    """A random walk on a connected undirected graph. It starts in its stationary distribution, d_i / 2M for a node with
    d_i of the M edges.

    nodes: 3 to 94; each is a printable character. edges: a ring through all nodes, and random chords.
    """

    nodes: int = 32
    edges: int = 96
    kind: typing.ClassVar[str] = "walk"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(3 <= self.nodes <= 94, self, "nodes", "in [3, 94], the printable characters")
        max_edges = self.nodes * (self.nodes - 1) // 2
        require(self.nodes <= self.edges <= max_edges, self, "edges", f"in [{self.nodes}, {max_edges}]")

    @property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """The neighbours of each node, ascending."""
        return _graph(self.nodes, self.edges, self.seed)

    @property
    def degrees(self) -> np.ndarray:
        """int64 [nodes], the number of neighbours of each node."""
        return np.array([len(neighbours) for neighbours in self.neighbours])

    def first_node(self, uniform: float) -> int:
        """The quantile function of the stationary distribution: node i for d_i / 2M of the numbers in [0, 1)."""
        return int(np.searchsorted(np.cumsum(self.degrees) / (2 * self.edges), uniform, side="right"))

    def text(self, split: SplitName) -> str:
        """The walk, one character a node."""
        uniforms = _random_stream(self.seed, 1 + (split == "validation")).random(self.length(split)).tolist()
        neighbours = self.neighbours
        node = self.first_node(uniforms[0])
        path = [node]
        for uniform in uniforms[1:]:
            choices = neighbours[node]
            node = choices[int(uniform * len(choices))]
            path.append(node)
        return bytes(FIRST_CHARACTER + node for node in path).decode("ascii")

    def floor_nats_per_token(self, sequence_length: int) -> float:
        """The entropy rate, sum_i d_i/2M ln d_i (Cover & Thomas 2006, section 4.3): the true model's expected loss.

        It is exact for every target and any `sequence_length`: each target has the token before it as context, and the
        walk is stationary and Markov, so neither window boundaries nor longer contexts change it."""
        return float(np.sum(self.degrees * np.log(self.degrees)) / (2 * self.edges))

    def floor_of_windows(self, tokens_NT: np.ndarray, byte_offset: int = 3) -> float:
        """Nats per token of the true model on the given windows [N, T+1]. byte_offset: the id of byte 0.

        Raises InputError on a token that is no node: the end of document has no known probability."""
        node_NT = np.asarray(tokens_NT) - byte_offset - FIRST_CHARACTER
        if node_NT.min() < 0 or node_NT.max() >= self.nodes:
            raise InputError(
                f"corpus {self.name!r}: the windows hold tokens that are no nodes, such as the end of document; "
                "leave out the window at the split's end"
            )
        return float(np.log(self.degrees)[node_NT[:, :-1]].mean())


@functools.lru_cache(maxsize=8)
def _graph(nodes: int, edges: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """The neighbours of each node: a ring and `edges - nodes` random chords."""
    edge_set = {(i, i + 1) for i in range(nodes - 1)} | {(0, nodes - 1)}
    chords = [(i, j) for i in range(nodes) for j in range(i + 1, nodes) if (i, j) not in edge_set]
    order = np.argsort(_random_stream(seed, 0).random(len(chords)), kind="stable")
    edge_set |= {chords[k] for k in order[: edges - nodes]}
    return tuple(tuple(sorted(j for edge in edge_set if i in edge for j in edge if j != i)) for i in range(nodes))


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
BASE = len(ALPHABET)
RECORD_TOKENS = 8
"""Tokens of a record of `Zipf`: three for the key, a colon, three for the value, a newline."""


@dataclass(frozen=True)
class Zipf(SyntheticCorpus):
    """A memorisation task: independent records `KEY:VALUE\\n`. Key i is drawn with probability proportional to
    i^-exponent; its value is a fixed pseudo-random function of the key, so a model predicts it only by memorising it.

    facts: number of keys, at most 32^3. exponent: of Zipf's law. The splits consist of whole records of 8 tokens.
    """

    facts: int = 1024
    exponent: float = 1.0
    kind: typing.ClassVar[str] = "zipf"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.facts <= BASE**3, self, "facts", f"in [1, {BASE**3}]")
        require(0 <= self.exponent <= 10, self, "exponent", "in [0, 10]")

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [facts], the probability of each key."""
        weight = np.arange(1, self.facts + 1, dtype=np.float64) ** -self.exponent
        return weight / weight.sum()

    @property
    def records(self) -> np.ndarray:
        """uint8 [facts, 8], the bytes of each record."""
        letters = np.frombuffer(ALPHABET.encode(), np.uint8)
        values = (_random_stream(self.seed, 0).random((self.facts, 3)) * BASE).astype(np.int64)
        colon, newline = (np.full((self.facts, 1), ord(mark), np.uint8) for mark in ":\n")
        return np.hstack([letters[_base32_digits(np.arange(self.facts))], colon, letters[values], newline])

    def text(self, split: SplitName) -> str:
        """The records, drawn independently."""
        uniforms = _random_stream(self.seed, 1 + (split == "validation")).random(self.length(split) // RECORD_TOKENS)
        facts = np.searchsorted(np.cumsum(self.probabilities), uniforms, side="right").clip(max=self.facts - 1)
        return self.records[facts].tobytes().decode("ascii")

    def floor_nats_per_token(self, sequence_length: int) -> float:
        """H(key) / 8, the expected loss of the true model, for windows that are a whole number of records long.

        Such a window starts with a key. Its targets are the rest of that record, whole records, and the first
        character of the next key; together they cost as much as whole records. Raises InputError for other lengths,
        which separate values from their keys."""
        if sequence_length % RECORD_TOKENS:
            raise InputError(
                f"sequence_length = {sequence_length}: must be a multiple of {RECORD_TOKENS}, the tokens of a record, "
                "for a corpus zipf"
            )
        p = self.probabilities
        return float(-(p @ np.log(p)) / RECORD_TOKENS)

    def floor_of_windows(self, tokens_NT: np.ndarray, byte_offset: int = 3) -> float:
        """Nats per token of the true model on the given windows [N, T+1], each of which starts with a record.
        byte_offset: the id of byte 0. Raises InputError when a window does not start with a record, or holds anything
        but records."""
        self.floor_nats_per_token(np.asarray(tokens_NT).shape[1] - 1)
        digit = np.full(256 + byte_offset, -1)
        digit[np.frombuffer(ALPHABET.encode(), np.uint8).astype(int) + byte_offset] = np.arange(BASE)
        next_N = digit[np.asarray(tokens_NT)[:, -1]]
        key_NRK = digit[np.asarray(tokens_NT)[:, :-1].reshape(len(tokens_NT), -1, RECORD_TOKENS)[..., :3]]
        if min(next_N.min(), key_NRK.min()) < 0:
            raise InputError(f"corpus {self.name!r}: the windows do not start with records; cut them at multiples of 8")
        first_nats, key_nats = self._key_nats()
        # Keys cost all that is to be paid, values and separators follow from them. The first character of a window is
        # context and costs nothing; the first character of the key after it is the last target.
        nats = key_nats[key_NRK @ [BASE**2, BASE, 1]].sum()
        nats = nats - first_nats[key_NRK[:, 0, 0]].sum() + first_nats[next_N].sum()
        return float(nats / (len(tokens_NT) * (np.asarray(tokens_NT).shape[1] - 1)))

    def _key_nats(self) -> tuple[np.ndarray, np.ndarray]:
        """Minus the log probability of a key's first character [32] and of a whole key [32^3]."""
        p = np.zeros(BASE**3)
        p[: self.facts] = self.probabilities
        with np.errstate(divide="ignore"):
            return -np.log(p.reshape(BASE, -1).sum(1)), -np.log(p)


def _base32_digits(number: np.ndarray) -> np.ndarray:
    """[..., 3] digits of numbers below 32^3, the highest first."""
    return np.stack([number // BASE**2, number // BASE % BASE, number % BASE], axis=-1)
