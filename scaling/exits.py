"""How `scaling train` and `scaling population` end: the exit codes by which a sweep judges an attempt.

Not in the design's list of modules: what runs and what starts runs both need them, and neither needs the other. 75 is
sysexits' EX_TEMPFAIL, 74 its EX_IOERR; a process that a signal ended has no exit code but the signal's.
"""

FAILED = 1
"""It raised; the traceback is on stderr."""

BAD_INPUT = 2
"""The same command will fail again: one line on stderr."""

DIVERGED = 4
"""It has a result, which says so."""

MEMORY = 12
"""A device or the host had too little memory; a smaller microbatch may do. The traceback is on stderr."""

LOST = 74
"""Another process of the run is gone, and this one with it; what the last checkpoint holds is kept."""

STOPPED = 75
"""A signal came and the state is saved."""
