"""Becomes the command it is given, tied to its parent's life and to its cores. Run as a script; standard library only.

    python leash.py PARENT_PID CORES COMMAND...      CORES as in 0,2 or - for any

When the parent dies, even by SIGKILL, Linux sends SIGTERM: the run saves a checkpoint and ends. Elsewhere the run goes
on to its end, and holds its folder's lock meanwhile (sweeps/running/claims.py). SIGUSR1 and SIGUSR2, which SLURM
sends to all
processes of a job, are for the worker above, which asks the run to end; they must not kill one that is still starting.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
ORPHAN_EXIT_CODE = 75


def main(arguments: list[str]) -> None:
    parent, cores, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() != int(parent):
        sys.exit(ORPHAN_EXIT_CODE)
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
