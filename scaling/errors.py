"""The exceptions that end a command with one line on stderr, and what their messages share. Used everywhere."""

from __future__ import annotations

import difflib
import errno
import typing
from collections.abc import Iterator

from scaling.exit_codes import BAD_INPUT, DISK_FULL, FOLDER_BUSY


class InputError(Exception):
    """Something that the user gave is wrong. The message is one line: the field, the value, what would be right."""

    code = BAD_INPUT
    """Exit code of a command that raises it (scaling/exit_codes.py)."""


class BusyError(InputError):
    """Another process uses what the user asked for, and will end."""

    code = FOLDER_BUSY


class DiskFullError(InputError):
    """The disk has no room for what must be written."""

    code = DISK_FULL


def as_input_error(error: OSError) -> InputError | None:
    """The error of the system about a path that the user may not use, or a full disk, in one line; None for others."""
    if error.filename is None:
        return None
    path = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{path}: {error.strerror}; free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"{path}: {error.strerror}: must be one that you may read and write; name another with the flags of the "
            "command (--help), go to another folder, or change its rights"
        )
    return None


def exception_chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then the one that it was raised from or while handling, and so on to the first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def suggest_name(name: str, names: typing.Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest valid name where one is near, else all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"
