"""The gradient transformations: AdamW and Muon, with the multipliers of the model's parametrization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from scaling.config.run_config import ModelConfig, OptimizerConfig
from scaling.model.parametrization import Multipliers, multipliers, scale
from scaling.model.weights import path_name, weight_kind

UPDATE_RMS = 0.2
"""RMS of AdamW's updates, which Muon's are scaled to (Liu et al. 2025)."""
STACKED_MATRICES = optax.contrib.MuonDimensionNumbers(1, 2)
"""Rows and columns of a weight [L, I, O]."""


def gradient_transformation(
    config: OptimizerConfig, weight_decay: Any, model: ModelConfig
) -> optax.GradientTransformation:
    """Clipping by global norm, then Adam or Muon, then decoupled weight decay. Each weight's epsilon, learning rate and
    decay are multiplied by its factors in the model's parametrization. The caller multiplies the updates by minus the
    learning rate.

    weight_decay: a scalar, traced or not; it stands in for the config's own.
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
        # Adam's update depends on gradient / epsilon alone: a gradient times 1/c acts as an epsilon times c.
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
    """Muon for the matrices of blocks, stacked [L, I, O] and orthogonalized layer by layer; `rest` for other weights.

    Jordan et al. 2024: five Newton-Schulz iterations on Nesterov momentum. The update times 0.2 sqrt(max(I, O)) has the
    RMS of AdamW's, so that one learning rate and one weight decay serve both (Liu et al. 2025, equation 4).
    """
    muon = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=muon_dimension_numbers)
    coefficients: Any = muon.init({})

    # The coefficients of the iteration are constants, so they are left out of the state and of checkpoints.
    def init(params: Any) -> Any:
        state: Any = muon.init(params)
        return state._replace(ns_coeffs=())

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        result: Any = muon.update(updates, state._replace(ns_coeffs=coefficients.ns_coeffs), params)
        same_rms = jax.tree.map(lambda u: UPDATE_RMS * max(u.shape[1:]) ** 0.5 * u, result[0])
        return same_rms, result[1]._replace(ns_coeffs=())

    return optax.partition({"muon": optax.GradientTransformation(init, update), "adamw": rest}, optimizer_labels)


def muon_dimension_numbers(tree: Any) -> Any:
    """For optax: which axes of each weight are rows and columns. All are stacked matrices."""
    return jax.tree.map(lambda _: STACKED_MATRICES, tree)


def optimizer_labels(params: Any) -> Any:
    """The optimizer of each weight under `optimizer.kind = muon`: "muon" for the matrices of blocks, else "adamw"."""

    def kind(path: tuple[Any, ...], _: Any) -> str:
        return "muon" if weight_kind(path_name(path)).muon else "adamw"

    return jax.tree_util.tree_map_with_path(kind, params)


def decay_mask(params: Any) -> Any:
    """Tree of bools: true for every weight but the gains of norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: weight_kind(path_name(path)).group != "norms", params)
