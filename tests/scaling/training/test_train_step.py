from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import MeshConfig, ModelConfig, PrecisionConfig, RunConfig
from scaling.errors import InputError
from scaling.model import sharding
from scaling.model.decoder import logits
from scaling.model.loss import training_loss
from scaling.training.schedule import Rates
from scaling.training.train_step import batch_gradients, build_decoder, build_program

pytestmark = pytest.mark.usefixtures("unoptimized_programs")


@pytest.mark.parametrize(
    ("remat", "configured", "unroll"),
    [("none", None, 4), ("none", 2, 2), ("none", 9, 4), ("full", None, 1), ("dots", 3, 3)],
)
def test_kernel_and_unroll_are_decided_for_the_devices_where_the_config_leaves_them_open(
    remat: str, configured: int | None, unroll: int
) -> None:
    config = RunConfig(model=ModelConfig(depth=4, unroll=configured, remat=remat))  # pyrefly: ignore
    model = build_decoder(config, sharding.make_mesh(MeshConfig()))
    assert (model.kernel, model.unroll, model.mesh) == ("blocked", unroll, None)


def test_a_kernel_that_cannot_run_ends_before_anything_is_built() -> None:
    config = RunConfig(model=ModelConfig(attention="splash"))
    with pytest.raises(InputError, match=r"model\.attention.*splash"):
        build_program(config, sharding.make_mesh(MeshConfig()))


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_the_plain_loss_with_the_reference_kernel(tiny: RunConfig, tied: bool) -> None:
    """Chunks, blocks, products side by side, in microbatches and not, against logits, one kernel and one batch."""
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, tied=tied, kv_heads=1))
    mesh = sharding.make_mesh(MeshConfig())
    plain = dataclasses.replace(build_decoder(config, mesh), kernel="xla")
    tokens_BS = np.random.default_rng(0).integers(0, 259, (8, 33)).astype(np.int32)
    params = jax.jit(plain.init)(jax.random.key(0), tokens_BS[:, :-1])["params"]

    def objective(params: dict) -> tuple[jax.Array, jax.Array]:
        logits_BTV = logits(plain, params, tokens_BS[:, :-1])
        unweighted = training_loss(logits_BTV, tokens_BS[:, 1:], 0.0)[1]
        return training_loss(logits_BTV, tokens_BS[:, 1:], config.optimizer.z_loss)[0], unweighted

    expected, expected_nats = jax.jit(jax.grad(objective, has_aux=True))(params)
    for microbatch in (None, 4):
        parts = dataclasses.replace(config.data, microbatch_sequences=microbatch)
        one = dataclasses.replace(config, data=parts)
        found, nats = jax.jit(lambda p, c=one: batch_gradients(build_decoder(c, mesh), c, p, tokens_BS))(params)
        assert np.isclose(nats, expected_nats), microbatch
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-6 + 1e-5 * np.abs(b).max(), err_msg=str(microbatch))


def test_the_step_consumes_the_state_it_is_given() -> None:
    """Donated: the weights and moments before a step share memory with those after it."""
    config = RunConfig(model=ModelConfig(width=32, depth=1, heads=2), precision=PrecisionConfig("bfloat16"))
    program = build_program(config, sharding.make_mesh(MeshConfig()))
    state = program.init(jax.random.key(0))
    tokens_BS = jnp.zeros((16, 129), jnp.int32)
    after, _ = program.step(state, tokens_BS, Rates(1e-3, 0.1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype(jnp.float32)}
