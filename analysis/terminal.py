"""What reaches a terminal: text without the characters that a terminal obeys, and without rich's markup.

Names, reasons and logs come from files of other people. The name "\\x1b]0;x\\x07" would set the title of the window,
others clear the screen or write over earlier lines. This file is the same in scaling and analysis, which do not import
one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than tab and newline, marks that reverse the order of text, and half characters, which come
from file names that are not UTF-8 and cannot be printed."""


def printable(text: object) -> str:
    """The text with the characters of OBEYED as Python escapes them: \\\\x1b for escape."""
    return OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


class SafeConsole(Console):
    """A console that prints the text of everything it is given as `printable` has it. Its own colours and movements of
    the cursor are not text."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)  # before a table measures its cells

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def make_console(*, markup: bool = False, **options: Any) -> Console:
    """A console that takes brackets in strings literally, and colons too, which rich would take for markup and emoji.
    options: of rich's Console."""
    return SafeConsole(markup=markup, emoji=False, **options)


def labelled(label: str, style: str, text: object) -> Text:
    """A label in a style of rich, such as "red", and the text after it."""
    return Text.assemble((label, style), " ", printable(text))
