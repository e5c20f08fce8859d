"""Checks that the frozen dataclasses of a config share: types, values, unknown fields. Used by scaling/config."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from dataclasses import field
from typing import Any, Literal

from scaling.errors import InputError, suggest_name

_hints = functools.cache(typing.get_type_hints)
"""Annotations of a class, resolved once: a plan builds thousands of configs, and this is most of the time of each."""


def unhashed_field(default: Any) -> Any:
    """A dataclass field that does not change the result of a run and therefore stays out of `run_id`."""
    return field(default=default, metadata={"hashed": False})


def require(condition: bool, config: Any, name: str, right: str) -> None:
    """Raises InputError unless the condition holds: the field, its value, and `right`, what it must be."""
    if not condition:
        raise InputError(f"{type(config).__name__}.{name} = {getattr(config, name)!r}: must be {right}")


def check_types(config: Any) -> None:
    """Raises InputError for a field whose value does not fit its annotation. An int given for a float becomes a float,
    so that both give one hash."""
    hints = _hints(type(config))
    for spec in dataclasses.fields(config):
        value, hint = getattr(config, spec.name), hints[spec.name]
        if hint is float and type(value) is int:
            object.__setattr__(config, spec.name, value := float(value))
        if not _fits(value, hint):
            require(False, config, spec.name, _describe_type(hint))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; a bool is no int, and a float is finite."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(element, typing.get_args(hint)[0]) for element in value)
    if hint is float:
        return type(value) is float and math.isfinite(value)
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, hint)


def _describe_type(hint: Any) -> str:
    """An annotated type in words, for an error."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(
            "null" if option is type(None) else _describe_type(option) for option in typing.get_args(hint)
        )
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_describe_type(typing.get_args(hint)[0])}"
    return {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}.get(
        hint, f"a {getattr(hint, '__name__', hint)}"
    )


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def build_dataclass(kind: type, data: Any, path: str) -> Any:
    """An instance of a dataclass from nested dicts, lists becoming tuples. path: dotted prefix of its fields in errors.

    Raises InputError on an unknown field, with the nearest name, and on a value that the dataclass refuses.
    """
    if not isinstance(data, dict):
        raise InputError(f"{path.rstrip('.') or kind.__name__} = {data!r}: must be an object of fields")
    hints = _hints(kind)
    for name in data:
        if name not in hints:
            raise InputError(f"unknown field {path}{name}{suggest_name(name, hints)}")
    nested = {
        n: build_dataclass(h, data[n], f"{path}{n}.")
        for n, h in hints.items()
        if n in data and dataclasses.is_dataclass(h)
    }
    tuples = {
        n: tuple(data[n]) for n, h in hints.items() if typing.get_origin(h) is tuple and isinstance(data.get(n), list)
    }
    return kind(**{**data, **nested, **tuples})
