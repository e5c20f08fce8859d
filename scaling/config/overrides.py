"""What is set beside a recipe: dotted fields replaced in a config, strictly, and noted where they change the result.

Not in the design's list of modules: sweeps overlay fields on a recipe's runs, and so does `scaling cost --set`.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from scaling.config.run_config import RunConfig, from_dict, hashed_dict, to_dict
from scaling.errors import InputError

Overlay = Mapping[str, Any]


def overlay(config: RunConfig, changes: Overlay) -> RunConfig:
    """The config with dotted fields replaced: {"model.width": 64, "seed": 1}. A dataclass may replace a whole part.

    What a recipe gave and the changes replace is noted in `overrides`, where it changes the result; a seed is not.
    Raises InputError on an unknown field, with the nearest name, and on a value that the config refuses.
    """
    data = to_dict(config)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        part = data
        for depth, name in enumerate(parents):
            part = part.setdefault(name, {})
            if not isinstance(part, dict):
                raise InputError(f"overlay {path}: {'.'.join(parents[: depth + 1])} has no fields")
        part[leaf] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # pyrefly: ignore
    return record_overrides(config, from_dict(data), changes)


def record_overrides(before: RunConfig, after: RunConfig, changes: Overlay) -> RunConfig:
    """`after`, its overrides those of `before` and the changes that a recipe's run did not have before; a learning rate
    that is set, and not said to come from somewhere, comes from an override."""
    if not before.recipe or before.run_id == after.run_id:
        return after
    old, new = flatten(hashed_dict(before)), flatten(hashed_dict(after))
    moved = {path for path in new if new[path] != old.get(path)}
    mine = [
        f"{path}={_short(value)}"
        for path, value in changes.items()
        if path != "seed" and any(f"{changed}.".startswith(f"{path}.") for changed in moved)
    ]
    kept = [text for text in before.overrides if text.partition("=")[0] not in changes]
    set_here = "optimizer.learning_rate" in moved and "learning_rate_from" not in changes
    found = "override" if set_here else after.learning_rate_from
    return dataclasses.replace(after, overrides=(*kept, *mine), learning_rate_from=found)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def flatten(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys dotted."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """`model.width=512 optimizer.learning_rate=1e-3` -> an overlay; a value is JSON, or else the text itself.

    A whole number may be written 1e9 where the field takes one. Raises InputError on any other text, and on two values
    for one field.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        path, equals, written = text.partition("=")
        if not path or not equals:
            raise InputError(f"--set {text!r}: must be FIELD=VALUE, as model.width=512")
        if path in changes:
            raise InputError(f"--set {path}: given twice, {_short(changes[path])} and {written}")
        try:
            value = json.loads(written)
        except json.JSONDecodeError:
            value = written
        whole = isinstance(value, float) and value.is_integer() and int in _kinds(path)
        changes[path] = int(value) if whole else value
    return changes


def _kinds(path: str) -> tuple[Any, ...]:
    """The types that a dotted field takes; none where there is no such field."""
    kind: Any = RunConfig
    for name in path.split("."):
        kind = typing.get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    return typing.get_args(kind) or (kind,)
