"""How the verbs of analysis print: every line and every row of a table in full, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import terminal


def make_console(**options: Any) -> Console:
    """A console that leaves the wrapping of long lines to the terminal, and reads rich's markup: names of other people
    need `escape`. options: of rich's Console."""
    return terminal.make_console(markup=True, soft_wrap=True, highlight=False, **options)


def print_table(table: Table, console: Console | None = None) -> None:
    """Prints a table with one line a row, as wide as its content: a name or a number that is cut short is lost.
    Brackets in cells and headings are no markup."""
    console = console or make_console()
    narrow = console.width
    console.width = max(
        narrow, console.measure(table, options=console.options.update(width=10_000, markup=False)).maximum
    )
    console.print(table, markup=False)
    console.width = narrow


def print_warnings(notes: Iterable[str], console: Console | None = None) -> None:
    """Prints each note on a line of its own that begins with "warning:"."""
    for note in notes:
        (console or make_console()).print(f"[yellow]warning:[/] {escape(note)}")
