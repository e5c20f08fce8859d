"""Synthetic corpora whose entropy is known, spelt in printable bytes: with the byte vocabulary, a character is a token.

Each split is one document, so that no document boundary falls into a window before the split's last token. Both
corpora are ours; the entropy rate of a walk is Cover & Thomas 2006, section 4.3.
"""

from __future__ import annotations

import functools
import hashlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scaling.config.fields import require
from scaling.data.corpus import NamedCorpus, SplitName
from scaling.errors import InputError

VALIDATION_DIVISOR = 16


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))


@dataclass(frozen=True)
class SyntheticCorpus(NamedCorpus):
    """Documents made from these fields alone, so that the name is the source.

    tokens: length of the training split, without end of document; validation is a sixteenth of it.
    """

    tokens: int = 1_048_576
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed >= 0, self, "seed", "0 or more")
        require(self.tokens >= 8 * VALIDATION_DIVISOR, self, "tokens", f"{8 * VALIDATION_DIVISOR} or more")

    def source_hash(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def length(self, split: SplitName) -> int:
        """Tokens of the split without end of document."""
        return self.tokens // (1 if split == "train" else VALIDATION_DIVISOR)

    def text(self, split: SplitName) -> str:
        raise NotImplementedError

    def documents(self, split: SplitName) -> Iterator[str]:
        yield self.text(split)


@dataclass(frozen=True)
class Walk(SyntheticCorpus):
    """A random walk on a connected undirected graph, started in its stationary distribution d_i / 2M.

    nodes: 3 to 94, a printable character each. edges: a ring and random chords.
    """

    nodes: int = 32
    edges: int = 96
    kind: typing.ClassVar[str] = "walk"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(3 <= self.nodes <= 94, self, "nodes", "in [3, 94], the printable characters")
        most = self.nodes * (self.nodes - 1) // 2
        require(self.nodes <= self.edges <= most, self, "edges", f"in [{self.nodes}, {most}]")

    @property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Of each node, ascending."""
        return _graph(self.nodes, self.edges, self.seed)

    @property
    def degrees(self) -> np.ndarray:
        """int64 [nodes]."""
        return np.array([len(near) for near in self.neighbours])

    def first_node(self, uniform: float) -> int:
        """The stationary distribution's quantile: node i for d_i / 2M of the numbers in [0, 1)."""
        return int(np.searchsorted(np.cumsum(self.degrees) / (2 * self.edges), uniform, side="right"))

    def text(self, split: SplitName) -> str:
        random = _generator(self.seed, 1 + (split == "validation")).random(self.length(split)).tolist()
        neighbours = self.neighbours
        node = self.first_node(random[0])
        path = [node]
        for u in random[1:]:
            near = neighbours[node]
            node = near[int(u * len(near))]
            path.append(node)
        return bytes(33 + node for node in path).decode("ascii")

    def floor_nats_per_token(self, sequence_length: int) -> float:
        """sum_i d_i/2M ln d_i, exact in expectation for every target: each one has the token before it as context,
        and the walk is stationary and Markov, so neither window boundaries nor longer contexts change it."""
        return float(np.sum(self.degrees * np.log(self.degrees)) / (2 * self.edges))

    def floor_of_windows(self, tokens_NT: np.ndarray, byte_offset: int = 3) -> float:
        """Nats per token of the true model on these windows [N, T+1], byte ids: the sample's own floor. Raises
        InputError on a token that is no node (the end of the document has no known probability)."""
        node_NT = np.asarray(tokens_NT) - byte_offset - 33
        if node_NT.min() < 0 or node_NT.max() >= self.nodes:
            raise InputError(
                f"corpus {self.name!r}: the windows hold tokens that are no nodes, such as end of document"
            )
        return float(np.log(self.degrees)[node_NT[:, :-1]].mean())


@functools.lru_cache(maxsize=8)
def _graph(nodes: int, edges: int, seed: int) -> tuple[tuple[int, ...], ...]:
    chosen = {(i, i + 1) for i in range(nodes - 1)} | {(0, nodes - 1)}
    others = [(i, j) for i in range(nodes) for j in range(i + 1, nodes) if (i, j) not in chosen]
    order = np.argsort(_generator(seed, 0).random(len(others)), kind="stable")
    chosen |= {others[k] for k in order[: edges - nodes]}
    return tuple(tuple(sorted(j for e in chosen if i in e for j in e if j != i)) for i in range(nodes))


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
BASE = len(ALPHABET)
RECORD_TOKENS = 8
"""Tokens of a record of `Zipf`: three of the key, a colon, three of the value, a newline."""


@dataclass(frozen=True)
class Zipf(SyntheticCorpus):
    """A memory task: independent records `KEY:VALUE\\n`, key i of `facts` with probability proportional to i^-exponent,
    its value a fixed pseudo-random function of the key. To predict values is to have memorised them.

    facts: at most 32^3. The splits are whole records of 8 tokens.
    """

    facts: int = 1024
    exponent: float = 1.0
    kind: typing.ClassVar[str] = "zipf"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.facts <= BASE**3, self, "facts", f"in [1, {BASE**3}]")
        require(self.exponent >= 0, self, "exponent", "0 or more")

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [facts]."""
        weight = np.arange(1, self.facts + 1, dtype=np.float64) ** -self.exponent
        return weight / weight.sum()

    @property
    def records(self) -> np.ndarray:
        """uint8 [facts, 8], the bytes of each record."""
        letters = np.frombuffer(ALPHABET.encode(), np.uint8)
        values = (_generator(self.seed, 0).random((self.facts, 3)) * BASE).astype(np.int64)
        colon, newline = (np.full((self.facts, 1), ord(mark), np.uint8) for mark in ":\n")
        return np.hstack([letters[_digits(np.arange(self.facts))], colon, letters[values], newline])

    def text(self, split: SplitName) -> str:
        random = _generator(self.seed, 1 + (split == "validation")).random(self.length(split) // RECORD_TOKENS)
        fact = np.searchsorted(np.cumsum(self.probabilities), random, side="right").clip(max=self.facts - 1)
        return self.records[fact].tobytes().decode("ascii")

    def floor_nats_per_token(self, sequence_length: int) -> float:
        """H(key) / 8, exact in expectation for windows that are whole records long: they start at a key's first
        character, their targets are the rest of that record, whole records, and the next key's first character, which
        together cost as much as whole records do. Raises InputError for other lengths, which cut keys from values."""
        if sequence_length % RECORD_TOKENS:
            raise InputError(
                f"sequence_length = {sequence_length}: the floor of zipf needs a multiple of {RECORD_TOKENS}"
            )
        p = self.probabilities
        return float(-(p @ np.log(p)) / RECORD_TOKENS)

    def floor_of_windows(self, tokens_NT: np.ndarray, byte_offset: int = 3) -> float:
        """Nats per token of the true model on these windows [N, T+1], byte ids, each starting with a record: the
        sample's own floor. Raises InputError when they do not, or hold something else."""
        self.floor_nats_per_token(np.asarray(tokens_NT).shape[1] - 1)
        digit = np.full(256 + byte_offset, -1)
        digit[np.frombuffer(ALPHABET.encode(), np.uint8).astype(int) + byte_offset] = np.arange(BASE)
        next_N = digit[np.asarray(tokens_NT)[:, -1]]
        key_NRK = digit[np.asarray(tokens_NT)[:, :-1].reshape(len(tokens_NT), -1, RECORD_TOKENS)[..., :3]]
        if min(next_N.min(), key_NRK.min()) < 0:
            raise InputError(f"corpus {self.name!r}: the windows do not start with records")
        first, whole = self._costs()
        cost = whole[key_NRK @ [BASE**2, BASE, 1]].sum() - first[key_NRK[:, 0, 0]].sum() + first[next_N].sum()
        return float(cost / (len(tokens_NT) * (np.asarray(tokens_NT).shape[1] - 1)))

    def _costs(self) -> tuple[np.ndarray, np.ndarray]:
        """Nats of a key's first character [32] and of a whole key [32^3]."""
        p = np.zeros(BASE**3)
        p[: self.facts] = self.probabilities
        with np.errstate(divide="ignore"):
            return -np.log(p.reshape(BASE, -1).sum(1)), -np.log(p)


def _digits(number: np.ndarray) -> np.ndarray:
    return np.stack([number // BASE**2, number // BASE % BASE, number % BASE], axis=-1)
