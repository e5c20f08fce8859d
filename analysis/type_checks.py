"""Compares values with type annotations: the fields of a config, and the content of files that machines write.

The content of a file is described by a TypedDict, or by any annotation made of `list`, `dict`, unions, `Literal`,
`int`, `float`, `str`, `bool` and `None`; `tuple[int, str]` stands for a list of two elements. Keys that a TypedDict
does not name are accepted, so that a file of a later version can be read.
"""

from __future__ import annotations

import functools
import math
import reprlib
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

MAX_INTEGER = 2**63 - 1
"""The largest whole number that a table can hold."""
MAX_FLOAT = int(sys.float_info.max)
_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxlong = _shortened.maxother = 60


@functools.cache
def type_hints(kind: type) -> dict[str, Any]:
    """Annotations of a class, resolved once: a plan builds thousands of configs, and this is most of the time of each.
    Those of a TypedDict keep `NotRequired`."""
    return typing.get_type_hints(kind, include_extras=typing.is_typeddict(kind))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. A bool is no int, an int has at most 64 bits, a float is finite, and a
    string can be encoded in UTF-8."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        # True == 1 in Python, so the types are compared too.
        return any(type(value) is type(option) and value == option for option in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(element, typing.get_args(hint)[0]) for element in value)
    if hint is float:
        return type(value) is float and math.isfinite(value)
    if hint is int:
        return type(value) is int and -MAX_INTEGER <= value <= MAX_INTEGER
    if hint is str:
        return type(value) is str and is_encodable(value)
    if hint in (None, types.NoneType):
        return value is None
    return type(value) is bool if hint is bool else isinstance(value, hint)


def is_encodable(text: str) -> bool:
    """Whether a text can be printed and written: it has no half of a surrogate pair, as the JSON "\\ud800" gives."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe_type(hint: Any) -> str:
    """An annotated type in words, for an error."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " * (len(arguments) > 1) + ", ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {', '.join(map(describe_type, arguments))}"
    if origin in (tuple, list):
        return f"a list, each {describe_type(arguments[0])}"
    if origin is dict or typing.is_typeddict(hint):
        return "an object"
    words = {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}
    return (words | {None: "null", types.NoneType: "null"}).get(hint, f"a {getattr(hint, '__name__', hint)}")


def describe_value(value: Any) -> str:
    """A value in at most about 60 characters, for an error."""
    return _shortened.repr(value).encode(errors="backslashreplace").decode()


def describe_key(key: Any) -> str:
    """A key of a file in one line, for an error: as it is, or with escapes where it has signs that do not print."""
    return describe_value(key).strip("'")


def find_misfit(value: Any, expected: Any, name: str = "") -> str:
    """The first part of a JSON value that is not as expected, as `row.tokens = 'x': must be a whole number`; empty when
    all is. An int is accepted for a float.

    expected: an annotation; see the module. name: dotted name of the value in the message.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        # Of the containers of a union, the one of the value's type says best what is wrong in it.
        expected = next((option for option in arguments if _container(option) is type(value)), expected)
        if typing.get_origin(expected) == origin:
            is_right = any(not find_misfit(value, option) for option in arguments)
            return "" if is_right else _describe_misfit(value, expected, name)
        return find_misfit(value, expected, name)
    container = _container(expected)
    if container is None:
        is_right = fits(value, expected) or (expected is float and type(value) is int and abs(value) <= MAX_FLOAT)
        return "" if is_right else _describe_misfit(value, expected, name)
    if not isinstance(value, container) or (origin is tuple and len(value) != len(arguments)):
        return _describe_misfit(value, expected, name)
    return next((misfit for part in _parts(value, expected, name) if (misfit := find_misfit(*part))), "")


def _container(expected: Any) -> type | None:
    """The JSON container, dict or list, that an annotation describes; None where it describes none."""
    if typing.is_typeddict(expected) or typing.get_origin(expected) is dict:
        return dict
    return list if typing.get_origin(expected) in (list, tuple) else None


_MISSING = object()


def _parts(value: Any, expected: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    """The parts of a list or an object, each as (value, annotation, dotted name)."""
    arguments = typing.get_args(expected)
    if isinstance(value, list):
        is_list = typing.get_origin(expected) is list
        for place, element in enumerate(value):
            yield element, arguments[0 if is_list else place], f"{name}[{place}]"
        return
    prefix = f"{name}." if name else ""
    if not typing.is_typeddict(expected):
        for key, element in value.items():
            yield key, str, f"{prefix}(key)"
            yield element, arguments[1], prefix + describe_key(key)
        return
    for key, hint in type_hints(expected).items():
        is_marked = typing.get_origin(hint) is typing.NotRequired
        if key in value or (expected.__total__ and not is_marked):
            yield value.get(key, _MISSING), typing.get_args(hint)[0] if is_marked else hint, f"{prefix}{key}"


def _describe_misfit(value: Any, expected: Any, name: str) -> str:
    if value is _MISSING:
        return f"{name} is missing: must be {describe_type(expected)}"
    return f"{name or 'its content'} = {describe_value(value)}: must be {describe_type(expected)}"
