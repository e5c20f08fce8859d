"""One training run, top to bottom: set up, restore, step, measure, record. Imports no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scaling import record, sharding
from scaling.checkpoint import Checkpoints
from scaling.config import RunConfig
from scaling.loss import training_loss
from scaling.measurements import Measure
from scaling.measurements import loss as validation
from scaling.model import Decoder, logits
from scaling.monitor import Clock, Stopped, Watch, bar, sigterm
from scaling.optimizer import step_learning_rate, transformation
from scaling.tokens import TokenSet, batch, check, open_tokens
from scaling.vocabulary import Vocabulary, load_vocabulary


@struct.dataclass
class State:
    """What a checkpoint holds. step: optimizer steps taken."""

    step: jax.Array
    params: Any
    optimizer: Any


@dataclass(frozen=True)
class Program:
    """The compiled parts of a run. init(key), step(state, tokens [B, T + 1], learning rate) -> state, metrics."""

    model: Decoder
    mesh: Mesh
    abstract_state: Any
    init: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array, float], tuple[State, dict[str, jax.Array]]]


def build(config: RunConfig, mesh: Mesh) -> Program:
    """Model, shardings and jitted functions. Raises InputError when the config does not fit the mesh."""
    sharding.check_fits(config, mesh)
    activations = NamedSharding(mesh, P(*sharding.BATCH, None, None))
    model = Decoder(
        config.model,
        dtype=jnp.dtype(config.precision.compute),
        constrain=lambda x_BTM: jax.lax.with_sharding_constraint(x_BTM, activations),
    )
    optimizer = transformation(config.optimizer)

    def init(key: jax.Array) -> State:
        params = model.init(key, jnp.zeros((1, config.data.sequence_length), jnp.int32))["params"]
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def step(state: State, tokens_BS: jax.Array, learning_rate: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        grads, nats = _gradients(model, config, state.params, tokens_BS)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        squares = sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))
        return State(state.step + 1, params, optimizer_state), {"loss": nats, "grad_norm": jnp.sqrt(squares)}

    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.shard_state(shapes, mesh)
    abstract = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)
    return Program(
        model,
        mesh,
        abstract,
        jax.jit(init, out_shardings=shardings),
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
    )


def _gradients(model: Decoder, config: RunConfig, params: Any, tokens_BS: jax.Array) -> tuple[Any, jax.Array]:
    """Gradients and nats per token of a batch, averaged over microbatches of equal size."""

    def objective(params: Any, tokens_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        return training_loss(logits(model, params, tokens_BS[:, :-1]), tokens_BS[:, 1:], config.optimizer.z_loss)

    def one(tokens_BS: jax.Array) -> tuple[Any, jax.Array]:
        (_, nats), grads = jax.value_and_grad(objective, has_aux=True)(params, tokens_BS)
        return grads, nats

    parts = config.data.batch_sequences // (config.data.microbatch_sequences or config.data.batch_sequences)
    if parts == 1:
        return one(tokens_BS)
    # Interleaved, so that each microbatch is spread over the same devices as the batch.
    tokens_ABS = tokens_BS.reshape(-1, parts, tokens_BS.shape[1]).swapaxes(0, 1)
    zero = jax.tree.map(jnp.zeros_like, (params, jnp.zeros(())))
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, one(part)), None), zero, tokens_ABS)
    return jax.tree.map(lambda x: x / parts, total)


def train(config: RunConfig, folder: Path, *, quiet: bool = False) -> record.Status:
    """Trains one run in its folder, from its last checkpoint if there is one; returns at once when it has ended.

    Raises InputError on bad input, before anything is spent, and Stopped after SIGTERM, the state saved.
    """
    sharding.initialize_processes()
    ended = record.read_result(folder)
    if ended is not None and ended["status"] != "failed":
        return ended["status"]
    tokens = open_tokens(config.data.directory, config.data.corpus, config.data.vocabulary, config.data.fingerprint)
    check(
        tokens,
        sequence_length=config.data.sequence_length,
        validation_tokens=config.measure.validation_tokens,
        vocab_size=config.model.vocab_size,
    )
    vocabulary = load_vocabulary(config.data.vocabulary)
    mesh = sharding.make_mesh(config.mesh)
    program = build(config, mesh)
    measure = validation.measure(tokens, config.data.sequence_length, mesh)
    if jax.process_index() == 0:
        record.open_folder(folder, config)
        record.write_json(folder / record.ENVIRONMENT, record.environment(program.model.kernel))
    with (
        Checkpoints(folder / record.CHECKPOINTS, config.measure.keep) as checkpoints,
        sigterm() as stop,
        bar(config, quiet) as show,
    ):
        return _loop(Session(config, folder, program, tokens, vocabulary, measure, checkpoints, stop, show))


@dataclass(frozen=True)
class Session:
    """What the loop needs, in one hand."""

    config: RunConfig
    folder: Path
    program: Program
    tokens: TokenSet
    vocabulary: Vocabulary
    measure: Measure
    checkpoints: Checkpoints
    stop: Callable[[], bool]
    show: Callable[[int, float, float], None]


def _loop(s: Session) -> record.Status:
    """Restore, step, measure, record. The metrics of step n - 1 are fetched after step n is dispatched."""
    c, save = s.config, s.checkpoints
    latest = save.latest()
    state = s.program.init(jax.random.key(c.seed)) if latest is None else save.restore(latest, s.program.abstract_state)
    start, clock, watch = latest or 0, Clock(c), Watch(math.log(c.model.vocab_size))
    pending, reason, step = None, "", start
    for step in range(start, c.steps):
        rate = step_learning_rate(step, c)
        state, metrics = s.program.step(state, _batch(s, step), rate)
        reason = _log(s, pending, clock, watch)
        pending, done = (step, rate, metrics), (step + 1) * c.data.batch_tokens
        if reason:
            break
        if _due(done, c.measure.every_tokens, c.data.batch_tokens):
            with clock.paused():
                _append(s, {"step": step + 1, "tokens": done, "validation_loss": _measured(s, state)["loss/nats"][0]})
        if _due(done, c.measure.checkpoint_every_tokens, c.data.batch_tokens) or s.stop():
            save.save(step + 1, state)
        if s.stop():
            _log(s, pending, clock, watch)
            save.wait()
            raise Stopped(f"stopped at step {step + 1} of {c.steps}; the same command goes on from there")
    reason = reason or _log(s, pending, clock, watch)
    if reason:
        _finish(s, "diverged", step, clock, {}, reason)
        return "diverged"
    save.save(c.steps, state)
    measurements = _measured(s, state)
    save.wait()
    _finish(s, "done", c.steps, clock, measurements)
    return "done"


def _batch(s: Session, step: int) -> jax.Array:
    """Tokens [B, T + 1] of a step, each row read by the process that holds it."""
    data = s.config.data
    B, T, V = data.batch_sequences, data.sequence_length, s.config.model.vocab_size

    def rows(part: slice) -> np.ndarray:
        return batch(
            s.tokens, seed=s.config.seed, step=step, batch_sequences=B, sequence_length=T, rows=part, vocab_size=V
        )

    return sharding.put_batch(rows, (B, T + 1), s.program.mesh)


def _due(done: int, every: int | None, batch_tokens: int) -> bool:
    """Whether a multiple of `every` tokens was passed in the step that ends at `done`."""
    return every is not None and done // every > (done - batch_tokens) // every


def _log(s: Session, pending: tuple[int, float, dict[str, jax.Array]] | None, clock: Clock, watch: Watch) -> str:
    """Fetches and records one step's metrics; returns why the run diverged, or nothing."""
    if pending is None:
        return ""
    step, rate, metrics = pending
    loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
    clock.tick()
    reason, done = watch.reason(step, loss), step + 1
    s.show(done, loss, clock.tokens_per_second)
    if done % s.config.measure.log_every_steps == 0 or done == s.config.steps or reason:
        line = {"step": done, "tokens": done * s.config.data.batch_tokens, "loss": loss, "grad_norm": grad_norm}
        _append(s, line | {"learning_rate": rate} | clock.rates())
    return reason


def _append(s: Session, line: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        record.append_metrics(s.folder, line)


def _measured(s: Session, state: State) -> dict[str, record.Measurement]:
    found = s.measure.run(
        s.program.model, state.params, s.vocabulary, jax.random.key(0), s.config.measure.validation_tokens
    )
    return {f"{s.measure.name}/{metric}": value for metric, value in found.items()}


def _finish(
    s: Session, status: record.Status, steps: int, clock: Clock, found: dict[str, record.Measurement], reason: str = ""
) -> None:
    """Writes result.json: identity, counts, FLOPs, rates and measurements."""
    if jax.process_index() != 0:
        return
    done = steps * s.config.data.batch_tokens
    missing: record.Measurement = (math.nan, 0, math.nan)
    loss, bits = found.get("loss/nats", missing), found.get("loss/bits_per_byte", missing)
    row = record.counts(
        s.config, tokens=done, unique_tokens=s.tokens.unique_tokens(done, s.config.data.sequence_length)
    )
    row |= {"status": status, "loss": loss[0], "loss_stderr": loss[2], "bits_per_byte": bits[0]}
    row |= {"seconds": clock.seconds, "tokens_per_second": clock.tokens_per_second}
    record.write_result(s.folder, status=status, row=row, measurements=found, reason=reason)
