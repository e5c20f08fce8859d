"""Text from a trained model, token by token, with its keys and values kept (Shazeer 2019, section 2.4).

The tokens are those of the model applied to all that came before, recomputed each step; only the work differs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.config.fields import check_types, require
from scaling.errors import InputError
from scaling.model.decoder import Decoder, KVCache, decode_step, empty_cache, split_layers

MIN_PADDED_TOKENS, CACHE_BYTES = 16, 2**28


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature: logits are divided by it; 0 takes the likeliest. top_k: from the so
    many likeliest. top_p: of those, from the fewest likeliest that together have this probability (Holtzman et al.
    2020)."""

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
    """The numbers of a Sampling, as arrays: another temperature is no other program. None: greedy."""

    temperature: Any
    top_k: Any | None
    top_p: Any | None


class DecodeState(NamedTuple):
    """B rows in the making. tokens_BS: what was given and what was made; length_B: how many of them there are. seed_B:
    one key a row. made: tokens made. ended_B: rows that made the stop id."""

    tokens_BS: jax.Array
    length_B: jax.Array
    cache: list[KVCache]
    seed_B: jax.Array
    made: jax.Array
    ended_B: jax.Array


def generate(
    model: Decoder,
    params: Any,
    prompts: Sequence[np.ndarray],
    most: int,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
    stop_id: int | None = None,
) -> list[np.ndarray]:
    """int32 ids after each prompt: `most` of them, or fewer when the last is `stop_id`.

    Prompt i gets the same ids whatever stands beside it: its key is `fold_in(key, i)`, and of token j `fold_in` of that
    and j. Positions past the training sequence length are rotated on, as transformers does; `stream`
    does not go there. One program is compiled for a power of two of rows, of longest prompt, and of longest text.

    Raises InputError when `most` is below 1, a prompt is empty, or holds an id that the model does not have.
    """
    if not prompts:
        return []
    _check_prompts(model, prompts, most)
    key = jax.random.key(0) if key is None else key
    S = _round_up(max(map(len, prompts)) + most)
    out: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    layered, one_row = _by_layer(params), jax.tree.leaves(jax.eval_shape(lambda: empty_cache(model, 1, S)))
    rows = max(CACHE_BYTES // sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in one_row), 1)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        state = _prefill(model, layered, [prompts[place] for place in part], part, S, sampling, key, stop_id)
        state = _decode_until(model, layered, state, np.int32(most), _sampling_arrays(sampling), _stop_array(stop_id))
        tokens_BS, length_B = jax.device_get((state.tokens_BS, state.length_B))
        for b, place in enumerate(part):
            out[place] = tokens_BS[b, len(prompts[place]) : length_B[b]]
    return out


def _stream_segment(
    model: Decoder,
    layered: Any,
    prompt: np.ndarray,
    most: int,
    S: int,
    sampling: Sampling,
    key: jax.Array,
    stop_id: int | None,
) -> Iterator[int]:
    state = _prefill(model, layered, [prompt], [0], S, sampling, key, stop_id)
    for made in range(1, most + 1):
        state = _decode_until(model, layered, state, np.int32(made), _sampling_arrays(sampling), _stop_array(stop_id))
        i = int(np.asarray(state.tokens_BS)[0, len(prompt) + made - 1])
        yield i
        if i == stop_id:
            return


def stream(
    model: Decoder,
    params: Any,
    prompt: np.ndarray,
    most: int,
    window: int,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
    stop_id: int | None = None,
) -> Iterator[int]:
    """The ids after one prompt, each as it is made. The model never reads more than `window` tokens: where it would, it
    forgets all but the last half of them, and reads that half anew. So a text may be longer than what the model was
    trained on. Up to there the ids are those of `generate` with the key `fold_in(key, 0)`.

    Raises InputError as `generate` does, and when `window` is below 2.
    """
    if window < 2:
        raise InputError(f"window = {window}: must be 2 or more")
    _check_prompts(model, [prompt], most)
    key, seen, part = jax.random.key(0) if key is None else key, [int(i) for i in prompt], 0
    layered, S = _by_layer(params), _round_up(min(window + 1, len(prompt) + most))
    while most > 0:
        if len(seen) > window:
            seen = seen[-(window // 2) :]
        room = min(window + 1 - len(seen), most)
        part_key = jax.random.fold_in(key, part)
        for i in _stream_segment(model, layered, np.array(seen), room, S, sampling, part_key, stop_id):
            seen.append(i)
            yield i
            if i == stop_id:
                return
        most, part = most - room, part + 1


def _check_prompts(model: Decoder, prompts: Sequence[np.ndarray], most: int) -> None:
    if most < 1:
        raise InputError(f"tokens = {most}: must be 1 or more")
    for place, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"prompt {place}: is empty; where a document begins stands the end-of-document id")
        worst = max(prompt, key=lambda i: i if i >= 0 else np.inf)
        if not 0 <= worst < model.config.vocab_size:
            raise InputError(
                f"prompt {place}: token {worst} is out of the model's vocabulary, vocab_size={model.config.vocab_size}"
            )


def _round_up(tokens: int) -> int:
    """Few lengths, so that few programs are compiled."""
    return max(1 << (tokens - 1).bit_length(), MIN_PADDED_TOKENS)


def _sampling_arrays(sampling: Sampling) -> SamplingArrays | None:
    if sampling.temperature == 0:
        return None
    top_k = None if sampling.top_k is None else np.int32(sampling.top_k)
    top_p = None if sampling.top_p is None else np.float32(sampling.top_p)
    return SamplingArrays(np.float32(sampling.temperature), top_k, top_p)


def _stop_array(stop_id: int | None) -> np.int32:
    """An id that no token has where there is none."""
    return np.int32(-1 if stop_id is None else stop_id)


def _prefill(
    model: Decoder,
    layered: Any,
    prompts: Sequence[np.ndarray],
    places: Sequence[int],
    S: int,
    sampling: Sampling,
    key: jax.Array,
    stop_id: int | None,
) -> DecodeState:
    """The prompts read and the first token of each made. Rows up to a power of two are added, ended from the start."""
    B, T = 1 << (len(prompts) - 1).bit_length(), min(_round_up(max(map(len, prompts))), S)
    tokens_BS, length_B = np.zeros((B, S), np.int32), np.ones(B, np.int32)
    for b, prompt in enumerate(prompts):
        tokens_BS[b, : len(prompt)], length_B[b] = prompt, len(prompt)
    place_B = np.r_[np.array(places, np.uint32), np.zeros(B - len(places), np.uint32)]
    ended_B = np.arange(B) >= len(prompts)
    return _prefill_jit(
        model, layered, tokens_BS, length_B, place_B, ended_B, T, key, _sampling_arrays(sampling), _stop_array(stop_id)
    )


_by_layer = jax.jit(split_layers)


@functools.partial(jax.jit, static_argnames=("model", "T"))
def _prefill_jit(
    model: Decoder,
    layered: Any,
    tokens_BS: jax.Array,
    length_B: jax.Array,
    place_B: jax.Array,
    ended_B: jax.Array,
    T: int,
    key: jax.Array,
    limits: SamplingArrays | None,
    stop: jax.Array,
) -> DecodeState:
    B, S = tokens_BS.shape
    nothing_B = jnp.zeros(B, jnp.int32)
    logits_BV, cache = decode_step(model, layered, tokens_BS[:, :T], nothing_B, length_B - 1, empty_cache(model, B, S))
    seed_B = jax.vmap(functools.partial(jax.random.fold_in, key))(place_B)
    state = DecodeState(tokens_BS, length_B, cache, seed_B, jnp.int32(0), ended_B)
    return _append_token(state, logits_BV, cache, limits, stop)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _decode_until(
    model: Decoder, layered: Any, state: DecodeState, most: jax.Array, limits: SamplingArrays | None, stop: jax.Array
) -> DecodeState:
    """Until `most` tokens are made of every row that has not ended."""

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.made < most) & ~state.ended_B.all()

    def step(state: DecodeState) -> DecodeState:
        cached_B = state.length_B - 1
        last_B1 = jnp.take_along_axis(state.tokens_BS, cached_B[:, None], axis=1)
        logits_BV, cache = decode_step(model, layered, last_B1, cached_B, jnp.zeros_like(cached_B), state.cache)
        return _append_token(state, logits_BV, cache, limits, stop)

    return jax.lax.while_loop(unfinished, step, state)


def _append_token(
    state: DecodeState, logits_BV: jax.Array, cache: list[KVCache], limits: SamplingArrays | None, stop: jax.Array
) -> DecodeState:
    """One token more in every row that has not ended."""
    key_B = jax.vmap(jax.random.fold_in, (0, None))(state.seed_B, state.made)
    next_B = jax.vmap(sample_token, (0, 0, None))(logits_BV, key_B, limits)
    rows_B, grows_B = jnp.arange(len(next_B)), ~state.ended_B
    next_B = jnp.where(grows_B, next_B, state.tokens_BS[rows_B, state.length_B])
    return state._replace(
        tokens_BS=state.tokens_BS.at[rows_B, state.length_B].set(next_B),
        length_B=state.length_B + grows_B,
        cache=cache,
        made=state.made + 1,
        ended_B=state.ended_B | (next_B == stop),
    )


def sample_token(logits_V: jax.Array, key: jax.Array, limits: SamplingArrays | None) -> jax.Array:
    """The id drawn from float32 logits; None: the likeliest."""
    if limits is None:
        return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = logits_V / limits.temperature
    if limits.top_k is None and limits.top_p is None:
        return jax.random.categorical(key, logits_V).astype(jnp.int32)
    order_V = jnp.argsort(-logits_V)
    falling_V = logits_V[order_V]
    if limits.top_k is not None:
        falling_V = jnp.where(jnp.arange(len(falling_V)) < limits.top_k, falling_V, -jnp.inf)
    if limits.top_p is not None:
        share_V = jax.nn.softmax(falling_V)
        before_V = jnp.cumsum(share_V) - share_V
        falling_V = jnp.where(before_V < limits.top_p, falling_V, -jnp.inf)
    return order_V[jax.random.categorical(key, falling_V)].astype(jnp.int32)
