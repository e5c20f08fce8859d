"""How a command that trains ends when training raises: what it says on stderr, and by which exit code.

Not in the design's list of modules: `scaling train`, `scaling population` and each process of a gang end alike.
"""

from __future__ import annotations

import sys
import traceback

from scaling.errors import InputError
from scaling.exit_codes import DISK_FULL, FAILED, OUT_OF_MEMORY, STOPPED
from scaling.training.checkpoints import is_full_disk
from scaling.training.monitor import Stopped
from scaling.training.out_of_memory import first_line, is_out_of_memory


def report_failure(error: Exception) -> int:
    """Says what ended the training, the traceback before the last line where it helps, and returns the exit code."""
    if isinstance(error, Stopped):
        print(error, file=sys.stderr, flush=True)
        return STOPPED
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    traceback.print_exception(error)
    if is_full_disk(error):
        print("error: the disk is full; free some space and run the same command again", file=sys.stderr, flush=True)
        return DISK_FULL
    if is_out_of_memory(error):
        what = "a smaller --data.microbatch-sequences needs less and learns the same"
        print(f"error: out of memory: {first_line(error)}; {what}", file=sys.stderr, flush=True)
        return OUT_OF_MEMORY
    sys.stderr.flush()
    return FAILED
