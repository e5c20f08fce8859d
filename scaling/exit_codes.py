"""How `scaling train` and `scaling population` end: the exit codes by which a sweep judges an attempt.

Not in the design's list of modules: what runs and what starts runs both need them, and neither needs the other. 75 is
sysexits' EX_TEMPFAIL, 74 its EX_IOERR; a process that a signal ended has no exit code but the signal's.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

FAILED = 1
"""It raised; the traceback is on stderr."""

BAD_INPUT = 2
"""The same command will fail again: one line on stderr."""

DIVERGED = 4
"""It has a result, which says so."""

OUT_OF_MEMORY = 12
"""A device or the host had too little memory; a smaller microbatch may do. The traceback is on stderr."""

DISK_FULL = 28
"""The disk is full: one line on stderr. What was written before is whole; nothing goes on before there is room."""

FOLDER_BUSY = 73
"""Another process trains in the folder: what a runner left there that is gone. It will end."""

PROCESS_LOST = 74
"""Another process of the run is gone, and this one with it; what the last checkpoint holds is kept."""

STOPPED = 75
"""A signal came and the state is saved."""

INTERRUPTED = 130
"""ctrl-C a second time, nothing saved."""

OUTPUT_CLOSED = 141
"""Nobody reads its standard output any more, as of `scaling ... | head`: what a shell says of SIGPIPE."""


def combined_exit_code(codes: Sequence[int]) -> int:
    """The exit code of a run that several processes trained, from theirs: negative for a signal, as in subprocess.

    When one process ends, the others end too: they report its loss, or are killed. The code that counts is that of the
    first, which is looked for in this order: an error that a process reported; a signal such as SIGSEGV, which nobody
    sends to the others; PROCESS_LOST; SIGKILL, SIGTERM and SIGABRT, by which the others end (JAX aborts a process that
    has lost process 0); any other end.
    """
    errors = [code for code in codes if code > 0 and code not in (PROCESS_LOST, STOPPED)]
    signals = sorted((code for code in codes if code < 0), key=lambda code: code == -signal.SIGABRT)
    own_signals = [code for code in signals if -code not in (signal.SIGKILL, signal.SIGTERM, signal.SIGABRT)]
    lost = [code for code in codes if code == PROCESS_LOST]
    return next(iter([*errors, *own_signals, *lost, *signals, *codes]), 0) if any(codes) else 0
