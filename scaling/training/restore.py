"""Restores a trained model from its run folder, for measurements, generation and export."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from scaling.config.run_config import MeshConfig, RunConfig
from scaling.data.tokenizer import Tokenizer, load_tokenizer
from scaling.errors import InputError
from scaling.model.decoder import Decoder
from scaling.model.sharding import make_mesh
from scaling.record import run_folder
from scaling.training.checkpoints import Checkpoints
from scaling.training.checksums import DamagedCheckpointError, find_damage, saved_steps
from scaling.training.train_step import build_program


@dataclass(frozen=True)
class TrainedModel:
    """A run's model after `step` optimizer steps, on one device. Its attention is XLA's reference, which takes
    sequences of any length on any device, whatever kernel the config names."""

    folder: Path
    config: RunConfig
    step: int
    model: Decoder
    params: Any
    tokenizer: Tokenizer

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.step * self.config.data.batch_tokens


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run folder, ascending. Raises InputError when the folder is no run."""
    if not (folder / run_folder.CONFIG).exists():
        raise InputError(f"{folder}: no run folder: it has no {run_folder.CONFIG}")
    return saved_steps(folder / run_folder.CHECKPOINTS)


def check_whole(folder: Path, step: int) -> None:
    """Raises DamagedCheckpointError when the checkpoint of a run after `step` steps is not as it was written. Renames
    nothing: the error names the steps that are whole, and the command that trains the run again from the last of them.
    """
    place = folder / run_folder.CHECKPOINTS
    if not (reason := find_damage(place / str(step))):
        return
    whole = [other for other in checkpoint_steps(folder) if other != step and not find_damage(place / str(other))]
    choice = f"take another step ({', '.join(map(str, whole))} can be read), or " if whole else ""
    result, train = folder / run_folder.RESULT, f"scaling train --folder {shlex.quote(str(folder))}"
    if result.exists():
        train = f"mv {shlex.quote(str(result))} {shlex.quote(str(result))}.old && {train}"
    raise DamagedCheckpointError(place / str(step), reason, f"{choice}train the run again from before it: {train}")


def restore_model(folder: Path, step: int | None = None) -> TrainedModel:
    """The model of a run folder after `step` steps; by default at its last checkpoint.

    Raises InputError when the folder is no run, holds no checkpoint, or none of that step, and DamagedCheckpointError
    when it is not as it was written.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise InputError(f"{folder}: no checkpoint in {run_folder.CHECKPOINTS}/: train the run, or give another")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise InputError(f"{folder}: step = {step}: must be a step with a checkpoint: {', '.join(map(str, steps))}")
    config = run_folder.read_config(folder)
    program = build_program(config, make_mesh(MeshConfig(), jax.devices()[:1]), kernel="xla")
    check_whole(folder, step)
    with Checkpoints(folder / run_folder.CHECKPOINTS, None, read_only=True) as checkpoints:
        state = checkpoints.restore(step, program.abstract_state)
    return TrainedModel(folder, config, step, program.model, state.params, load_tokenizer(config.data.vocabulary))
