"""Measurements: what is asked of a trained model. One file each.

A measurement is `(model, params, tokenizer, key, budget) -> {metric: (value, n, stderr)}` and declares its chance
level, its ceiling and what its budget counts.
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
CheckFunction = Callable[[Tokenizer, jax.Array, int], object]
"""Raises InputError when what `run` would ask with the same arguments cannot be asked of any model."""


@dataclass(frozen=True)
class Measurement:
    """name: prefix of its columns. chance: value of a model that knows nothing. ceiling: the best possible value,
    None where nobody knows it. budget: the unit of `run`'s last argument. check: for whoever has no model yet."""

    name: str
    chance: float
    ceiling: float | None
    budget: str
    run: RunFunction
    check: CheckFunction = lambda *_: None
