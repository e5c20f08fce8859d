"""Hearing signals for a while, and then as before.

Not in the design's list of modules: the runner and the fleet both do.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence


@contextlib.contextmanager
def handle_signals(numbers: Sequence[int], hear: Callable[[], None]) -> Iterator[None]:
    """Calls `hear` at each of these signals, but for those that this process was started to ignore; in a thread that
    is not the main one, which Python lets hear none, at none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda *_: hear())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
