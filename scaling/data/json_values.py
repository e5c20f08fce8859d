"""JSON values one after another from a file that need not fit into memory: an array, or objects over several lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from scaling.errors import InputError

CHUNK = 1 << 20
SEPARATORS = re.compile(r"[\s,]*")
UNDECIDED = 16
"""An error this near to the end of what was read, in characters, may be that of a value that goes on after it."""


def is_json_stream(head: bytes) -> bool:
    """Whether a file that begins like this holds an array or objects over several lines, not an object a line."""
    return re.match(rb"(\xef\xbb\xbf)?\s*(\[|\{[ \t]*\r?\n)", head) is not None


def read_json_stream(read: Callable[[int], str], path: str) -> Iterator[tuple[int, Any]]:
    """Yields the number of the line where each value begins, and the value: the elements of an array, and values
    outside one. Commas and white space separate them.

    read: returns the next characters, at most so many; "" at the end. Raises InputError, which names `path` and the
    line, on what is not JSON, and where the text ends inside a value or an array.
    """
    decoder = json.JSONDecoder()
    text, start, line, size, is_inside = "", 0, 1, CHUNK, False
    while True:
        end = SEPARATORS.match(text, start).end()  # pyrefly: ignore[missing-attribute]
        line += text.count("\n", start, end)
        start = end
        if start == len(text):
            text, start = read(CHUNK), 0
            if not text:
                break
        elif text[start] == ("]" if is_inside else "["):
            is_inside, start = not is_inside, start + 1
        else:
            try:
                value, end = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                position = getattr(error, "pos", start)
                is_cut = position > len(text) - UNDECIDED or str(error).startswith("Unterminated string")
                if not is_cut or not (more := read(size)):
                    line += text.count("\n", start, position)
                    raise InputError(f"{path}, line {line}: not JSON ({getattr(error, 'msg', error)})") from None
                # Reading twice as much each time keeps the time to parse a large value linear in its length.
                text, start, size = text[start:] + more, 0, 2 * size
                continue
            yield line, value
            line += text.count("\n", start, end)
            start, size = end, CHUNK
    if is_inside:
        raise InputError(f"{path}, line {line}: the array has no end; is the file cut?")
