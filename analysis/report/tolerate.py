"""Parts of a page are made one by one, so that one that fails costs itself alone.

Not in the design's list of modules: reading, judging and drawing for a page fail in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from analysis.errors import TableError

Part = TypeVar("Part")


class Tolerant:
    """What could not be made.

    missing: part -> why, in one line. failed: those of them that no TableError foresaw, with the kind of exception.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def __call__(self, part: str, make: Callable[[], Part], otherwise: Part) -> Part:
        """What `make` makes; `otherwise` where it raises."""
        try:
            return make()
        except TableError as error:
            self.missing[part] = f"{error}"
        except Exception as error:
            self.missing[part] = self.failed[part] = f"{type(error).__name__}: {error}"
        return otherwise
