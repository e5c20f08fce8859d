from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from scaling.config.run_config import ModelConfig, OptimizerConfig, RunConfig
from scaling.model import sharding
from scaling.model.parametrization import multipliers
from scaling.model.weights import path_name
from scaling.training.checkpoints import Checkpoints
from scaling.training.optimizer import decay_mask, gradient_transformation
from scaling.training.schedule import Rates
from scaling.training.train_step import TrainState, build_program

pytestmark = pytest.mark.usefixtures("unoptimized_programs")
OPTIMIZER = OptimizerConfig(learning_rate=2.0)


def test_adamw_equals_optax_with_gains_not_decayed() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=0.3)
    matrix, gain = np.full((2, 2), 3.0, np.float32), np.full(2, 3.0, np.float32)
    params = {"head": {"kernel": matrix}, "final_norm": {"scale": gain}}
    reference = optax.chain(
        optax.clip_by_global_norm(0.3), optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.5, mask=decay_mask)
    )
    ours = gradient_transformation(config, config.weight_decay, ModelConfig())

    @jax.jit
    def step(a: Any, b: Any, state_a: Any, state_b: Any, grads: Any) -> Any:
        updates, state_a = ours.update(grads, state_a, a)
        a = jax.tree.map(lambda p, u: p - 0.1 * u, a, updates)
        updates, state_b = reference.update(grads, state_b, b)
        return a, optax.apply_updates(b, updates), state_a, state_b

    a = b = params
    state_a, state_b = ours.init(a), reference.init(b)
    for number in range(5):
        grads = jax.tree.map(lambda x, number=number: np.sin(x * (number + 1)), params)
        a, b, state_a, state_b = step(a, b, state_a, state_b, grads)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    assert decay_mask(params) == {"head": {"kernel": True}, "final_norm": {"scale": False}}


def weights(seed: int) -> dict:
    """A tree of the decoder's paths: stacked matrices of two layers, wide and tall, and one of each other kind."""
    draw = np.random.default_rng(seed).normal
    return {
        "embedding": draw(size=(7, 4)).astype(np.float32),
        "blocks": {
            "attention": {"q": {"kernel": draw(size=(2, 4, 6)).astype(np.float32)}},
            "ff": {"down": {"kernel": draw(size=(2, 8, 4)).astype(np.float32)}},
            "ff_norm": {"scale": draw(size=(2, 4)).astype(np.float32)},
        },
        "head": {"kernel": draw(size=(4, 7)).astype(np.float32)},
    }


def test_each_weight_has_the_rate_decay_and_epsilon_of_its_parametrization() -> None:
    """Against Adam with another epsilon, one weight at a time; epsilon is large, so that it matters."""
    model = ModelConfig(width=8, heads=2, depth=6, base_width=2, base_depth=2, parametrization="completep")
    config = OptimizerConfig(epsilon=0.3, clip_norm=1e9)
    params, ours = weights(0), gradient_transformation(config, 0.5, model)
    by_name = {path_name(path): weight for path, weight in jax.tree_util.tree_leaves_with_path(params)}
    adams = {
        name: optax.scale_by_adam(config.beta1, config.beta2, config.epsilon * multipliers(model, name).epsilon)
        for name in by_name
    }
    update, adam_update = jax.jit(ours.update), jax.jit(lambda grads, states: each(adams, grads, states))
    state, states = ours.init(params), {name: adam.init(by_name[name]) for name, adam in adams.items()}
    for step in (1, 2):
        updates, state = update(weights(step), state, params)
        expected, states = adam_update(dict(zip(by_name, jax.tree.leaves(weights(step)), strict=True)), states)
        for (name, weight), found in zip(by_name.items(), jax.tree.leaves(updates), strict=True):
            m = multipliers(model, name)
            decay = 0.0 if "norm" in name else 0.5 * m.weight_decay
            wanted = m.learning_rate * (np.asarray(expected[name]) + decay * weight)
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


def each(adams: dict[str, Any], grads: dict[str, Any], states: dict[str, Any]) -> tuple[dict, dict]:
    """One update of each weight by its own Adam, and their states after it."""
    both = {name: adam.update(grads[name], states[name]) for name, adam in adams.items()}
    return {name: one[0] for name, one in both.items()}, {name: one[1] for name, one in both.items()}


def test_muon_makes_each_layer_orthogonal_and_leaves_the_rest_to_adamw() -> None:
    """Against Newton-Schulz iterations in numpy, layer by layer, on Nesterov momentum over two steps."""
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    config, model = OptimizerConfig(kind="muon", momentum=0.8, clip_norm=1e9), ModelConfig()
    params, ours = weights(0), gradient_transformation(config, 0.5, model)
    adamw = gradient_transformation(dataclasses.replace(config, kind="adamw"), 0.5, model)
    state, other = ours.init(params), adamw.init(params)
    both = jax.jit(lambda grads, state, other: (ours.update(grads, state, params), adamw.update(grads, other, params)))
    momentum = {"q": 0.0, "down": 0.0}
    for step in (1, 2):
        grads = weights(step)
        (updates, state), (same, other) = both(grads, state, other)
        for name, side in (("q", "attention"), ("down", "ff")):
            grad_LIO = np.asarray(grads["blocks"][side][name]["kernel"], np.float64)
            momentum[name] = 0.8 * momentum[name] + 0.2 * grad_LIO
            ahead_LIO = 0.8 * momentum[name] / (1 - 0.8 ** (step + 1)) + 0.2 * grad_LIO / (1 - 0.8**step)
            for layer, weight_IO in enumerate(params["blocks"][side][name]["kernel"]):
                square = newton_schulz(ahead_LIO[layer])
                assert np.abs(np.linalg.svd(square)[1] - 1).max() < 0.35, "nearly orthogonal"
                expected = 0.2 * max(square.shape) ** 0.5 * square + 0.5 * weight_IO
                found = updates["blocks"][side][name]["kernel"][layer]
                np.testing.assert_allclose(found, expected, atol=2e-5)
        for name in ("embedding", "head"):
            jax.tree.map(near, updates[name], same[name])
        near(updates["blocks"]["ff_norm"]["scale"], same["blocks"]["ff_norm"]["scale"])


def newton_schulz(x_IO: np.ndarray) -> np.ndarray:
    """The quintic iteration of Jordan et al. 2024, five times."""
    x = x_IO / np.linalg.norm(x_IO)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_muon_learns_and_its_state_comes_back_from_a_checkpoint(tiny: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny, optimizer=OptimizerConfig(kind="muon"))
    program = build_program(config, sharding.make_mesh(config.mesh))
    tokens_BS = np.random.default_rng(0).integers(0, 259, (8, 33)).astype(np.int32)
    state, losses = program.init(jax.random.key(0)), []

    def step(state: TrainState) -> TrainState:
        state, metrics = program.step(state, tokens_BS, Rates(np.float32(0.02), np.float32(0.1)))
        losses.append(float(metrics["loss"]))
        return state

    for _ in range(6):
        state = step(state)
    with Checkpoints(tmp_path, keep=1) as save:
        save.save(6, state)
        save.wait()
        restored = save.restore(6, program.abstract_state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    after = step(state)
    jax.tree.map(np.testing.assert_array_equal, step(restored), after)
    assert losses[6] < losses[0] - 0.5
    assert losses[7] == losses[6]
