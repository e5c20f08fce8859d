"""Checks that the frozen dataclasses of a config share: types, values, unknown fields. Used by scaling/config."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from dataclasses import field
from typing import Any

from scaling.errors import InputError, suggest_name
from scaling.type_checks import describe_key, describe_type, describe_value, fits, type_hints

SEED_LIMIT = 1 << 32


def unhashed_field(default: Any) -> Any:
    """A dataclass field that does not change the result of a run and therefore stays out of `run_id`."""
    return field(default=default, metadata={"hashed": False})


def later_field(default: Any) -> Any:
    """A hashed dataclass field that came after the first release. It is hashed where it is not at its default, so that
    the run_ids of older configs stay what they are; the default must therefore never change."""
    return field(default=default, metadata={"hash_default": False})


def is_hashed(spec: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field with this value is part of `run_id`."""
    if not spec.metadata.get("hashed", True):
        return False
    if spec.metadata.get("hash_default", True):
        return True
    return value != (spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory())


def require(condition: bool, config: Any, name: str, right: str) -> None:
    """Raises InputError unless the condition holds: the field, its value, and `right`, what it must be."""
    if not condition:
        raise InputError(f"{type(config).__name__}.{name} = {describe_value(getattr(config, name))}: must be {right}")


def check_seed(name: str, seed: Any) -> None:
    """Raises InputError for a whole number that is not in [0, 2^32). Keys of JAX keep the low 32 bits of a seed alone,
    so that 7 and 7 + 2^32 would be one run under two run_ids. `check_types` refuses what is no whole number."""
    if type(seed) is int and not 0 <= seed < SEED_LIMIT:
        raise InputError(f"{name} = {describe_value(seed)}: must be at least 0 and below 2^32 = {SEED_LIMIT}")


def require_path(config: Any, name: str) -> None:
    """Raises InputError unless a text can be a path: system calls refuse a null character and names that are longer."""
    text = getattr(config, name)
    parts = [len(part.encode()) for part in text.split("/")]
    is_path = "\0" not in text and max(parts) <= 255 and sum(parts) + len(parts) < 4096
    require(is_path, config, name, "a path: no null character, at most 255 bytes between slashes and 4095 in all")


def check_types(config: Any) -> None:
    """Raises InputError for a field whose value does not fit its annotation. An int given for a float becomes a float,
    so that both give one hash."""
    hints = type_hints(type(config))
    for spec in dataclasses.fields(config):
        value, hint = getattr(config, spec.name), hints[spec.name]
        if hint is float and type(value) is int:
            with contextlib.suppress(OverflowError):
                object.__setattr__(config, spec.name, value := float(value))
        if not fits(value, hint):
            require(False, config, spec.name, describe_type(hint))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def build_dataclass(kind: type, data: Any, path: str) -> Any:
    """An instance of a dataclass from nested dicts, lists becoming tuples. path: dotted prefix of its fields in errors.

    Raises InputError on an unknown field, with the nearest name, and on a value that the dataclass refuses.
    """
    if not isinstance(data, dict):
        raise InputError(f"{path.rstrip('.') or kind.__name__} = {describe_value(data)}: must be an object of fields")
    hints = type_hints(kind)
    for name in data:
        if name not in hints:
            raise InputError(f"unknown field {path}{describe_key(name)}{suggest_name(name, hints)}")
    nested = {
        n: build_dataclass(h, data[n], f"{path}{n}.")
        for n, h in hints.items()
        if n in data and dataclasses.is_dataclass(h)
    }
    tuples = {
        n: tuple(data[n]) for n, h in hints.items() if typing.get_origin(h) is tuple and isinstance(data.get(n), list)
    }
    return kind(**{**data, **nested, **tuples})
