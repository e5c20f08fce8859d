"""Generates text with a trained model, token by token, with a KV cache (Shazeer 2019, section 2.4).

The tokens equal those of the model applied anew to the whole text at each step; the cache only saves work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.errors import InputError
from scaling.generation.sampling import GREEDY, Sampling, SamplingArrays, sample_token, sampling_arrays
from scaling.model.decoder import Decoder, KVCache, decode_step, empty_cache, split_layers

MIN_PADDED_TOKENS = 16
"""Prompts are padded to a power of two of tokens, and to at least this many."""
CACHE_BYTES = 2**28
"""Prompts are decoded in batches whose KV cache takes at most this much memory."""


class DecodeState(NamedTuple):
    """B rows while they are decoded.

    tokens_BS: each row's prompt and the tokens generated so far, padded with zeros. length_B: number of both.
    cache: keys and values of all but the last of them. key_B: random key of each row. steps: tokens generated for a row
    that has not ended. ended_B: whether a row has generated the stop id.
    """

    tokens_BS: jax.Array
    length_B: jax.Array
    cache: list[KVCache]
    key_B: jax.Array
    steps: jax.Array
    ended_B: jax.Array


def generate(
    model: Decoder,
    params: Any,
    prompts: Sequence[np.ndarray],
    max_tokens: int,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
    stop_id: int | None = None,
) -> list[np.ndarray]:
    """The int32 ids after each prompt: `max_tokens` of them, or fewer when the last one is `stop_id`.

    The ids after prompt i do not depend on the other prompts: its random key is `fold_in(key, i)`, and that of its
    token j is `fold_in` of this key and j. Positions beyond the training sequence length get further rotations, as in
    transformers; `stream` avoids such positions. One program is compiled for each power of two of rows, of prompt
    length and of text length.

    Raises InputError when `max_tokens` is below 1, a prompt is empty, or holds an id that the model lacks.
    """
    if not prompts:
        return []
    _check_prompts(model, prompts, max_tokens)
    key = jax.random.key(0) if key is None else key
    S = padded_length(max(map(len, prompts)) + max_tokens)
    completions: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    layered, row_cache = _split_layers_jit(params), jax.tree.leaves(jax.eval_shape(lambda: empty_cache(model, 1, S)))
    max_rows = max(CACHE_BYTES // sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in row_cache), 1)
    for start in range(0, len(order), max_rows):
        indices = order[start : start + max_rows]
        state = _prefill(model, layered, [prompts[i] for i in indices], indices, S, sampling, key, stop_id)
        state = _decode_until(
            model, layered, state, np.int32(max_tokens), sampling_arrays(sampling), _stop_array(stop_id)
        )
        tokens_BS, length_B = jax.device_get((state.tokens_BS, state.length_B))
        for b, i in enumerate(indices):
            completions[i] = tokens_BS[b, len(prompts[i]) : length_B[b]]
    return completions


def _stream_segment(
    model: Decoder,
    layered: Any,
    prompt: np.ndarray,
    max_tokens: int,
    S: int,
    sampling: Sampling,
    key: jax.Array,
    stop_id: int | None,
) -> Iterator[int]:
    """Yields the ids after one prompt, as `generate` gives them, each as soon as it is known."""
    arrays, stop = sampling_arrays(sampling), _stop_array(stop_id)
    state = _prefill(model, layered, [prompt], [0], S, sampling, key, stop_id)
    for steps in range(1, max_tokens + 1):
        state = _decode_until(model, layered, state, np.int32(steps), arrays, stop)
        token = int(np.asarray(state.tokens_BS)[0, len(prompt) + steps - 1])
        yield token
        if token == stop_id:
            return


def stream(
    model: Decoder,
    params: Any,
    prompt: np.ndarray,
    max_tokens: int,
    window: int,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yields the ids after one prompt, each as soon as it is known, also beyond the length that the model trained on.

    The model never reads more than `window` tokens: when it would, all but the last `window // 2` are dropped, and the
    cache is computed anew for those. Until then the ids are those of `generate` with the key `fold_in(key, 0)`.

    Raises InputError as `generate` does, and when `window` is below 2.
    """
    if window < 2:
        raise InputError(f"window = {window}: must be 2 or more; raise --window")
    _check_prompts(model, [prompt], max_tokens)
    key, context, segment = jax.random.key(0) if key is None else key, [int(i) for i in prompt], 0
    layered, S = _split_layers_jit(params), padded_length(min(window + 1, len(prompt) + max_tokens))
    tokens_left = max_tokens
    while tokens_left > 0:
        if len(context) > window:
            context = context[-(window // 2) :]
        segment_tokens = min(window + 1 - len(context), tokens_left)
        segment_key = jax.random.fold_in(key, segment)
        for token in _stream_segment(
            model, layered, np.array(context), segment_tokens, S, sampling, segment_key, stop_id
        ):
            context.append(token)
            yield token
            if token == stop_id:
                return
        tokens_left, segment = tokens_left - segment_tokens, segment + 1


def _check_prompts(model: Decoder, prompts: Sequence[np.ndarray], max_tokens: int) -> None:
    """Raises InputError when `max_tokens` is below 1, a prompt is empty, or holds an id that the model lacks."""
    if max_tokens < 1:
        raise InputError(f"tokens = {max_tokens}: must be 1 or more; raise --tokens")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"prompt {number}: is empty: must have a token; give it the end-of-document id")
        wrong_or_max = max(prompt, key=lambda token: token if token >= 0 else np.inf)
        if not 0 <= wrong_or_max < model.config.vocab_size:
            raise InputError(
                f"prompt {number}: token {wrong_or_max}: must be at least 0 and below model.vocab_size = "
                f"{model.config.vocab_size}; encode it with the run's own tokenizer"
            )


def padded_length(tokens: int, least: int = MIN_PADDED_TOKENS) -> int:
    """The next power of two, and at least `least`, so that few programs are compiled."""
    return max(1 << (tokens - 1).bit_length(), least)


def _stop_array(stop_id: int | None) -> np.int32:
    """`stop_id`, or -1, which no token has."""
    return np.int32(-1 if stop_id is None else stop_id)


def _prefill(
    model: Decoder,
    layered: Any,
    prompts: Sequence[np.ndarray],
    indices: Sequence[int],
    S: int,
    sampling: Sampling,
    key: jax.Array,
    stop_id: int | None,
) -> DecodeState:
    """Reads the prompts into a cache of S tokens and generates the first token of each. indices: numbers that determine
    the prompts' random keys. Rows are added up to a power of two; they count as ended from the start."""
    B, T = 1 << (len(prompts) - 1).bit_length(), min(padded_length(max(map(len, prompts))), S)
    tokens_BS, length_B = np.zeros((B, S), np.int32), np.ones(B, np.int32)
    for b, prompt in enumerate(prompts):
        tokens_BS[b, : len(prompt)], length_B[b] = prompt, len(prompt)
    index_B = np.r_[np.array(indices, np.uint32), np.zeros(B - len(indices), np.uint32)]
    ended_B = np.arange(B) >= len(prompts)
    return _prefill_jit(
        model, layered, tokens_BS, length_B, index_B, ended_B, T, key, sampling_arrays(sampling), _stop_array(stop_id)
    )


_split_layers_jit = jax.jit(split_layers)


@functools.partial(jax.jit, static_argnames=("model", "T"))
def _prefill_jit(
    model: Decoder,
    layered: Any,
    tokens_BS: jax.Array,
    length_B: jax.Array,
    index_B: jax.Array,
    ended_B: jax.Array,
    T: int,
    key: jax.Array,
    arrays: SamplingArrays | None,
    stop: jax.Array,
) -> DecodeState:
    """The jitted part of `_prefill`: runs the model on the first T tokens of every row."""
    B, S = tokens_BS.shape
    cached_B = jnp.zeros(B, jnp.int32)
    logits_BV, cache = decode_step(model, layered, tokens_BS[:, :T], cached_B, length_B - 1, empty_cache(model, B, S))
    key_B = jax.vmap(functools.partial(jax.random.fold_in, key))(index_B)
    state = DecodeState(tokens_BS, length_B, cache, key_B, jnp.int32(0), ended_B)
    return _append_token(state, logits_BV, cache, arrays, stop)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _decode_until(
    model: Decoder, layered: Any, state: DecodeState, steps: jax.Array, arrays: SamplingArrays | None, stop: jax.Array
) -> DecodeState:
    """Generates tokens until every row has `steps` of them or has ended."""

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.steps < steps) & ~state.ended_B.all()

    def step(state: DecodeState) -> DecodeState:
        cached_B = state.length_B - 1  # the last token is not in the cache yet
        last_B1 = jnp.take_along_axis(state.tokens_BS, cached_B[:, None], axis=1)
        logits_BV, cache = decode_step(model, layered, last_B1, cached_B, jnp.zeros_like(cached_B), state.cache)
        return _append_token(state, logits_BV, cache, arrays, stop)

    return jax.lax.while_loop(unfinished, step, state)


def _append_token(
    state: DecodeState, logits_BV: jax.Array, cache: list[KVCache], arrays: SamplingArrays | None, stop: jax.Array
) -> DecodeState:
    """Samples one more token for every row that has not ended, and writes it after the row's last one."""
    step_key_B = jax.vmap(jax.random.fold_in, (0, None))(state.key_B, state.steps)
    next_B = jax.vmap(sample_token, (0, 0, None))(logits_BV, step_key_B, arrays)
    row_B, is_active_B = jnp.arange(len(next_B)), ~state.ended_B
    # Rows that have ended write what stands there already.
    next_B = jnp.where(is_active_B, next_B, state.tokens_BS[row_B, state.length_B])
    return state._replace(
        tokens_BS=state.tokens_BS.at[row_B, state.length_B].set(next_B),
        length_B=state.length_B + is_active_B,
        cache=cache,
        steps=state.steps + 1,
        ended_B=state.ended_B | (next_B == stop),
    )
