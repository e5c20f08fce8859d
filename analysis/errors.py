"""The exception for input that analysis cannot use: a bad table, a bad saved fit or a bad option."""

from __future__ import annotations


class TableError(ValueError):
    """A table, a saved fit or an option cannot be used. The message is one line: what is wrong, where, and what would
    be right. The command line exits with 2."""
