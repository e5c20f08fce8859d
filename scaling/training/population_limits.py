"""Which runs may share one program as members of a population (population.py), and how many of them a device holds.

The sweep runner uses this to choose members, so nothing here imports JAX before it needs an estimate.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from scaling.accounting import counts
from scaling.config.run_config import MeasureConfig, RunConfig, ScheduleConfig
from scaling.errors import InputError

SOLO_KERNELS = ("cudnn", "splash")
"""Attention kernels that a population cannot run: under vmap cuDNN's is refused or wrong, and splash is untested."""
STATE_BYTES_PER_PARAM = 12
"""Bytes of a weight and its two moments, float32."""
MEMORY_FRACTION = 0.6
"""Part of a device's memory that members may fill: JAX takes three quarters of a GPU by default, and the bytes of a
member are an estimate."""


def program_key(config: RunConfig) -> Hashable:
    """Runs with equal keys may train in one program: the config with every field in which members may differ set to one
    value. A run whose attention kernel no population can run has a key of its own."""
    name = config.run_id if config.model.attention in SOLO_KERNELS else ""
    model = replace(config.model, kv_heads=config.model.num_kv_heads, ff_width=config.model.num_ff)
    if model.parametrization == "standard":
        model = replace(model, base_width=1, base_depth=1)
    return replace(
        config,
        model=model,
        data=replace(config.data, order=None, unique_tokens=None),
        optimizer=replace(config.optimizer, learning_rate=1.0, weight_decay=0.0),
        schedule=ScheduleConfig(),
        measure=MeasureConfig(),
        tokens=config.data.batch_tokens,
        seed=0,
        sweep="",
        recipe="",
        learning_rate_from="",
        branch_of="",
        overrides=(),
        name=name,
    )


def check_same_program(configs: Sequence[RunConfig]) -> None:
    """Raises InputError when runs cannot share a program, naming the first field that differs and the two runs."""
    for config in configs:
        if config.model.attention in SOLO_KERNELS:
            raise InputError(
                f"model.attention = {config.model.attention!r} of run {config.run_id}: a population cannot run it; "
                "auto, xla or blocked can, or `scaling train` for this run alone"
            )
    first = configs[0]
    for other in configs[1:]:
        if difference := first_difference(program_key(first), program_key(other)):
            name, first_value, other_value = difference
            raise InputError(
                f"{name} = {first_value!r} in run {first.run_id}, {other_value!r} in run {other.run_id}: must be equal "
                "in a population, which is one program"
            )


def first_difference(a: Any, b: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two configs differ, with both values; None when they are equal."""
    for spec in fields(a):
        a_value, b_value = getattr(a, spec.name), getattr(b, spec.name)
        if is_dataclass(a_value):
            if nested := first_difference(a_value, b_value, f"{prefix}{spec.name}."):
                return nested
        elif a_value != b_value:
            return prefix + spec.name, a_value, b_value
    return None


def members_that_fit(config: RunConfig, memory: float, platform: str) -> int:
    """How many members of the shape of `config` a device of `memory` bytes holds, 0 or more. An estimate (memory.py).

    platform: on "cpu" members are stepped one after the other and share one set of activations; elsewhere each has its
    own.
    """
    from scaling.training.memory import estimate_bytes

    reference = replace(config, model=replace(config.model, attention="xla"))
    available, solo_bytes = MEMORY_FRACTION * memory, estimate_bytes(reference, (1, 1, 1))
    if platform != "cpu":
        return int(available // solo_bytes)
    return max(
        int((available - solo_bytes) // (STATE_BYTES_PER_PARAM * counts.count_params(config.model).total)) + 1, 0
    )
