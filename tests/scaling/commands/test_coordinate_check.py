from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling.commands import coordinate_check
from scaling.commands.coordinate_check import (
    KINDS,
    activation_changes,
    activations,
    coord_check,
    fit_trends,
    model_of_size,
)
from scaling.config.run_config import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from scaling.errors import InputError
from scaling.model.decoder import Decoder, RMSNorm
from scaling.model.parametrization import logit_multiplier, residual_multiplier, simplest_equivalent

pytestmark = pytest.mark.usefixtures("unoptimized_programs")


def small(width: int, depth: int, parametrization: coordinate_check.Parametrization) -> ModelConfig:
    return dataclasses.replace(model_of_size(width, depth, parametrization, (32, 1), 16), vocab_size=40)


def test_activations_are_those_of_the_model() -> None:
    """Branches times their multiplier add up to the stream; the stream, normalised, makes the logits."""
    config = small(32, 3, "completep")
    model = Decoder(config)
    tokens_BT = np.random.default_rng(0).integers(0, 40, (2, 9)).astype(np.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens_BT)["params"]
    found = activations(model, params, tokens_BT)
    assert set(found) == set(KINDS)
    np.testing.assert_array_equal(found["embedding"], params["embedding"][tokens_BT])
    branches_BTM = found["attention"].sum(axis=0) + found["ff"].sum(axis=0)
    expected = found["embedding"] + residual_multiplier(config) * branches_BTM
    np.testing.assert_allclose(found["residual"], expected, atol=1e-5)
    assert residual_multiplier(config) == pytest.approx(1 / 3)
    x_BTM = RMSNorm(config.norm_epsilon).apply({"params": params["final_norm"]}, found["residual"])
    product = logit_multiplier(config) * x_BTM @ params["head"]["kernel"]
    np.testing.assert_allclose(found["logits"], product, atol=1e-5)


@pytest.mark.slow
def test_activations_of_real_steps_grow_with_width_under_standard_alone() -> None:
    """Tokens of uneven frequency, as in text: what there is to learn first moves all weights in one direction."""
    tokens_SBS = np.minimum(np.random.default_rng(0).geometric(0.2, (2, 8, 17)), 39).astype(np.int32)
    data, optimizer = DataConfig(sequence_length=16, batch_sequences=8), OptimizerConfig(learning_rate=0.002)
    logs = {}
    for name, width in (("standard", 32), ("standard", 128), ("mup", 128)):
        found = activation_changes(
            RunConfig(model=small(width, 1, name), data=data, optimizer=optimizer), tokens_SBS, 2
        )  # pyrefly: ignore
        assert found.shape == (2, 2, len(KINDS))
        assert np.all(found > 0)
        logs[name, width] = np.log(found[:, -1]).mean(axis=0)
    slopes = {name: (logs[name, 128] - logs["standard", 32]) / np.log(4) for name in ("standard", "mup")}
    branches = [KINDS.index(kind) for kind in ("attention", "ff", "logits")]
    assert np.all(slopes["standard"][branches] > 2 * coordinate_check.BOUND)
    assert np.all(np.abs(slopes["mup"][branches]) <= coordinate_check.BOUND)


def planted(config: RunConfig, tokens_SBS: np.ndarray, seeds: int) -> np.ndarray:
    """Changes that follow width to the powers 0, .2, .3, 1, -1 under standard and depth to 1/2 unless CompleteP."""
    model = config.model
    width = np.array([0, 0.2, 0.3, 1, -1]) * (model.parametrization == "standard")
    depth = 0.0 if model.parametrization == "completep" else 0.5
    last = 0.1 * model.width**width * model.depth**depth
    noise = np.exp(np.linspace(-1, 1, seeds))[:, None, None]
    return noise * last * np.linspace(0.1, 1, len(tokens_SBS))[:, None]


def test_slopes_and_verdicts_of_planted_powers() -> None:
    widths, depths = (16, 32, 64), (1, 3, 9)
    sizes = [(w, 1) for w in widths] + [(16, d) for d in depths]
    found = {}
    for size in sizes:
        for name in ("standard", "mup", "completep"):
            model = simplest_equivalent(model_of_size(*size, name, (16, 1), 8))  # pyrefly: ignore
            found[model] = planted(RunConfig(model=model), np.zeros((2, 1, 1)), 3)
    assert len(found) == 9, "what is equal is trained once"
    result = {(t.axis, t.parametrization, t.kind): t for t in fit_trends(found, widths, depths, 8)}
    assert len(result) == 30
    standard = [result["width", "standard", kind] for kind in KINDS]
    np.testing.assert_allclose([t.slope for t in standard], [0, 0.2, 0.3, 1, -1], atol=1e-6)
    assert [t.verdict for t in standard] == ["flat", "flat", "grows", "grows", "shrinks"]
    assert result["depth", "mup", "logits"].slope == pytest.approx(0.5)
    assert result["depth", "mup", "logits"].changes == result["depth", "standard", "logits"].changes
    assert result["depth", "standard", "residual"].sizes == depths


def test_the_verb_prints_draws_and_writes(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coordinate_check, "activation_changes", planted)
    monkeypatch.setenv("COLUMNS", "120")
    coord_check(
        (16, 32), (1, 2), 2, 1, corpus="walk", directory=corpora, figure=tmp_path / "a.png", json=tmp_path / "a.json"
    )
    printed = capsys.readouterr().out
    assert printed.count("completep") == 10
    assert "grows" in printed
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["setting"]["corpus"] == "walk"
    row = next(
        t for t in facts["trends"] if (t["axis"], t["parametrization"], t["kind"]) == ("width", "standard", "ff")
    )
    assert (row["sizes"], row["verdict"], row["slope"]) == ([16, 32], "grows", pytest.approx(0.3))
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": (32,)}, r"widths.*\b1\b"),
        ({"depths": (2, 2)}, r"depths.*\b1\b"),
        ({"steps": 0}, r"steps.*\b0\b.*seeds.*\b3\b"),
        ({"widths": (32, 40)}, r"widths.*\b40\b.*head_width.*\b16\b"),
        ({"corpus": "nothing"}, "corpus.*nothing"),
    ],
)
def test_bad_input_is_named(corpora: Path, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        coord_check(**{"corpus": "walk", "directory": corpora} | options)
