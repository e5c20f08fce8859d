"""The compiled parts of a run: its initial state and one optimizer step. Used wherever a model is trained, restored or
compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from scaling.config.run_config import RunConfig
from scaling.model import sharding
from scaling.model.attention import Kernel, choose_kernel
from scaling.model.decoder import Decoder, features, head_weights
from scaling.model.loss import chunk_count, chunked_training_loss
from scaling.model.weights import check_param_counts
from scaling.training.optimizer import gradient_transformation
from scaling.training.schedule import Rates

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """What a checkpoint holds. step: optimizer steps taken, int32; params: float32; optimizer: optax's state."""

    step: jax.Array
    params: Any
    optimizer: Any


@dataclass(frozen=True)
class Program:
    """The compiled parts of a run.

    abstract_state: shapes, dtypes and shardings of the state. init(key) -> state. step(state, tokens_BS, rates) ->
    (state, metrics), S = T + 1: one optimizer step, which consumes the state that it is given; metrics are the scalars
    "loss" (nats per token) and "grad_norm" (before clipping). update: the same function before it is compiled, for a
    program that contains it.
    """

    model: Decoder
    mesh: Mesh
    abstract_state: Any
    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, jax.Array, Rates], tuple[TrainState, Metrics]]
    update: Callable[[TrainState, jax.Array, Rates], tuple[TrainState, Metrics]]


def build_program(config: RunConfig, mesh: Mesh, kernel: Kernel | None = None) -> Program:
    """Model, shardings and jitted functions. kernel: as for `build_decoder`.

    Raises InputError when the config does not fit the mesh.
    """
    sharding.check_divisibility(config, mesh)
    model = build_decoder(config, mesh, kernel)

    # Weights are initialized in a scan over layers: unrolled, that program would take as long to compile as training's.
    scanned = Decoder(config.model, unroll=1)

    def init(key: jax.Array) -> TrainState:
        params = scanned.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        return TrainState(
            jnp.zeros((), jnp.int32), params, gradient_transformation(config.optimizer, 0.0, config.model).init(params)
        )

    def step(state: TrainState, tokens_BS: jax.Array, rates: Rates) -> tuple[TrainState, Metrics]:
        grads, nats = batch_gradients(model, config, state.params, tokens_BS)
        optimizer = gradient_transformation(config.optimizer, rates.weight_decay, config.model)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        # The updates are those of a learning rate of 1, weight decay included.
        params = jax.tree.map(lambda p, u: p - rates.learning_rate * u, state.params, updates)
        squares = sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))
        return TrainState(state.step + 1, params, optimizer_state), {"loss": nats, "grad_norm": jnp.sqrt(squares)}

    shapes = jax.eval_shape(init, jax.random.key(0))
    check_param_counts(config.model, shapes.params)
    shardings = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)
    options = sharding.compiler_options(mesh)
    # donate_argnums: XLA writes the new state into the memory of the old one, so that a step holds one state, not two.
    # The caller's old arrays are deleted. out_shardings of the metrics: None, as XLA likes; scalars are replicated.
    return Program(
        model,
        mesh,
        abstract,
        jax.jit(init, out_shardings=shardings, compiler_options=options),
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options),
        step,
    )


def build_decoder(config: RunConfig, mesh: Mesh, kernel: Kernel | None = None) -> Decoder:
    """The model as it runs on the devices of a mesh. What the config leaves open, the attention kernel and how many
    layers are unrolled, is decided here; the config itself is not changed.

    Layers are unrolled on CPUs, where flat code runs up to twice as fast, unless remat needs the loop. kernel: the
    attention kernel to use whatever the config names. Raises InputError when the kernel that the config names cannot
    run on these devices.
    """
    platform, dtype = mesh.devices.flat[0].platform, jnp.dtype(config.precision.compute)
    flat = platform == "cpu" and config.model.remat == "none"
    unroll = min(config.model.unroll or (config.model.depth if flat else 1), config.model.depth)
    kernel = kernel or choose_kernel(config.model, dtype, config.data.sequence_length, platform)
    return Decoder(config.model, dtype, kernel, mesh if mesh.size > 1 else None, unroll)


def batch_gradients(model: Decoder, config: RunConfig, params: Any, tokens_BS: jax.Array) -> tuple[Any, jax.Array]:
    """Gradients and nats per token of a batch tokens_BS, S = T + 1: the mean over its microbatches, which are of equal
    size, so that it is the mean over the batch."""
    microbatch = config.data.microbatch_sequences or config.data.batch_sequences
    sequences = microbatch // sharding.batch_shards(model.mesh)  # on each device
    chunks = chunk_count(sequences, config.data.sequence_length, config.model.vocab_size)

    def objective(params: Any, tokens_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BTM, targets_BT = features(model, params, tokens_BS[:, :-1]), tokens_BS[:, 1:]
        return chunked_training_loss(
            x_BTM, head_weights(model, params), targets_BT, config.optimizer.z_loss, chunks, model.mesh
        )

    def microbatch_gradients(tokens_BS: jax.Array) -> tuple[Any, jax.Array]:
        (_, nats), grads = jax.value_and_grad(objective, has_aux=True)(params, tokens_BS)
        return grads, nats

    A = config.data.batch_sequences // microbatch
    if A == 1:
        return microbatch_gradients(tokens_BS)
    # Microbatch a takes rows a, a + A, a + 2A, ...: each device's block of rows has its share of every microbatch, so
    # that no tokens move between devices.
    tokens_ABS = tokens_BS.reshape(-1, A, tokens_BS.shape[1]).swapaxes(0, 1)

    def accumulate(sums: Any, tokens_BS: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, microbatch_gradients(tokens_BS)), None

    # A scan keeps the activations of one microbatch at a time, and one sum of gradients.
    zeros = jax.tree.map(jnp.zeros_like, (params, jnp.zeros(())))
    sums, _ = jax.lax.scan(accumulate, zeros, tokens_ABS)
    return jax.tree.map(lambda x: x / A, sums)
