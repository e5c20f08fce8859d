"""Exit codes of `scaling`: how `scaling train` and `scaling population` tell a sweep how an attempt ended.

73, 74 and 75 follow sysexits.h (EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL), 28 is ENOSPC, 12 is ENOMEM. A process that a
signal ended has no exit code but the signal's.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

FAILED = 1
"""The program raised an exception; its traceback is on stderr."""

BAD_INPUT = 2
"""The same command will fail again; one line on stderr says why."""

DIVERGED = 4
"""The run diverged; its result.json says so."""

OUT_OF_MEMORY = 12
"""A device or the host had too little memory; a smaller microbatch may fit. The traceback is on stderr."""

DISK_FULL = 28
"""The disk is full; one line on stderr says where. Files written before are whole. Make room and run it again."""

FOLDER_BUSY = 73
"""Another process trains in the folder, left there by a runner that is gone. It will end."""

PROCESS_LOST = 74
"""Another process of the same run ended, and this one with it; the last checkpoint is whole."""

STOPPED = 75
"""A signal asked the run to stop, and its state is saved."""

INTERRUPTED = 130
"""ctrl-C was pressed a second time; nothing is saved."""

OUTPUT_CLOSED = 141
"""Nobody reads standard output any more, as with `scaling ... | head`: the code that a shell gives SIGPIPE."""


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
