"""When the processes that train one multi-host run are killed because another of them has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from scaling.exit_codes import DIVERGED, STOPPED

JOINT_END_CODES = (0, STOPPED, DIVERGED)
"""Exit codes with which all processes of a run end at the same step, by agreement."""

JOINT_END_SECONDS = 120.0
"""Seconds that the others get after the first has ended by agreement: they may still write a checkpoint."""

CRASH_SECONDS = 3.0
"""Seconds that the others get after one has crashed. They cannot go on; this lets them report what they saw."""


@dataclass
class ProcessSupervisor:
    """Decides when the remaining processes of one run must be killed. `scaling.exit_codes.combined_exit_code` gives the
    exit code of the run once all have ended.

    first_end: monotonic seconds at which the first process was seen to have ended; None before.
    """

    first_end: float | None = None

    def must_kill(self, codes: Sequence[int | None]) -> bool:
        """Whether the processes that still run have had their time. codes: of each process, None while it runs."""
        ended = [code for code in codes if code is not None]
        if not ended or len(ended) == len(codes):
            return False
        if self.first_end is None:
            self.first_end = time.monotonic()
        by_agreement = all(code in JOINT_END_CODES for code in ended)
        return time.monotonic() - self.first_end > (JOINT_END_SECONDS if by_agreement else CRASH_SECONDS)
