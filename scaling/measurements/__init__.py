"""Measurements of a trained model, one file a task.

A measurement is a function (model, params, tokenizer, key, budget) -> {metric: Value}, together with its chance level,
its ceiling and the unit of its budget. `scaling eval` runs them on checkpoints (registry.py lists the tasks); training
runs validation_loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from scaling.data.tokenizer import Tokenizer
from scaling.model.decoder import Decoder
from scaling.record.run_folder import Value

RunFunction = Callable[[Decoder, Any, Tokenizer, jax.Array, int], dict[str, Value]]
"""(model, params, tokenizer, key, budget) -> {metric: Value}. key: of the questions' random choices."""
CheckFunction = Callable[[Tokenizer, jax.Array, int], object]
"""(tokenizer, key, budget) -> anything. Raises InputError when `run` could not measure any model with the same
arguments."""


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    name: the task, which begins the names of its columns, as in `cloze/accuracy`. chance: the headline metric of a
    model that knows nothing. ceiling: its best possible value; None where that is not known. budget: the unit of the
    budget that `run` takes, such as "questions". check: finds errors before a model is loaded.
    """

    name: str
    chance: float
    ceiling: float | None
    budget: str
    run: RunFunction
    check: CheckFunction = lambda *_: None
