"""Makes the parts of a page one by one, so that a part that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from analysis.errors import TableError

Part = TypeVar("Part")


class Tolerant:
    """Calls functions that make parts of a page, and records those that raise.

    Attributes:
      missing: part -> why it could not be made, in one line.
      failed: the parts of `missing` that raised something other than a TableError, with the class of the exception.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def __call__(self, part: str, make: Callable[[], Part], default: Part) -> Part:
        """The result of `make`; `default` if it raises."""
        try:
            return make()
        except TableError as error:
            self.missing[part] = f"{error}"
        except Exception as error:
            self.missing[part] = self.failed[part] = f"{type(error).__name__}: {error}"
        return default
