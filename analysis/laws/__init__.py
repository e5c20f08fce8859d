"""Functional forms. A law is one object; nothing else in the package knows its name, so a new law is a new object in
one of these modules and nothing more."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from analysis.laws import accuracy, curve, surface, tuning
from analysis.laws.law import UNITS, Columns, Law, Values
from analysis.laws.surface import chinchilla

__all__ = [
    "UNITS",
    "Columns",
    "Law",
    "Values",
    "accuracy",
    "all_laws",
    "chinchilla",
    "curve",
    "get_law",
    "surface",
    "tuning",
]

_MODULES = (surface, curve, tuning, accuracy)


def all_laws() -> Iterator[Law]:
    """Every law of these modules."""
    return (value for module in _MODULES for value in vars(module).values() if isinstance(value, Law))


def get_law(name: str) -> Law:
    """The law of that name, as a saved fit or a command line gives it. Raises KeyError, with the nearest name."""
    known = {law.name: law for law in all_laws()}
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise KeyError(f"no law is named {name!r}{hint} known: {', '.join(known)}")
    return known[name]
