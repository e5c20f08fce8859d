"""Scores of continuations in padded batches, compared with sums over one row at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import ModelConfig
from scaling.errors import InputError
from scaling.measurements import likelihood
from scaling.measurements.likelihood import ContextPair, score_pairs
from scaling.model.decoder import Decoder, logits

pytestmark = pytest.mark.usefixtures("unoptimized_programs")

CONFIG = ModelConfig(vocab_size=61, width=16, depth=2, heads=2)
LENGTH = 48


@pytest.fixture(scope="module")
def model() -> tuple[Decoder, dict]:
    decoder = Decoder(CONFIG)
    return decoder, decoder.init(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))["params"]


def random_pair(seed: int, context: int, continuation: int) -> ContextPair:
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, context + continuation)
    return ContextPair(ids[:context], ids[context:])


def score_alone(model: tuple[Decoder, dict], pair: ContextPair) -> tuple[float, bool]:
    ids = np.concatenate([pair.context, pair.continuation])[-(LENGTH + 1) :]
    padded = np.r_[ids[:-1], np.zeros(LENGTH + 1 - len(ids), ids.dtype)]
    log_p_TV = np.asarray(jax.nn.log_softmax(logits(*model, padded[None])[0]))
    tail, likeliest = range(len(ids) - 1 - len(pair.continuation), len(ids) - 1), log_p_TV.argmax(-1)
    return -float(sum(log_p_TV[t, ids[t + 1]] for t in tail)), all(likeliest[t] == ids[t + 1] for t in tail)


def test_every_pair_scores_as_it_does_alone(model) -> None:
    pairs = [random_pair(seed, 1 + 7 * seed % 60, 1 + seed % 5) for seed in range(23)]
    scores = score_pairs(*model, pairs, LENGTH)
    expected = [score_alone(model, one) for one in pairs]
    np.testing.assert_allclose(scores.nats_P, [nats for nats, _ in expected], rtol=1e-5)
    assert scores.greedy_P.tolist() == [greedy for _, greedy in expected]


def test_pairs_that_differ_in_their_last_token_share_a_row(model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, score_rows = [], likelihood.score_rows
    monkeypatch.setattr(likelihood, "score_rows", lambda *args: rows.append(len(args[2])) or score_rows(*args))
    start, other = random_pair(5, 11, 3), random_pair(6, 11, 1)
    ends = [ContextPair(start.context, [*start.continuation[:-1], end]) for end in range(CONFIG.vocab_size)]
    shorter = ContextPair([*start.context, *start.continuation[:-1]], [7])
    scores = score_pairs(*model, [*ends, other, shorter], LENGTH)
    assert rows == [4], "three rows and one that fills up"
    assert scores.greedy_P[: len(ends)].sum() <= 1
    for place, one in ((0, ends[0]), (60, ends[60]), (61, other), (62, shorter)):
        assert scores.nats_P[place] == pytest.approx(score_alone(model, one)[0], rel=1e-5)


def test_the_likeliest_continuation_is_greedy_and_another_is_not(model) -> None:
    start = random_pair(1, 9, 1).context
    best = int(logits(*model, start[None])[0, -1].argmax())
    scores = score_pairs(*model, [ContextPair(start, [best]), ContextPair(start, [(best + 1) % 61])], LENGTH)
    assert scores.greedy_P.tolist() == [True, False]
    assert scores.nats_P[0] < scores.nats_P[1]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (ContextPair([1], []), r"pair\D*0\b.*\bcontinuation\b"),
        (ContextPair([], [1]), r"pair\D*0\b.*\bcontext\b"),
        (ContextPair([1], [2] * 49), r"pair\D*0\D*49\D*48\b"),
    ],
)
def test_wrong_pairs_are_named(model, pair: ContextPair, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_pairs(*model, [pair], LENGTH)
