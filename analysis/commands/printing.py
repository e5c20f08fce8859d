"""How the verbs of analysis print: every line and every row of a table in full, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis import terminal
from analysis.terminal import labelled


def make_console(**options: Any) -> Console:
    """A console that leaves the wrapping of long lines to the terminal and prints brackets in names as they are.
    options: of rich's Console."""
    return terminal.make_console(soft_wrap=True, highlight=False, **options)


def print_table(table: Table, console: Console | None = None) -> None:
    """Prints a table with one line a row, as wide as its content: a name or a number that is cut short is lost."""
    console = console or make_console()
    narrow = console.width
    console.width = max(narrow, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    console.width = narrow


def print_warnings(notes: Iterable[str], console: Console | None = None) -> None:
    """Prints each note on a line of its own that begins with "warning:"."""
    for note in notes:
        (console or make_console()).print(labelled("warning:", "yellow", note))
