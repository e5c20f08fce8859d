"""What a run reads, the state that it starts from and what it writes, one function each. The loop is in train.py."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from scaling.config.run_config import RunConfig
from scaling.data.shards import TokenShards, check_batches, limit_unique_tokens, open_shards
from scaling.data.tokenizer import Tokenizer, load_tokenizer
from scaling.measurements import Measurement, validation_loss
from scaling.record import run_folder
from scaling.training import branching, multihost, simulated_run
from scaling.training.checkpoints import Checkpoints
from scaling.training.checksums import DamagedCheckpointError, saved_steps, set_damaged_aside
from scaling.training.monitor import Clock, DivergenceMonitor
from scaling.training.schedule import step_learning_rate
from scaling.training.train_step import Program, TrainState


@dataclass(frozen=True)
class Session:
    """What training one run needs: its folder, which is locked, its data, its compiled program and its checkpoints."""

    config: RunConfig
    folder: Path
    program: Program
    tokens: TokenShards
    tokenizer: Tokenizer
    measurement: Measurement
    checkpoints: Checkpoints


@contextlib.contextmanager
def open_session(config: RunConfig, folder: Path, program: Program, **environment: Any) -> Iterator[Session]:
    """Opens a run's data, locks its folder and opens its checkpoints, those that are damaged set aside. environment:
    more of environment.json.

    A run whose own checkpoints and whose trunk's state are all damaged trains alone, from its first step. One that has
    checkpoints keeps the `branch_of` that it began with. Raises InputError when the data do not suit the run, or the
    folder holds another run, and BusyError when another process trains in it. Of several processes that train the run
    the first alone locks and writes.
    """
    if (branch_of := branching.begun_branch_of(folder)) is not None:
        config = replace(config, branch_of=branch_of)
    tokens, tokenizer = open_data(config)
    measurement = validation_loss.validation_loss(tokens, config.data.sequence_length, program.mesh)
    is_first = jax.process_index() == 0
    lock = run_folder.locked_run_folder(folder, config, program.model.kernel, **environment)
    place = folder / run_folder.CHECKPOINTS
    with lock if is_first else contextlib.nullcontext():
        if is_first:
            set_damaged_aside(place / str(step) for step in reversed(saved_steps(place)))
        multihost.wait_for_all("damaged checkpoints are set aside")
        with Checkpoints(place, config.measure.keep) as checkpoints:
            if (
                config.branch_of
                and checkpoints.latest_step() is None
                and not branching.has_whole_branch_state(folder, config)
            ):
                config = replace(config, branch_of="")
                if is_first:
                    run_folder.write_config(folder, config)
            yield Session(config, folder, program, tokens, tokenizer, measurement, checkpoints)


def with_data_fingerprint(config: RunConfig, folder: Path | None = None) -> RunConfig:
    """The config with the fingerprint of its data, which is part of its run_id: that in the run folder, if the run has
    begun, or else that of the prepared corpus. Raises InputError when the corpus is not prepared."""
    if config.data.fingerprint:
        return config
    if simulated_run.is_simulated(config):
        return replace(config, data=replace(config.data, fingerprint=simulated_run.true_law(config).fingerprint))
    if folder is not None and (folder / run_folder.CONFIG).exists():
        fingerprint = run_folder.read_config(folder).data.fingerprint
    else:
        fingerprint = open_shards(config.data.directory, config.data.corpus, config.data.vocabulary).fingerprint
    return replace(config, data=replace(config.data, fingerprint=fingerprint))


def final_status(config: RunConfig, folder: Path) -> run_folder.Status | None:
    """The status of a run with nothing left to train, or None. Such a run has a result, or its trunk diverged before
    this one branches off; then its result is written here.

    Raises InputError when the folder holds another run, or the run cannot branch where its config says.
    """
    run_folder.check_folder(folder, config)
    result = run_folder.read_result(folder)
    if result is not None and result["status"] != "failed":
        return result["status"]
    if config.branch_of:
        branching.check_branch(folder, config)
        if branching.trunk_diverged_before(folder, config):
            if jax.process_index() == 0:
                with run_folder.locked_run_folder(folder, config, "none"):
                    branching.write_diverged_result(folder, config)
            return "diverged"
    return None


def open_data(config: RunConfig) -> tuple[TokenShards, Tokenizer]:
    """The token shards of a run and its tokenizer. Raises InputError when they are missing or do not suit the run."""
    tokens = open_shards(config.data.directory, config.data.corpus, config.data.vocabulary, config.data.fingerprint)
    tokens = limit_unique_tokens(tokens, config.data.unique_tokens)
    check_batches(
        tokens,
        sequence_length=config.data.sequence_length,
        validation_tokens=config.measure.validation_tokens,
        vocab_size=config.model.vocab_size,
    )
    return tokens, load_tokenizer(config.data.vocabulary)


def initial_state(s: Session) -> tuple[int, TrainState]:
    """Steps taken and the state after them: from the last checkpoint, else from the trunk that the run branches from,
    else newly initialized.

    Sets a checkpoint without checksums aside that cannot be read; raises DamagedCheckpointError instead where several
    processes train the run, some of which may have read their part.
    """
    while (latest := s.checkpoints.latest_step()) is not None:
        try:
            return latest, s.checkpoints.restore(latest, s.program.abstract_state)
        except DamagedCheckpointError as error:
            if jax.process_count() > 1:
                raise
            s.checkpoints.set_aside(latest, error.reason)
    if s.config.branch_of:
        return s.config.branch_step, branching.restore_branch_state(s.folder, s.config, s.program.abstract_state)
    return 0, s.program.init(jax.random.key(s.config.seed))


def crosses(s: Session, step: int, every: int | None) -> bool:
    """Whether step `step` (from 0) passes a multiple of `every` tokens."""
    batch_tokens = s.config.data.batch_tokens
    return every is not None and (step + 1) * batch_tokens // every > step * batch_tokens // every


def record_step(
    s: Session, step: int, metrics: Mapping[str, float], clock: Clock, divergence: DivergenceMonitor
) -> str:
    """Records the metrics of step `step` (from 0); returns why the run diverged in it, or ""."""
    loss, grad_norm = metrics["loss"], metrics["grad_norm"]
    clock.tick()
    done = step + 1
    reason = divergence.divergence_reason(done, loss)
    if done % s.config.measure.log_every_steps == 0 or done == s.config.steps or reason:
        line = {"step": done, "tokens": done * s.config.data.batch_tokens, "loss": loss, "grad_norm": grad_norm}
        record_metrics(s, line | {"learning_rate": step_learning_rate(step, s.config)} | clock.throughput())
    elif jax.process_index() == 0 and clock.is_sign_of_life_due():
        # The sweep runner ends a run whose folder does not change for long (sweeps/running/progress_watch.py).
        (s.folder / run_folder.METRICS).touch()
    return reason


def record_metrics(s: Session, line: dict[str, Any]) -> None:
    """Appends one line to metrics.jsonl, in the first process alone."""
    if jax.process_index() == 0:
        run_folder.append_metrics(s.folder, line)


def record_validation_loss(s: Session, step: int, state: TrainState) -> None:
    """Measures the state after step `step` (from 0) and records its validation loss."""
    record_metrics(s, {"step": step + 1, "validation_loss": measure_state(s, state)["loss/nats"].value})


def measure_state(s: Session, state: TrainState) -> dict[str, run_folder.Value]:
    """Everything that a run measures of a state, by "<name>/<metric>"."""
    values = s.measurement.run(
        s.program.model, state.params, s.tokenizer, jax.random.key(0), s.config.measure.validation_tokens
    )
    return {f"{s.measurement.name}/{metric}": value for metric, value in values.items()}


def final_measurements(s: Session, state: TrainState) -> tuple[dict[str, run_folder.Value], str]:
    """What is measured of the state after the last step, and why the run diverged in that step, or ""."""
    measurements = measure_state(s, state)
    loss = measurements["loss/nats"].value
    return measurements, "" if math.isfinite(loss) else f"validation loss is {loss} after the last step"


def record_result(
    s: Session,
    status: run_folder.Status,
    steps: int,
    clock: Clock,
    measurements: dict[str, run_folder.Value],
    reason: str = "",
) -> None:
    """Writes result.json, in the first process alone: identity, counts, FLOPs, throughput and measurements. steps: how
    many were trained; reason: why the run diverged."""
    if jax.process_index() != 0:
        return
    tokens = steps * s.config.data.batch_tokens
    missing = run_folder.Value(math.nan, 0, math.nan)
    loss, bits = (measurements.get(name, missing) for name in ("loss/nats", "loss/bits_per_byte"))
    row = run_folder.result_row(
        s.config, tokens=tokens, unique_tokens=s.tokens.unique_tokens(tokens, s.config.data.sequence_length)
    )
    row |= {"status": status, "loss": loss.value, "loss_stderr": loss.stderr, "bits_per_byte": bits.value}
    row |= {"seconds": clock.seconds, "tokens_per_second": clock.tokens_per_second}
    run_folder.write_result(s.folder, status=status, row=row, measurements=measurements, reason=reason)
