"""AdamW and Muon, and the learning rate as a function of tokens seen.

Learning rate and weight decay are arguments of the compiled step, not constants inside it: runs that differ only in
budget, schedule, learning rate or decay share one compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
from flax import struct

from scaling.config.run_config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from scaling.model.parametrization import Multipliers, multipliers, scale
from scaling.model.weights import path_name, weight_kind

UPDATE_RMS = 0.2
STACKED_MATRICES = optax.contrib.MuonDimensionNumbers(1, 2)


@struct.dataclass
class Rates:
    """What a step is told beside its batch: float32 scalars, or one of each a member of a population.

    learning_rate: of this step, schedule included. weight_decay: decoupled, times the learning rate.
    """

    learning_rate: Any
    weight_decay: Any


def learning_rate(tokens: float, optimizer: OptimizerConfig, schedule: ScheduleConfig, budget: int) -> float:
    """Learning rate after `tokens` of `budget` tokens. Linear warm-up, then cosine or stable-and-decay."""
    peak = optimizer.learning_rate
    if tokens < schedule.warmup_tokens:
        return peak * tokens / schedule.warmup_tokens
    start = schedule.warmup_tokens
    if schedule.kind == "wsd":
        start = max(start, round(budget * (1 - schedule.cooldown_fraction)))
    progress = min(max((tokens - start) / max(budget - start, 1), 0.0), 1.0)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)


def step_learning_rate(step: int, config: RunConfig) -> float:
    """Learning rate of step `step` (from 0): that of the middle of its tokens, so no step is spent at zero."""
    batch_tokens = config.data.batch_tokens
    budget = config.steps * batch_tokens
    return learning_rate((step + 0.5) * batch_tokens, config.optimizer, config.schedule, budget)


def step_rates(step: int, config: RunConfig) -> Rates:
    """What step `step` (from 0) is told, float32."""
    return Rates(np.float32(step_learning_rate(step, config)), np.float32(config.optimizer.weight_decay))


def gradient_transformation(
    config: OptimizerConfig, weight_decay: Any, model: ModelConfig
) -> optax.GradientTransformation:
    """Clip by global norm, Adam or Muon, decoupled decay of matrices; each weight's numbers times what the model's
    parametrisation gives it. The caller scales by minus the learning rate.

    weight_decay: a scalar, traced or not; the config's own is not read. An epsilon c times as large is a gradient c
    times as small: Adam's update depends on their quotient alone.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    inner = adam if config.kind == "adamw" else muon_with_rest(adam, config.momentum)
    decay = optax.add_decayed_weights(weight_decay, mask=decay_mask)

    def scale_tree(tree: Any, number: Callable[[Multipliers], float]) -> Any:
        if model.parametrization == "standard":
            return tree
        return jax.tree_util.tree_map_with_path(
            lambda path, x: scale(x, number(multipliers(model, path_name(path), config))), tree
        )

    def moments(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(scale_tree(updates, lambda m: 1 / m.epsilon), state, params)

    def decays(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = decay.update(updates, state, scale_tree(params, lambda m: m.weight_decay))
        return scale_tree(updates, lambda m: m.learning_rate), state

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.GradientTransformation(inner.init, moments),
        optax.GradientTransformation(decay.init, decays),
    )


def muon_with_rest(rest: optax.GradientTransformation, momentum: float) -> optax.GradientTransformation:
    """Muon for the matrices of blocks, stacked [L, I, O] and made orthogonal layer by layer; `rest` for the rest.

    Jordan et al. 2024: five steps of Newton and Schulz on Nesterov momentum. Times 0.2 sqrt(max(I, O)), the update's
    RMS is that of AdamW's, so that one learning rate and one decay serve both (Liu et al. 2025, equation 4).
    """
    muon = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=muon_dimension_numbers)
    coefficients: Any = muon.init({})

    # The coefficients of the iteration are constants: no part of the state.
    def init(params: Any) -> Any:
        state: Any = muon.init(params)
        return state._replace(ns_coeffs=())

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        after: Any = muon.update(updates, state._replace(ns_coeffs=coefficients.ns_coeffs), params)
        same_rms = jax.tree.map(lambda u: UPDATE_RMS * max(u.shape[1:]) ** 0.5 * u, after[0])
        return same_rms, after[1]._replace(ns_coeffs=())

    return optax.partition({"muon": optax.GradientTransformation(init, update), "adamw": rest}, optimizer_labels)


def muon_dimension_numbers(tree: Any) -> Any:
    """For optax: rows and columns of every weight here, all of them stacked matrices."""
    return jax.tree.map(lambda _: STACKED_MATRICES, tree)


def optimizer_labels(params: Any) -> Any:
    """Tree of which optimizer a weight has where Muon is asked for: "muon" for the matrices of blocks."""

    def kind(path: tuple[Any, ...], _: Any) -> str:
        return "muon" if weight_kind(path_name(path)).muon else "adamw"

    return jax.tree_util.tree_map_with_path(kind, params)


def decay_mask(params: Any) -> Any:
    """Tree of bools: true for every weight but the gains of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: weight_kind(path_name(path)).group != "norms", params)
