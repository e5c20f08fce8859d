"""Reports an error that ended a training: used by `scaling train`, `scaling population` and every process of a
multi-host run."""

from __future__ import annotations

import sys
import traceback

from scaling.errors import InputError, as_input_error
from scaling.exit_codes import DISK_FULL, FAILED, OUT_OF_MEMORY, STOPPED
from scaling.terminal import printable
from scaling.training.checkpoints import is_full_disk
from scaling.training.monitor import Stopped
from scaling.training.out_of_memory import first_line, is_out_of_memory


def report_failure(error: Exception) -> int:
    """Prints on stderr what ended the training, last in one line, with the traceback before it unless the user's input
    or a signal was the cause. Returns the exit code."""
    if isinstance(error, Stopped):
        print(printable(error), file=sys.stderr, flush=True)
        return STOPPED
    if isinstance(error, OSError):
        error = as_input_error(error) or error
    if isinstance(error, InputError):
        print(printable(f"error: {error}"), file=sys.stderr, flush=True)
        return error.code
    traceback.print_exception(error)
    if is_full_disk(error):
        print("error: the disk is full; free some space and run the same command again", file=sys.stderr, flush=True)
        return DISK_FULL
    if is_out_of_memory(error):
        remedy = "a smaller --data.microbatch-sequences needs less and learns the same"
        print(printable(f"error: out of memory: {first_line(error)}; {remedy}"), file=sys.stderr, flush=True)
        return OUT_OF_MEMORY
    sys.stderr.flush()
    return FAILED
