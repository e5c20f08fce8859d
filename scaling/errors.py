"""Exceptions that mean bad input or a full disk, and the nearest name for a misspelt one."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator

from scaling.exit_codes import BAD_INPUT, DISK_FULL, FOLDER_BUSY


class InputError(Exception):
    """Something the user gave is wrong. One line: the field, the value, what would be right. code: exits.py."""

    code = BAD_INPUT


class BusyError(InputError):
    """Somebody else has what the user asked for, for now."""

    code = FOLDER_BUSY


class DiskFullError(InputError):
    """There is no room for what must be written."""

    code = DISK_FULL


def exception_chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then the one that it was raised from or while handling, and so on to the first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def suggest_name(name: str, names: typing.Iterable[str]) -> str:
    """The end of an error sentence: the nearest valid name if one is near, else all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"
