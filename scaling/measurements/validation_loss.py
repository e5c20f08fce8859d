"""Validation loss in nats per token and bits per byte, on windows that are the same for every run of a sweep."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from scaling.data.shards import TokenShards, read_validation_windows
from scaling.data.tokenizer import Tokenizer
from scaling.measurements import Measurement
from scaling.model import sharding
from scaling.model.decoder import Decoder, features, head_weights
from scaling.model.loss import bits_per_byte, chunk_count, chunked_nats
from scaling.record.run_folder import Value

BATCH_TOKENS = 16_384
"""A batch has about this many tokens, and at least one window on each device of the mesh that holds batch rows."""


def validation_loss(tokens: TokenShards, sequence_length: int, mesh: Mesh) -> Measurement:
    """The loss on the first `budget` tokens of the validation split. Its chance level is a uniform guess, ln V."""

    def run(model: Decoder, params: Any, tokenizer: Tokenizer, key: jax.Array, budget: int) -> dict[str, Value]:
        del key
        tokens_WS = read_validation_windows(tokens, sequence_length, budget, model.config.vocab_size)
        nats_W = _nats_per_window(model, params, tokens_WS, mesh)
        return loss_statistics(nats_W, tokens_WS[:, 1:], tokenizer.bytes_per_token)

    return Measurement("loss", chance=math.log(tokens.vocab_size), ceiling=None, budget="validation tokens", run=run)


def loss_statistics(nats_W: np.ndarray, targets_WT: np.ndarray, bytes_per_token_V: np.ndarray) -> dict[str, Value]:
    """{nats per token, bits per byte} of W windows. nats_W: the loss summed over the targets of each window. Standard
    errors assume independent windows."""
    W, T = targets_WT.shape
    nats = float(nats_W.mean()) / T
    stderr = float(nats_W.std(ddof=1)) / T / math.sqrt(W) if W > 1 else math.nan
    bits = bits_per_byte(float(nats_W.sum()), int(bytes_per_token_V[targets_WT].sum()))
    return {"nats": Value(nats, W * T, stderr), "bits_per_byte": Value(bits, W * T, stderr * bits / nats)}


def _nats_per_window(model: Decoder, params: Any, tokens_WS: np.ndarray, mesh: Mesh) -> np.ndarray:
    """float64 [W], the loss summed over each window. Batches divide evenly over the mesh; the last one is filled with
    repeated windows, whose losses are dropped."""
    rows = sharding.batch_shards(mesh)
    B = rows * max(BATCH_TOKENS // tokens_WS.shape[1] // rows, 1)
    out = []
    for start in range(0, len(tokens_WS), B):
        part_BS = np.resize(tokens_WS[start : start + B], (B, tokens_WS.shape[1]))
        global_BS = sharding.put_batch(functools.partial(part_BS.__getitem__), part_BS.shape, mesh)
        out.append(multihost_utils.process_allgather(_nats(model, params, global_BS), tiled=True))
    return np.concatenate(out).astype(np.float64)[: len(tokens_WS)]


@functools.partial(jax.jit, static_argnames="model")
def _nats(model: Decoder, params: Any, tokens_BS: jax.Array) -> jax.Array:
    """[B], the loss summed over the targets of each window."""
    x_BTM, targets_BT = features(model, params, tokens_BS[:, :-1]), tokens_BS[:, 1:]
    rows = len(x_BTM) // sharding.batch_shards(model.mesh)
    chunks = chunk_count(rows, targets_BT.shape[1], model.config.vocab_size)
    return chunked_nats(x_BTM, head_weights(model, params), targets_BT, chunks).sum(axis=1)
