"""The corpus `simulated`: it has no text; runs on it draw their losses from a law with known parameters.

scaling/training/simulated_run.py writes such runs."""

from __future__ import annotations

import hashlib
import math
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from scaling.config.fields import require
from scaling.data.corpus import NamedCorpus, SplitName
from scaling.errors import InputError

KIND = "simulated"
RANGES = (
    (("E", "A", "B"), 0.0, 1e9),
    (("alpha", "beta", "gamma", "rate_exponent"), -2.0, 2.0),
    (("rate_at", "limit"), 1e-9, 1e9),
    (("curvature",), 0.0, 1e3),
    (("noise", "seed_effect"), 0.0, 10.0),
    (("mishap",), 0.0, 1.0),
)
"""The values that each parameter may have: wide around those of real laws, so that every loss is a finite number."""


@dataclass(frozen=True)
class Simulated(NamedCorpus):
    """The law behind a simulated sweep.

    With N params_matmul, D training tokens and a learning rate r, the loss without noise is

        (E + A N^-alpha + B N^gamma D^-beta) (1 + curvature log2(r / best)^2),   best = rate_at (N / 1e4)^-rate_exponent

    limit: a run diverges when r is above `limit` times the best rate. noise, seed_effect:
    standard deviations of the log loss between runs and between seeds. mishap: probability that a run diverges anyway.
    """

    kind: typing.ClassVar[str] = KIND
    E: float = 1.69
    A: float = 406.4
    B: float = 410.7
    alpha: float = 0.34
    beta: float = 0.28
    gamma: float = 0.0
    rate_at: float = 1.1e-2
    rate_exponent: float = 0.33
    curvature: float = 0.01
    limit: float = 16.0
    noise: float = 0.002
    seed_effect: float = 0.002
    mishap: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for names, low, high in RANGES:
            for name in names:
                require(low <= getattr(self, name) <= high, self, name, f"in [{low:g}, {high:g}]")

    def source_hash(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def documents(self, split: SplitName) -> Iterator[str]:
        raise InputError(f"corpus {self.name!r}: has no text to prepare; plan a sweep of it, or train on it, now")

    @property
    def fingerprint(self) -> str:
        return self.source_hash()

    def unique_tokens(self, tokens_trained: int, sequence_length: int) -> int:
        """The distinct training tokens: all of them, because every token of a simulated corpus is new."""
        return tokens_trained

    def best_rate(self, count: float) -> float:
        """The learning rate with the lowest loss for a model with `count` params_matmul."""
        return self.rate_at * (count / 1e4) ** -self.rate_exponent

    def loss(self, count: float, tokens: float, rate: float) -> float:
        """Nats per token without noise, of a model with `count` params_matmul trained on `tokens` at a peak learning
        rate `rate`."""
        law = self.E + self.A * count**-self.alpha + self.B * count**self.gamma * tokens**-self.beta
        ratio = max(rate / self.best_rate(count), sys.float_info.min)  # a quotient may underflow to 0
        return law * (1 + self.curvature * math.log2(ratio) ** 2)
