from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from scaling.loss import bits_per_byte, cross_entropy, training_loss


def test_cross_entropy_by_hand() -> None:
    logits_BTV = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]], np.float32)) + 3.0
    nats_BT, log_z_BT = cross_entropy(jnp.asarray(logits_BTV), jnp.asarray([[0, 2]]))
    np.testing.assert_allclose(nats_BT, -np.log([[0.5, 0.7]]), rtol=1e-5)
    np.testing.assert_allclose(log_z_BT, [[3.0, 3.0]], rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    nats_BT, _ = cross_entropy(jnp.asarray([[[1e4, 0.0]]]), jnp.asarray([[1]]))
    assert float(nats_BT[0, 0]) == 1e4


def test_z_loss_adds_the_squared_log_partition_and_leaves_nats_alone() -> None:
    logits_BTV = jnp.asarray([[[2.0, 2.0]]])
    log_z = 2.0 + math.log(2)
    plain, nats = training_loss(logits_BTV, jnp.asarray([[0]]), 0.0)
    with_z, same = training_loss(logits_BTV, jnp.asarray([[0]]), 0.1)
    assert float(plain) == float(nats) == float(same)
    assert math.isclose(float(with_z - plain), 0.1 * log_z**2, rel_tol=1e-5)


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    assert math.isclose(bits_per_byte(1000 * math.log(256), 1000), 8.0)
    assert math.isclose(bits_per_byte(1000 * math.log(256), 4000), 2.0)
