"""The config of a run: a frozen dataclass that is checked when it is built, read from and written as JSON, and hashed.

Durations are tokens. A field whose metadata says `hashed=False` does not change what a run learns (where it runs, how
often it logs, how its memory is laid out) and stays out of `run_id`. So does one whose metadata says
`hash_default=False`, which came after the first release, at its default.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scaling.config.fields import (
    build_dataclass,
    canonical_json,
    check_seed,
    check_types,
    is_hashed,
    require,
    unhashed_field,
)
from scaling.config.sections import (
    DataConfig,
    MeasureConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
)
from scaling.errors import InputError
from scaling.files import read_json, refuse_url
from scaling.type_checks import describe_value, find_misfit

__all__ = [
    "DataConfig",
    "MeasureConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrecisionConfig",
    "RunConfig",
    "ScheduleConfig",
    "from_dict",
    "hashed_dict",
    "load_config",
    "to_dict",
]

SCHEMA = 1


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        model: the model.
        data: tokens and batches.
        optimizer: the optimizer.
        schedule: the learning rate over time.
        precision: dtypes.
        mesh: devices.
        measure: validation, logs and checkpoints.
        tokens: training tokens; the run makes floor(tokens / batch tokens) steps.
        seed: seed of the initial weights and, unless data.order is set, of the order of batches; below 2^32.
        name: name shown in tables; changes nothing.
        sweep: name of the sweep that planned the run.
        recipe: the recipe's call that gave the numbers, for readers.
        overrides: fields set beside the recipe, for readers.
        learning_rate_from: how the learning rate was found, for readers: a rule, a scan, or an override.
        branch_of: run_id of the run in the same sweep whose stable phase this run shares. It starts from that run's
            state at `branch_step`, and ends as if it had trained alone.
        priority: a sweep starts runs of a higher priority first.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig, metadata={"hashed": False})
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    tokens: int = 1_048_576
    seed: int = 0
    name: str = unhashed_field("")
    sweep: str = unhashed_field("")
    recipe: str = unhashed_field("")
    overrides: tuple[str, ...] = unhashed_field(())
    learning_rate_from: str = unhashed_field("")
    branch_of: str = unhashed_field("")
    priority: int = unhashed_field(0)

    def __post_init__(self) -> None:
        check_seed("RunConfig.seed", self.seed)
        check_types(self)
        require(
            self.tokens >= self.data.batch_tokens,
            self,
            "tokens",
            f"at least {self.data.batch_tokens}, one step of data.batch_sequences x data.sequence_length; "
            "raise --tokens",
        )
        require(
            self.schedule.warmup_tokens <= self.tokens,
            self.schedule,
            "warmup_tokens",
            f"at most the budget, tokens={self.tokens}",
        )
        require(
            not self.branch_of or self.branch_step > 0,
            self,
            "branch_of",
            "empty unless the schedule is wsd with a step before its cooldown",
        )

    @property
    def branch_step(self) -> int:
        """Number of first steps whose learning rate does not depend on `tokens`: those before the cooldown of wsd, 0
        for cosine."""
        if self.schedule.kind == "cosine":
            return 0
        budget, batch_tokens = self.steps * self.data.batch_tokens, self.data.batch_tokens
        stable = max(round(budget * (1 - self.schedule.cooldown_fraction)), self.schedule.warmup_tokens)
        return min(int(stable / batch_tokens + 0.5), self.steps)

    @property
    def own_steps(self) -> int:
        """Number of steps that this run trains itself: all, or those after `branch_step` where it is a branch."""
        return self.steps - (self.branch_step if self.branch_of else 0)

    @property
    def data_order(self) -> int:
        """Seed of the order of batches: data.order, or else `seed`."""
        return self.seed if self.data.order is None else self.data.order

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.data.batch_tokens

    @property
    def checkpoint_tokens(self) -> int:
        """Tokens between checkpoints: measure.checkpoint_every_tokens, or else a tenth of `tokens`."""
        return self.measure.checkpoint_every_tokens or max(self.tokens // 10, 1)

    @functools.cached_property
    def run_id(self) -> str:
        """First 12 hex digits of sha256 over the canonical JSON of the fields that change the result."""
        return hashlib.sha256(canonical_json(hashed_dict(self)).encode()).hexdigest()[:12]

    @property
    def lineage(self) -> str:
        """Canonical JSON that is equal for two runs if and only if they differ in nothing but `tokens`."""
        return canonical_json(hashed_dict(self) | {"tokens": 0})


def hashed_dict(config: Any) -> dict[str, Any]:
    """The fields that change the result, nested as in the config, defaults resolved and tokens in whole batches.

    A `later_field` is left out at its default, and a field that has no effect is null: old run_ids must not change.
    """
    out: dict[str, Any] = {}
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if is_hashed(spec, value):
            out[spec.name] = hashed_dict(value) if dataclasses.is_dataclass(value) else value
    if isinstance(config, RunConfig):
        out["tokens"] = config.steps * config.data.batch_tokens
        out["data"]["order"] = config.data_order
    if isinstance(config, ModelConfig):
        out |= {"kv_heads": config.num_kv_heads, "ff_width": config.num_ff}
        if config.parametrization == "standard":
            out["base_width"] = None
        if config.parametrization != "completep":
            out["base_depth"] = None
    if isinstance(config, OptimizerConfig) and config.kind == "adamw":
        out["momentum"] = None
    return out


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config and its schema version as JSON values: dicts, and lists for tuples."""
    return {"schema": SCHEMA, **_to_json(config)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {spec.name: _to_json(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    return [_to_json(element) for element in value] if isinstance(value, tuple) else value


def from_dict(data: Any) -> RunConfig:
    """The config that `to_dict` gave. Raises InputError on an unknown field, with the nearest name, or a wrong
    value."""
    if isinstance(data, dict):
        schema = data.get("schema", SCHEMA)
        if find_misfit(schema, Literal[1]):
            raise InputError(f"schema = {describe_value(schema)}: this version reads {SCHEMA}")
        data = {name: value for name, value in data.items() if name != "schema"}
    return build_dataclass(RunConfig, data, "")


def load_config(path: Path | str) -> RunConfig:
    """Reads a config file. Raises InputError naming the file when it is absent, torn or wrong."""
    refuse_url("config file", path)
    path = Path(path)
    data = read_json(path, remedy="restore it, or rename it and run `scaling sweep run` again, which writes it anew")
    try:
        return from_dict(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
