"""Strict frozen dataclasses: fields checked against their annotations, unknown names refused with the nearest one.

Not in the design's list of modules: it is the second concept that config.py held when it passed 300 lines.
"""

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
"""Annotations of a class, looked up once: they are most of what building a config costs, and a plan has thousands."""


def unhashed_field(default: Any) -> Any:
    """A field that does not change the result, hence is not hashed."""
    return field(default=default, metadata={"hashed": False})


def require(condition: bool, config: Any, name: str, right: str) -> None:
    """Raises InputError naming field, value and what would be right, unless condition holds."""
    if not condition:
        raise InputError(f"{type(config).__name__}.{name} = {getattr(config, name)!r}: must be {right}")


def check_types(config: Any) -> None:
    """Checks each field against its annotation; an int given for a float becomes one, so hashes agree."""
    hints = _hints(type(config))
    for spec in dataclasses.fields(config):
        value, hint = getattr(config, spec.name), hints[spec.name]
        if hint is float and type(value) is int:
            object.__setattr__(config, spec.name, value := float(value))
        if not _fits(value, hint):
            require(False, config, spec.name, _spell(hint))


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, typing.get_args(hint)[0]) for one in value)
    if hint is float:
        return type(value) is float and math.isfinite(value)
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _spell(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_spell(typing.get_args(hint)[0])}"
    return {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}.get(
        hint, f"a {getattr(hint, '__name__', hint)}"
    )


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def build_dataclass(kind: type, data: Any, path: str) -> Any:
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
