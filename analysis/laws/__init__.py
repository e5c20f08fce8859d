"""Functional forms of scaling laws: loss surfaces, learning curves, optimiser settings and accuracy.

A law is one `Law` object, found by its name with `get_law`. To add one, define it in one of these modules
(docs/add_a_law.md).
"""

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
    """Yields every law that these modules define."""
    return (value for module in _MODULES for value in vars(module).values() if isinstance(value, Law))


def get_law(name: str) -> Law:
    """Returns the law of a name that a saved fit or a command line gives. Raises KeyError, with the nearest name."""
    law_by_name = {law.name: law for law in all_laws()}
    if name not in law_by_name:
        nearest = difflib.get_close_matches(name.lower(), law_by_name, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ";"
        raise KeyError(f"no law is named {name!r}{hint} known: {', '.join(law_by_name)}")
    return law_by_name[name]
