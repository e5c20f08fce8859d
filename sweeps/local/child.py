"""Ties a command to the life of its parent process and to its cores, and becomes it (exec). Run as a script:

    python child.py PARENT_PID CORES COMMAND...      CORES: as in 0,2; or - for any

It imports the standard library alone, because sweeps/local/processes.py starts it with `python -I -S`, before each run.

When the parent dies, even by SIGKILL, Linux sends this process SIGTERM: the run saves a checkpoint and ends. On other
systems the run goes on to its end, and holds the lock of its folder meanwhile (sweeps/running/claims.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>: the signal that the kernel sends to a process when its parent dies; exec keeps the setting."""

ORPHAN_EXIT_CODE = 75
"""STOPPED of scaling/exit_codes.py, which this script cannot import."""


def main(arguments: list[str]) -> None:
    parent, cores, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # SLURM sends these to all processes of a job. They are meant for the worker, which then asks the run to end; they
    # must not kill a run that has not installed its handlers yet. An ignored signal stays ignored across exec.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # The parent may have died before prctl took effect: then the kernel sends nothing, and the parent is another one.
    if os.getppid() != int(parent):
        sys.exit(ORPHAN_EXIT_CODE)
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
