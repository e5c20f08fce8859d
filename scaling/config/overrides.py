"""Overrides: dotted fields of a config replaced, and recorded in the run where a recipe had given them. Used by sweeps
and by `scaling cost --set`."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from scaling.config.run_config import RunConfig, from_dict, hashed_dict, to_dict
from scaling.errors import InputError
from scaling.quantities import parse_quantity

Overlay = Mapping[str, Any]


def overlay(config: RunConfig, changes: Overlay) -> RunConfig:
    """The config with dotted fields replaced, as {"model.width": 64, "seed": 1}; a dataclass replaces a whole section.

    Where a recipe gave the config, the changes that alter its result, but for the seed, are added to its `overrides`.
    Raises InputError on an unknown field, with the nearest name, and on a value that the config refuses.
    """
    data = to_dict(config)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        section = data
        for depth, name in enumerate(parents):
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise InputError(f"overlay {path}: {'.'.join(parents[: depth + 1])} has no fields")
        section[leaf] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # pyrefly: ignore
    return record_overrides(config, from_dict(data), changes)


def record_overrides(before: RunConfig, after: RunConfig, changes: Overlay) -> RunConfig:
    """`after` with its `overrides`: those of `before`, and of the changes those that alter the result. A changed
    learning rate is recorded as coming from an override, unless the changes say where it came from."""
    if not before.recipe or before.run_id == after.run_id:
        return after
    old, new = flatten(hashed_dict(before)), flatten(hashed_dict(after))
    changed = {path for path in old | new if new.get(path) != old.get(path)}
    added = [
        f"{path}={_short(value)}"
        for path, value in changes.items()
        if path != "seed" and any(f"{field}.".startswith(f"{path}.") for field in changed)
    ]
    kept = [text for text in before.overrides if text.partition("=")[0] not in changes]
    sets_rate = "optimizer.learning_rate" in changed and "learning_rate_from" not in changes
    rate_from = "override" if sets_rate else after.learning_rate_from
    return dataclasses.replace(after, overrides=(*kept, *added), learning_rate_from=rate_from)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def flatten(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


def differing_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first three fields in which two configs differ, as `optimizer.learning_rate = 0.003, not 0.01`; "" when
    none does. before, after: as `hashed_dict` gives them."""
    old, new = flatten(before), flatten(after)
    changed = [path for path in old | new if old.get(path) != new.get(path)]
    return ", ".join(f"{path} = {old.get(path)!r}, not {new.get(path)!r}" for path in changed[:3])


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """`model.width=512 optimizer.learning_rate=1e-3` as an overlay. A value is JSON, or else the text itself; a field
    that takes a number also takes 20M, and one that takes a whole number also takes 1e9.

    Raises InputError on any other text, and on two values for one field.
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
            value = _parse_text(path, written)
        whole = isinstance(value, float) and value.is_integer() and int in _field_types(path)
        changes[path] = int(value) if whole else value
    return changes


def _parse_text(path: str, text: str) -> Any:
    """The value of a field from text that is no JSON: a quantity where the field is a number, else the text itself."""
    types = _field_types(path)
    if str in types or not {int, float} & {*types}:
        return text
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise InputError(f"--set {path}={text}: {error}") from None


def _field_types(path: str) -> tuple[Any, ...]:
    """The types that a dotted field takes; (None,) where there is no such field."""
    kind: Any = RunConfig
    for name in path.split("."):
        kind = typing.get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    return typing.get_args(kind) or (kind,)
