"""How the next token is chosen from its logits: the likeliest, or a sample with temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config.fields import check_types, require


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    temperature: the logits are divided by it; 0 takes the likeliest token. top_k: samples only from the k likeliest
    tokens. top_p: samples from the smallest set of likeliest tokens whose probabilities sum to at least this number
    (nucleus sampling, Holtzman et al. 2020), after top_k.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        require(self.temperature >= 0, self, "temperature", "0 or more")
        require(self.top_k is None or self.top_k > 0, self, "top_k", "1 or more, or null")
        require(self.top_p is None or 0 < self.top_p <= 1, self, "top_p", "above 0 and at most 1, or null")


GREEDY = Sampling()


class SamplingArrays(NamedTuple):
    """The numbers of a Sampling as arrays, so that another temperature needs no new compilation."""

    temperature: Any
    top_k: Any | None
    top_p: Any | None


def sampling_arrays(sampling: Sampling) -> SamplingArrays | None:
    """The arguments of `sample_token`; None for greedy decoding."""
    if sampling.temperature == 0:
        return None
    top_k = None if sampling.top_k is None else np.int32(sampling.top_k)
    top_p = None if sampling.top_p is None else np.float32(sampling.top_p)
    return SamplingArrays(np.float32(sampling.temperature), top_k, top_p)


def sample_token(logits_V: jax.Array, key: jax.Array, arrays: SamplingArrays | None) -> jax.Array:
    """An int32 id sampled from float32 logits [V]; the likeliest when `arrays` is None."""
    if arrays is None:
        return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = logits_V / arrays.temperature
    if arrays.top_k is None and arrays.top_p is None:
        return jax.random.categorical(key, logits_V).astype(jnp.int32)
    order_V = jnp.argsort(-logits_V)
    sorted_V = logits_V[order_V]
    if arrays.top_k is not None:
        sorted_V = jnp.where(jnp.arange(len(sorted_V)) < arrays.top_k, sorted_V, -jnp.inf)
    if arrays.top_p is not None:
        # A token stays while the likelier ones before it sum to less than top_p, so that the first always stays.
        share_V = jax.nn.softmax(sorted_V)
        before_V = jnp.cumsum(share_V) - share_V
        sorted_V = jnp.where(before_V < arrays.top_p, sorted_V, -jnp.inf)
    return order_V[jax.random.categorical(key, sorted_V)].astype(jnp.int32)
