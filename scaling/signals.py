"""Handles signals for the time of a block: used by training, the sweep runner, the fleet and its hosts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def handle_signals(numbers: Sequence[int], handler: Callable[[int], None]) -> Iterator[None]:
    """Calls `handler` with the number of each of these signals that arrives inside the block; restores the earlier
    handlers after it.

    A signal of the terminal that the process was started to ignore stays ignored, as `nohup` and a shell's `&` intend.
    Others are handled even then: sweeps/local/child.py has a run ignore SIGUSR1 and SIGUSR2 only until the run can
    handle them. Python delivers signals to the main thread alone; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in numbers}
    for number, earlier_handler in earlier.items():
        if number not in TERMINAL_SIGNALS or earlier_handler is not signal.SIG_IGN:
            signal.signal(number, lambda arrived, frame: handler(arrived))
    try:
        yield
    finally:
        for number, earlier_handler in earlier.items():
            signal.signal(number, earlier_handler)
