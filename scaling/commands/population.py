"""The verb `scaling population`: trains runs of one shape together, as members of one vmapped program."""

from __future__ import annotations

import sys
from pathlib import Path

from scaling.errors import InputError
from scaling.terminal import printable
from scaling.training.failures import report_failure
from scaling.training.population import train_population


def population(folders: tuple[Path, ...], quiet: bool = False) -> int:
    """Train runs of one shape together in one program. The same command again resumes them.

    Exit code: 0 when every run has a result, 1 when one could not be trained (one line on stderr for each), 12 when
    memory was too small, 75 when a signal stopped it.

    Args:
        folders: required: run folders, each with its config.json.
        quiet: print no progress bar.
    """
    if not folders:
        raise InputError("no run folder given: name those that hold the config.json of each member")
    try:
        outcomes = train_population(folders, quiet=quiet)
    except InputError:
        raise
    except Exception as error:
        return report_failure(error)
    for folder, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            kind = "" if isinstance(outcome, InputError) else f"{type(outcome).__name__}: "
            print(printable(f"error: {folder}: {kind}{outcome}"), file=sys.stderr)
        else:
            print(printable(f"{folder}: {outcome}"))
    return int(any(isinstance(outcome, Exception) for outcome in outcomes.values()))
