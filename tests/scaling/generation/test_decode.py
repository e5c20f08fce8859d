"""Decoding with a KV cache, compared with the model applied anew to the whole text at each step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import ModelConfig
from scaling.errors import InputError
from scaling.generation.decode import generate, stream
from scaling.generation.sampling import GREEDY, Sampling
from scaling.model.decoder import Decoder, decode_step, empty_cache, logits, split_layers

pytestmark = pytest.mark.usefixtures("unoptimized_programs")

CONFIG = ModelConfig(vocab_size=61, width=16, depth=2, heads=4)
SHAPES = {
    "grouped, tied": {"kv_heads": 2, "tied": True},
    "one key head, normalised, mup": {"kv_heads": 1, "qk_norm": True, "parametrization": "mup", "base_width": 8},
    "completep, tied": {"parametrization": "completep", "base_width": 8, "base_depth": 1, "tied": True},
}
WARM = Sampling(temperature=0.9, top_k=20, top_p=0.9)
PROMPTS = [np.random.default_rng(n).integers(0, 61, n) for n in (25, 3, 17, 1, 8)]
MOST = 24


def scaled_up_model(config: ModelConfig) -> tuple[Decoder, Any]:
    """A model whose weights are three times as large as at initialization, so that its outputs are far from uniform."""
    model = Decoder(config)
    params = jax.jit(model.init)(jax.random.key(5), jnp.zeros((1, 2), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: 3 * leaf, params)


@pytest.fixture(scope="module")
def plain() -> tuple[Decoder, Any]:
    return scaled_up_model(CONFIG)


plain_logits = jax.jit(logits, static_argnums=0)
sample = jax.jit(lambda key, step, scores_V: jax.random.categorical(jax.random.fold_in(key, step), scores_V))


def decode_without_cache(
    model: Decoder, params: Any, prompt: np.ndarray, max_tokens: int, sampling: Sampling, key: jax.Array
) -> list[int]:
    """Takes each token from the logits of the whole text; the zeros after the text are invisible to it."""
    ids, new_ids = np.zeros(64, np.int32), []
    ids[: len(prompt)] = prompt
    for step in range(max_tokens):
        scores_V = np.array(plain_logits(model, params, ids[None])[0, len(prompt) + step - 1])
        if sampling.temperature == 0:
            new_ids.append(int(scores_V.argmax()))
        else:
            new_ids.append(sample_in_numpy(scores_V / sampling.temperature, sampling, key, step))
        ids[len(prompt) + step] = new_ids[-1]
    return new_ids


def sample_in_numpy(scores_V: np.ndarray, sampling: Sampling, key: jax.Array, step: int) -> int:
    """The definition of Sampling in numpy, except for the random numbers."""
    falling = sorted(range(len(scores_V)), key=lambda i: -scores_V[i])[: sampling.top_k]
    if sampling.top_k is None and sampling.top_p is None:
        falling = list(range(len(scores_V)))
    shares = np.exp(scores_V[falling] - scores_V.max())
    shares /= shares.sum()
    if sampling.top_p is not None:
        falling = falling[: int((np.cumsum(shares) < sampling.top_p).sum()) + 1]
    padded = np.r_[scores_V[falling], np.full(len(scores_V) - len(falling), -np.inf, np.float32)]
    return falling[int(sample(key, step, padded))]


@pytest.mark.parametrize(("shape", "sampling"), [*((shape, GREEDY) for shape in SHAPES), ("plain", WARM)])
def test_tokens_equal_those_without_a_cache(shape: str, sampling: Sampling) -> None:
    model, params = scaled_up_model(dataclasses.replace(CONFIG, **SHAPES.get(shape, {})))
    key = jax.random.key(11)
    completions = generate(model, params, PROMPTS, MOST, sampling, key)
    for i, prompt in enumerate(PROMPTS[:3]):
        expected = decode_without_cache(model, params, prompt, MOST, sampling, jax.random.fold_in(key, i))
        assert completions[i].tolist() == expected, i
        assert len(set(expected)) > 1


def test_logits_with_a_cache_equal_those_without_for_rows_of_any_length() -> None:
    model = Decoder(CONFIG)
    ids_BT = np.random.default_rng(1).integers(0, 61, (3, 30)).astype(np.int32)
    params = jax.jit(model.init)(jax.random.key(5), ids_BT)["params"]
    expected = plain_logits(model, params, ids_BT)
    layered = split_layers(params)
    step, zero_B = jax.jit(decode_step, static_argnums=0), np.zeros(3, np.int32)
    cached_B, cache = np.array([5, 9, 1], np.int32), empty_cache(model, 3, 32)
    logits_BV, cache = step(model, layered, ids_BT[:, :9], zero_B, cached_B - 1, cache)
    np.testing.assert_allclose(logits_BV, expected[np.arange(3), cached_B - 1], atol=1e-5)
    while cached_B.max() < 30:
        next_B1 = ids_BT[np.arange(3), cached_B][:, None]
        logits_BV, cache = step(model, layered, next_B1, cached_B, zero_B, cache)
        np.testing.assert_allclose(logits_BV, expected[np.arange(3), cached_B], atol=1e-5)
        cached_B = cached_B + 1


def test_a_completion_does_not_depend_on_other_prompts_or_on_streaming(plain, monkeypatch: pytest.MonkeyPatch) -> None:
    together = generate(*plain, PROMPTS, MOST, WARM, jax.random.key(2))
    assert len({tuple(row) for row in together}) == len(PROMPTS)
    first_key, key = jax.random.fold_in(jax.random.key(2), 0), jax.random.key(2)
    (alone,) = generate(*plain, PROMPTS[:1], MOST, WARM, first_key)
    assert list(stream(*plain, PROMPTS[0], MOST, 64, WARM, key)) == alone.tolist()
    monkeypatch.setattr("scaling.generation.decode.CACHE_BYTES", 1)
    one_by_one = generate(*plain, PROMPTS, MOST, WARM, jax.random.key(2))
    assert [row.tolist() for row in one_by_one] == [row.tolist() for row in together]


def test_stream_reads_at_most_a_window(plain) -> None:
    for length in (3, 17, 40):
        prompt = np.random.default_rng(length).integers(0, 61, length)
        seen, expected = list(prompt), []
        for _ in range(40):
            seen = seen[-8:] if len(seen) > 16 else seen
            padded = np.r_[seen, np.zeros(64 - len(seen), int)].astype(np.int32)
            seen.append(int(plain_logits(*plain, padded[None])[0, len(seen) - 1].argmax()))
            expected.append(seen[-1])
        assert list(stream(*plain, prompt, 40, 16)) == expected
        assert expected[:24] != decode_without_cache(*plain, prompt, 24, GREEDY, jax.random.key(0))
        assert (
            list(stream(*plain, prompt, 40, 16, stop_id=expected[20])) == expected[: expected.index(expected[20]) + 1]
        )
    with pytest.raises(InputError, match=r"window\D*1\D*2\b"):
        next(stream(*plain, prompt, 40, 1))


def test_the_stop_id_ends_its_row_and_no_other(plain) -> None:
    free = generate(*plain, PROMPTS, MOST)
    stop = next(int(i) for i in free[0][2:] if any(i not in row for row in free))
    stopped = generate(*plain, PROMPTS, MOST, stop_id=stop)
    cut = [row[: list(row).index(stop) + 1] if stop in row else row for row in free]
    assert [row.tolist() for row in stopped] == [row.tolist() for row in cut]
    assert {len(row) for row in stopped} > {MOST}
    assert list(stream(*plain, PROMPTS[0], MOST, 64, stop_id=stop)) == stopped[0].tolist()


def test_another_temperature_or_seed_compiles_nothing(plain, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(*plain, PROMPTS, MOST, Sampling(0.5), jax.random.key(0))
    compiled: list[str] = []
    monkeypatch.setattr(
        "scaling.generation.decode.decode_step", lambda *args: compiled.append("") or decode_step(*args)
    )
    cold, warm, other = (
        generate(*plain, PROMPTS, MOST, Sampling(temperature), jax.random.key(seed))
        for temperature, seed in ((1e-4, 0), (1.5, 0), (1.5, 1))
    )
    assert not compiled
    assert [row.tolist() for row in cold] == [row.tolist() for row in generate(*plain, PROMPTS, MOST)]
    assert len({tuple(map(tuple, rows)) for rows in (cold, warm, other)}) == 3


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([[1], []], 4, r"prompt\D*1\b"),
        ([[1, 61, 2]], 4, r"prompt\D*0\D*61\b.*vocab_size\D*61\b"),
        ([[1, -1, 2]], 4, r"prompt\D*0\D*-1\b.*vocab_size\D*61\b"),
        ([[1]], 0, r"tokens\D*0\D*1\b"),
    ],
)
def test_wrong_prompts_are_named(plain, prompts: list[list[int]], max_tokens: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(*plain, [np.array(ids) for ids in prompts], max_tokens)
    assert generate(*plain, [], 4) == []
