"""The table of weights against real parameter trees: every weight has one row, and every row a weight."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from scaling.accounting import counts
from scaling.config.run_config import ModelConfig
from scaling.errors import InputError
from scaling.model import weights
from scaling.model.decoder import Decoder
from scaling.model.weights import WEIGHT_KINDS, check_param_counts, count_weights, exported_name, path_name, weight_kind

MODELS = {
    "untied": ModelConfig(width=64, depth=3, heads=4),
    "tied": ModelConfig(width=64, depth=2, heads=4, kv_heads=2, tied=True),
    "qk_norm": ModelConfig(width=48, depth=5, heads=2, qk_norm=True, ff_width=100, vocab_size=1000),
}


def param_shapes(model: ModelConfig) -> Any:
    return jax.eval_shape(Decoder(model).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def shapes_by_path(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(model))
    return {path_name(path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_matches_exactly_one_row(name: str) -> None:
    for path, shape in shapes_by_path(MODELS[name]).items():
        matches = [kind for kind in WEIGHT_KINDS if re.fullmatch(kind.pattern, path)]
        assert matches == [weight_kind(path)], path
        assert len(matches[0].spec) <= len(shape)


def test_every_row_has_a_weight() -> None:
    paths = [path for model in MODELS.values() for path in shapes_by_path(model)]
    assert {weight_kind(path).pattern for path in paths} == {kind.pattern for kind in WEIGHT_KINDS}


@pytest.mark.parametrize("path", ["blocks/attention/q/bias", "embedding2", "blocks/moe/gate/kernel"])
def test_an_unknown_weight_raises_with_its_path(path: str) -> None:
    with pytest.raises(LookupError, match=rf"{path}.*\b0\b"):
        weight_kind(path)
    with pytest.raises(LookupError, match=path):
        count_weights({path: jnp.zeros(3)})


def test_a_weight_that_two_rows_match_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    second = dataclasses.replace(WEIGHT_KINDS[0], pattern=r"emb.*")
    monkeypatch.setattr(weights, "WEIGHT_KINDS", (*WEIGHT_KINDS, second))
    with pytest.raises(LookupError, match=r"embedding.*\b2\b"):
        weight_kind("embedding")


@pytest.mark.parametrize("name", MODELS)
def test_counts_of_the_tree_equal_the_formula(name: str) -> None:
    model, shapes = MODELS[name], param_shapes(MODELS[name])
    counted = count_weights(shapes)
    assert counted == counts.count_params(model)
    assert counted.total == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert counted.non_embedding == counted.total - shapes["embedding"].size
    check_param_counts(model, shapes)


def test_a_tree_that_the_formula_does_not_describe_raises() -> None:
    model = MODELS["untied"]
    deeper = dataclasses.replace(model, depth=4)
    blocks = [counts.count_params(each).blocks for each in (model, deeper)]
    with pytest.raises(InputError, match=rf"\bblocks\b.*\b{blocks[0]}\b.*\b{blocks[1]}\b") as error:
        check_param_counts(deeper, param_shapes(model))
    assert "embedding" not in str(error.value), "a group that is right"


@pytest.mark.parametrize("name", MODELS)
def test_exported_names_are_distinct(name: str) -> None:
    names = [exported_name(path, layer) for path in shapes_by_path(MODELS[name]) for layer in range(2)]
    per_layer = [name for name in names if ".layers." in name]
    assert len(set(per_layer)) == len(per_layer), "a layer's tensors have names of their own"
    assert len(set(names) - set(per_layer)) == (2 if MODELS[name].tied else 3)
