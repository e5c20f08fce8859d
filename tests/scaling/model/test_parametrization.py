from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import MeshConfig, ModelConfig, OptimizerConfig, RunConfig
from scaling.model import sharding
from scaling.model.decoder import Decoder, features, logits
from scaling.model.parametrization import Multipliers, multipliers, simplest_equivalent
from scaling.model.weights import path_name
from scaling.training.schedule import Rates
from scaling.training.train_step import build_program

pytestmark = pytest.mark.usefixtures("unoptimized_programs")
Name = Literal["standard", "mup", "completep"]
BASE = ModelConfig(vocab_size=40, width=16, depth=2, heads=2, base_width=16, base_depth=2, qk_norm=True)
BYTES = dataclasses.replace(BASE, vocab_size=259)
LARGE = dataclasses.replace(BASE, width=64, heads=8, depth=6)
TOKENS_BT = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)


def named(model: ModelConfig, name: Name) -> ModelConfig:
    return dataclasses.replace(model, parametrization=name)


def paths(model: ModelConfig) -> list[str]:
    params = jax.eval_shape(Decoder(model).init, jax.random.key(0), TOKENS_BT)["params"]
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [  # four times as wide and three times as deep as the base; init, learning rate, decay, epsilon
        ("embedding", "mup", (2, 1, 1, 1 / 4)),
        ("embedding", "completep", (2, 1, 1, 1 / 4)),
        ("blocks/attention/k/kernel", "mup", (1, 1 / 4, 4, 1 / 4)),
        ("blocks/attention/k/kernel", "completep", (1, 1 / 4, 4, 1 / 12)),
        ("blocks/ff/down/kernel", "mup", (1, 1 / 4, 4, 1 / 4)),
        ("blocks/ff/down/kernel", "completep", (3**0.5, 1 / 4, 4, 1 / 12)),
        ("blocks/attention/q_norm/scale", "completep", (1, 1, 1, 1 / 12)),
        ("final_norm/scale", "completep", (1, 1, 1, 1 / 4)),
        ("head/kernel", "mup", (4, 1, 1, 1 / 4)),
        ("head/kernel", "standard", (1, 1, 1, 1)),
    ],
)
def test_multipliers_are_those_of_the_papers(path: str, name: Name, expected: tuple[float, ...]) -> None:
    """Yang et al. 2022, table 8, and Dey et al. 2025, table 1 and equation 40."""
    found = multipliers(named(LARGE, name), path)
    np.testing.assert_allclose(dataclasses.astuple(found), expected, rtol=1e-7)


def test_muon_follows_width_by_its_square_root_and_only_matrices_of_blocks() -> None:
    muon, model = OptimizerConfig(kind="muon"), named(LARGE, "completep")
    for path in ("attention/q", "attention/o", "ff/up", "ff/down"):
        found = multipliers(model, f"blocks/{path}/kernel", muon)
        assert dataclasses.replace(found, init=1.0) == Multipliers(1, 1 / 2, 2, 1 / 12)
    for path in ("embedding", "head/kernel", "blocks/ff_norm/scale"):
        assert multipliers(model, path, muon) == multipliers(model, path)


def lowered(model: ModelConfig, kind: Literal["adamw", "muon"]) -> tuple[str, str]:
    """The programs of init and of a step, before they are compiled."""
    program: Any = build_program(
        RunConfig(model=model, optimizer=OptimizerConfig(kind=kind)), sharding.make_mesh(MeshConfig())
    )
    tokens_BS = jax.ShapeDtypeStruct((16, 129), jnp.int32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    step = program.step.lower(program.abstract_state, tokens_BS, Rates(scalar, scalar))
    return program.init.lower(jax.random.key(0)).as_text(), step.as_text()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_at_the_base_size_all_three_are_one_program(kind: Literal["adamw", "muon"]) -> None:
    """The same text, hence the same weights and the same steps to the last bit; a deeper model's is another."""
    names: tuple[Name, ...] = ("standard", "mup", "completep") if kind == "adamw" else ("standard", "completep")
    standard, *others = (lowered(named(BYTES, name), kind) for name in names)
    assert others == [standard] * len(others)
    if kind == "adamw":
        deeper = dataclasses.replace(BYTES, base_depth=1)
        assert lowered(named(deeper, "mup"), kind) == standard, "muP does not follow depth"
        for one, other in zip(lowered(named(deeper, "completep"), kind), standard, strict=True):
            assert one != other


def test_simplest_equivalent_has_the_same_multipliers() -> None:
    completep = named(LARGE, "completep")
    assert simplest_equivalent(completep) == completep
    assert simplest_equivalent(dataclasses.replace(completep, depth=2)).parametrization == "mup"
    assert simplest_equivalent(named(BASE, "completep")).parametrization == "standard"
    narrow = dataclasses.replace(completep, width=16, heads=2)
    assert simplest_equivalent(narrow) == narrow, "CompleteP follows depth at the base width too"
    for path in paths(BASE):
        other = dataclasses.replace(completep, depth=2)
        assert multipliers(simplest_equivalent(other), path) == multipliers(other, path)


def test_initial_weights_and_multipliers_of_the_model() -> None:
    """Deviations as the papers have them; branches and logits as many times smaller as the size is larger."""
    params = jax.jit(Decoder(named(LARGE, "completep")).init)(jax.random.key(0), TOKENS_BT)["params"]
    blocks, deviation = params["blocks"], {}
    deviation["embedding"] = params["embedding"].std() / 16**-0.5
    deviation["head"] = params["head"]["kernel"].std() / (1 / 16)
    deviation["q"] = blocks["attention"]["q"]["kernel"].std() / 64**-0.5
    deviation["o"] = blocks["attention"]["o"]["kernel"].std() / (64**-0.5 / 2)
    deviation["down"] = blocks["ff"]["down"]["kernel"].std() / (LARGE.num_ff**-0.5 / 2)
    for name, ratio in deviation.items():
        assert float(ratio) == pytest.approx(1, abs=0.06), name

    @functools.partial(jax.jit, static_argnums=0)
    def seen(decoder: Decoder, params: Any) -> tuple[jax.Array, jax.Array]:
        return features(decoder, params, TOKENS_BT), logits(decoder, params, TOKENS_BT)

    scaled, product = seen(Decoder(named(LARGE, "completep")), params)
    rms = float(jnp.sqrt(jnp.mean(scaled**2)))
    assert rms == pytest.approx(1 / 4, rel=1e-3), "normalised, then divided by m_N"
    np.testing.assert_allclose(product, scaled @ params["head"]["kernel"], atol=1e-5)
    smaller = jax.tree.map(lambda x: x, params)
    for branch, name in (("attention", "o"), ("ff", "down")):
        smaller["blocks"][branch][name]["kernel"] = params["blocks"][branch][name]["kernel"] / 3
    plain, _ = seen(Decoder(named(LARGE, "mup")), smaller)
    np.testing.assert_allclose(plain, scaled, atol=1e-5)
