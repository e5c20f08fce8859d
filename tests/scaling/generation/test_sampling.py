"""Settings of sampling, and the frequencies of the tokens that it yields."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.errors import InputError
from scaling.generation.sampling import Sampling, SamplingArrays, sample_token


def test_tokens_are_sampled_with_their_probabilities() -> None:
    scores_V = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.25, 0.2]))

    def shares(temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
        arrays = SamplingArrays(jnp.float32(temperature), top_k, top_p)
        sampled_N = jax.vmap(lambda key: sample_token(scores_V, key, arrays))(
            jax.random.split(jax.random.key(0), 20_000)
        )
        return np.bincount(sampled_N, minlength=5) / 20_000

    hot_V = np.sqrt([0.1, 0.4, 0.05, 0.25, 0.2])
    np.testing.assert_allclose(shares(1, None, None), [0.1, 0.4, 0.05, 0.25, 0.2], atol=0.015)
    np.testing.assert_allclose(shares(2, None, None), hot_V / hot_V.sum(), atol=0.015)
    np.testing.assert_allclose(shares(1, 2, None), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=0.015)
    np.testing.assert_allclose(shares(1, None, 0.6), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=0.015)
    np.testing.assert_allclose(shares(1, 3, 0.5), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=0.015)
    np.testing.assert_allclose(shares(1, None, 0.3), [0, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"Sampling\.temperature.*-0\.1\D*0\b"),
        ({"temperature": float("nan")}, r"Sampling\.temperature.*\bnan\b"),
        ({"top_k": 0}, r"Sampling\.top_k\D*0\D*1\b"),
        ({"top_p": 0.0}, r"Sampling\.top_p\D*0\.0\D*0\D*1\b"),
        ({"top_p": 1.5}, r"Sampling\.top_p\D*1\.5\D*0\D*1\b"),
    ],
)
def test_wrong_settings_of_sampling_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)
