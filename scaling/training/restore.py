"""Restores a trained model from its run folder, for measurements, generation and export."""

from __future__ import annotations

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
    """Steps of the whole checkpoints in a run folder, ascending. Raises InputError when the folder is no run."""
    if not (folder / run_folder.CONFIG).exists():
        raise InputError(f"{folder}: no run folder: it has no {run_folder.CONFIG}")
    checkpoints = folder / run_folder.CHECKPOINTS
    return sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit() and path.is_dir())


def restore_model(folder: Path, step: int | None = None) -> TrainedModel:
    """The model of a run folder after `step` steps; by default at its last checkpoint.

    Raises InputError when the folder is no run, holds no checkpoint, or none of that step.
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
    with Checkpoints(folder / run_folder.CHECKPOINTS, None, read_only=True) as checkpoints:
        state = checkpoints.restore(step, program.abstract_state)
    return TrainedModel(folder, config, step, program.model, state.params, load_tokenizer(config.data.vocabulary))
