"""The exception that means a bad table or a bad option."""

from __future__ import annotations


class TableError(ValueError):
    """A table or a saved fit is not usable. One line: what is wrong and where. Exit code 2."""
