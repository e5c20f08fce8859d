"""Validation loss, compared with plain averages and with the known entropy of a synthetic corpus."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.config.run_config import MeasureConfig, MeshConfig, ModelConfig, RunConfig
from scaling.data.shards import open_shards, read_validation_windows
from scaling.data.synthetic import Walk
from scaling.data.tokenizer import ByteTokenizer
from scaling.measurements import validation_loss
from scaling.model.decoder import Decoder, logits
from scaling.model.sharding import make_mesh
from scaling.record.run_folder import read_metrics, read_result
from scaling.training.train import train

pytestmark = pytest.mark.usefixtures("unoptimized_programs")


def test_equals_a_plain_average_over_the_windows(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several batches, of which the last is not full."""
    tokens = open_shards(corpora, "walk")
    monkeypatch.setattr(validation_loss, "BATCH_TOKENS", 33 * 7)
    model = Decoder(ModelConfig(width=16, depth=1, heads=2))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    measurement = validation_loss.validation_loss(tokens, 32, make_mesh(MeshConfig()))
    values = measurement.run(model, params, ByteTokenizer(), jax.random.key(0), 32 * 18)

    windows = read_validation_windows(tokens, 32, 32 * 18)
    assert windows.shape == (18, 33)
    log_p = jax.nn.log_softmax(logits(model, params, windows[:, :-1]))
    nats_WT = -np.take_along_axis(np.asarray(log_p), windows[:, 1:, None], -1)[..., 0]
    value, n, stderr = values["nats"]
    assert n == 18 * 32
    assert value == pytest.approx(nats_WT.mean(), rel=1e-5)
    assert stderr == pytest.approx(nats_WT.mean(axis=1).std(ddof=1) / math.sqrt(18), rel=1e-4)
    assert values["bits_per_byte"][0] == pytest.approx(value / math.log(2), rel=1e-6), "a byte a token in this corpus"
    assert measurement.chance == math.log(259)


def test_special_tokens_cost_nats_and_stand_for_no_bytes() -> None:
    targets_WT = np.array([[100, 1], [101, 102]])
    values = validation_loss.loss_statistics(np.array([2.0, 4.0]), targets_WT, ByteTokenizer().bytes_per_token)
    assert values["nats"][0] == 1.5
    assert values["bits_per_byte"][0] == pytest.approx(6.0 / math.log(2) / 3)


@pytest.mark.slow
def test_training_reaches_the_known_floor_and_never_goes_below(tiny: RunConfig, corpora: Path, tmp_path: Path) -> None:
    """On a random walk, both the entropy rate and the true model's loss on the same windows are known exactly."""
    long = dataclasses.replace(
        tiny,
        tokens=600 * tiny.data.batch_tokens,
        measure=MeasureConfig(validation_tokens=32_768, every_tokens=50 * tiny.data.batch_tokens),
    )
    assert train(long, tmp_path, quiet=True) == "done"
    result = read_result(tmp_path)
    assert result is not None
    reached, stderr = result["row"]["loss"], result["row"]["loss_stderr"]

    walk = Walk()
    windows = read_validation_windows(open_shards(corpora, "walk"), 32, 32_768)
    exact = walk.floor_of_windows(windows)
    assert exact == pytest.approx(walk.floor_nats_per_token(32), abs=4 * stderr)
    losses = [line["validation_loss"] for line in read_metrics(tmp_path) if "validation_loss" in line]
    assert len(losses) == 12
    assert losses[0] > exact + 0.5
    assert all(loss > exact - 1e-3 for loss in (*losses, reached))
    assert reached < exact + 0.05
