"""One training run, top to bottom: set up, restore, step, measure, record. Imports no TensorFlow."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.config.run_config import RunConfig
from scaling.data.shards import TokenShards, gather_batch
from scaling.measurements import validation_loss
from scaling.model import sharding
from scaling.record import run_folder
from scaling.training import branching, multihost, simulated_run
from scaling.training.checkpoints import Checkpoints
from scaling.training.malloc import keep_freed_pages
from scaling.training.memory import check_memory
from scaling.training.monitor import Clock, DivergenceMonitor, Stopped, progress_bar, stop_signals
from scaling.training.optimizer import Rates, step_rates
from scaling.training.prefetch import prefetch
from scaling.training.session import (
    Session,
    crosses,
    final_measurements,
    final_status,
    initial_state,
    open_data,
    record_result,
    record_step,
    record_validation_loss,
    with_data_fingerprint,
)
from scaling.training.train_step import TrainState, build_program


def train(config: RunConfig, folder: Path, *, quiet: bool = False) -> run_folder.Status:
    """Trains one run in its folder, from its last checkpoint if there is one; returns at once when it has ended.

    Raises InputError on bad input, before anything is spent, and Stopped after a signal, the state saved. Where
    several processes train the run and one is lost, this one ends (multihost.exit_together).
    """
    if simulated_run.is_simulated(config):
        return simulated_run.simulate_run(with_data_fingerprint(config, folder), folder)
    keep_freed_pages()
    multihost.join_processes()
    with multihost.exit_together():
        return _train(with_data_fingerprint(config, folder), folder, quiet)


def _train(config: RunConfig, folder: Path, quiet: bool) -> run_folder.Status:
    if (status := final_status(config, folder)) is not None:
        return status
    tokens, tokenizer = open_data(config)
    mesh = sharding.make_mesh(config.mesh)
    program = build_program(config, mesh)
    if limit := (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit"):
        check_memory(program.abstract_state, limit)
    measurement = validation_loss.validation_loss(tokens, config.data.sequence_length, mesh)
    with (
        run_folder.locked_run_folder(folder, config, program.model.kernel)
        if jax.process_index() == 0
        else nullcontext(),
        Checkpoints(folder / run_folder.CHECKPOINTS, config.measure.keep) as checkpoints,
        stop_signals() as stop,
        progress_bar(config.name or config.run_id, config.steps, quiet) as show,
        multihost.exit_together(),
    ):
        status = _loop(Session(config, folder, program, tokens, tokenizer, measurement, checkpoints, stop, show))
        multihost.wait_for_all("the result is written")
        return status


def _loop(s: Session) -> run_folder.Status:
    """Restore, step, measure, record. The metrics of step n - 1 are fetched after step n is dispatched."""
    start, state = initial_state(s)
    with prefetch(
        functools.partial(step_input, s.config, s.tokens, s.program.mesh), range(start, s.config.steps)
    ) as feeds:
        return _steps(s, state, start, feeds)


def _steps(s: Session, state: TrainState, start: int, feeds: Iterator[StepInput]) -> run_folder.Status:
    c, save = s.config, s.checkpoints
    clock, watch = Clock(c), DivergenceMonitor(math.log(c.model.vocab_size))
    pending, reason, step = None, "", start - 1
    poll = multihost.any_process_asks(s.stop, s.program.mesh)
    for step, given in enumerate(feeds, start):
        stop = poll()
        state, metrics = s.program.step(state, given.tokens_BS, given.rates)
        reason = _log(s, pending, clock, watch)
        pending, stopping = (step, metrics), stop()
        saving, measuring = stopping or crosses(s, step, c.checkpoint_tokens), crosses(s, step, c.measure.every_tokens)
        if (saving or measuring or step + 1 in c.measure.branch_at_steps) and not reason:
            reason, pending = _log(s, pending, clock, watch), None
        if reason:
            break
        with clock.paused():
            branching.save_branch_state(s.folder, c, step + 1, state)
        if measuring:
            with clock.paused():
                record_validation_loss(s, step, state)
        if saving:
            save.save(step + 1, state)
        if stopping:
            save.wait()
            raise Stopped(f"stopped at step {step + 1} of {c.steps}; the same command goes on from there")
    reason = reason or _log(s, pending, clock, watch)
    found, reason = ({}, reason) if reason else final_measurements(s, state)
    if reason:
        record_result(s, "diverged", step + 1, clock, {}, reason)
        return "diverged"
    save.save(c.steps, state)
    save.wait()
    record_result(s, "done", c.steps, clock, found)
    return "done"


def _log(s: Session, pending: tuple[int, dict[str, jax.Array]] | None, clock: Clock, watch: DivergenceMonitor) -> str:
    """Fetches and records one step's metrics; returns why the run diverged, or nothing."""
    return "" if pending is None else record_step(s, pending[0], jax.device_get(pending[1]), clock, watch)


@dataclass(frozen=True)
class StepInput:
    """What a step takes, on the devices already. tokens_BS: [B, T + 1], each row read by the process that holds it;
    rates: float32 scalars on every device."""

    tokens_BS: jax.Array
    rates: Rates


def read_batch(config: RunConfig, tokens: TokenShards, step: int, part: slice | None = None) -> np.ndarray:
    """Rows `part` of the batch of a step, [rows, T + 1]; all by default."""
    B, T, V = config.data.batch_sequences, config.data.sequence_length, config.model.vocab_size
    order = config.data_order
    return gather_batch(tokens, seed=order, step=step, batch_sequences=B, sequence_length=T, rows=part, vocab_size=V)


def step_input(config: RunConfig, tokens: TokenShards, mesh: Mesh, step: int) -> StepInput:
    """The input of a step: a pure function of (seed, step)."""
    B, T = config.data.batch_sequences, config.data.sequence_length
    everywhere = NamedSharding(mesh, PartitionSpec())
    rates = jax.tree.map(
        lambda rate: jax.make_array_from_callback((), everywhere, lambda _: rate), step_rates(step, config)
    )
    return StepInput(sharding.put_batch(functools.partial(read_batch, config, tokens, step), (B, T + 1), mesh), rates)
