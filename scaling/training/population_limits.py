"""Which runs may share one program as members of a population (population.py), and how many of them a device holds.

Not in the design's list of modules: what packs a sweep asks this, without JAX.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from scaling.accounting import counts
from scaling.config.run_config import MeasureConfig, RunConfig, ScheduleConfig
from scaling.errors import InputError

SOLO_KERNELS = ("cudnn", "splash")
"""Attention kernels that a population does not run: under vmap cuDNN's is refused or wrong, splash's untried."""
STATE_BYTES_PER_PARAM = 12
"""Of a weight and its two moments, float32."""
MEMORY_FRACTION = 0.6
"""Of a device's memory that members may fill: JAX takes three quarters of a GPU unless told otherwise, and the
estimate is one."""


def program_key(config: RunConfig) -> Hashable:
    """What runs must have in common to train in one program: configs of equal keys may share one. A run whose kernel
    cannot be shared has a key of its own."""
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
        if found := first_difference(program_key(first), program_key(other)):
            name, ours, theirs = found
            raise InputError(
                f"{name} = {ours!r} in run {first.run_id}, {theirs!r} in run {other.run_id}: must be equal in a "
                "population, which is one program"
            )


def first_difference(one: Any, other: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two configs differ, with both values; None when they are equal."""
    for spec in fields(one):
        a, b = getattr(one, spec.name), getattr(other, spec.name)
        if is_dataclass(a):
            if found := first_difference(a, b, f"{prefix}{spec.name}."):
                return found
        elif a != b:
            return prefix + spec.name, a, b
    return None


def members_that_fit(config: RunConfig, memory: float, platform: str) -> int:
    """How many members shaped as `config` a device of `memory` bytes holds, 0 or more. An estimate (memory.py).

    platform: "cpu", where members take turns and share one set of activations; elsewhere each has its own.
    """
    from scaling.training.memory import estimate_bytes

    reference = replace(config, model=replace(config.model, attention="xla"))
    room, one = MEMORY_FRACTION * memory, estimate_bytes(reference, (1, 1, 1))
    if platform != "cpu":
        return int(room // one)
    return max(int((room - one) // (STATE_BYTES_PER_PARAM * counts.count_params(config.model).total)) + 1, 0)
