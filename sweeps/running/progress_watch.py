"""Finds the attempts that make no progress: their process runs, but writes nothing for a long time.

Progress is any change of a file in the run folder that the runner does not write itself: a logged step, a checkpoint
that grows, a line of output. A process that trains renews metrics.jsonl every few seconds, also between two steps that
it logs (scaling/training/session.py). So a long silence is one of compilation, of an evaluation, of a very long step;
or the process is stuck, as one that waits for a thread which the system refused to start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scaling.record.run_folder import ATTEMPTS, BRANCHES, CHECKPOINTS, LEASE, RUN_LOCK
from sweeps.planning.plan import Cell
from sweeps.running.progress import read_cell_progress
from sweeps.running.running_attempts import Attempt

LOOK_SECONDS = 10.0
"""Longest time between two looks at the run folders."""
SILENT_STEPS = 50
"""An attempt may be silent for at least so many of its steps, however slow they are."""
NOTICE_FRACTION = 0.1
"""The part of the silence allowed after which a line is printed. Further lines follow each time the silence doubles."""

FileStamps = frozenset[tuple[str, int, int]]
"""(path, size in bytes, mtime in ns) of files."""


@dataclass
class Silence:
    """How long an attempt has written nothing. stamps: of its files, at the last change; notice_at: seconds of silence
    at which the next line is printed."""

    stamps: FileStamps
    seconds: float = 0.0
    notice_at: float = 0.0


@dataclass
class ProgressWatch:
    """Measures how long each attempt has made no progress.

    timeout: seconds of silence after which an attempt counts as stuck, unless its steps are slow: see
    `allowed_silence`. silences: of the attempts at the last look. looked_at: when that was, in seconds of
    time.monotonic().
    """

    timeout: float
    silences: dict[Attempt, Silence] = field(default_factory=dict)
    looked_at: float = field(default_factory=time.monotonic)

    def look(self, attempts: Iterable[Attempt]) -> Iterator[tuple[Attempt, float, float]]:
        """Yields the attempts of which something is to be said or done, each with the seconds of its silence and those
        allowed: it is stuck if the first are not fewer. Yields nothing when the last look was a moment ago."""
        passed, interval = time.monotonic() - self.looked_at, min(LOOK_SECONDS, NOTICE_FRACTION * self.timeout)
        if passed < interval:
            return
        self.looked_at += passed
        # While this process was suspended, so were its children, perhaps: such a time is no silence.
        passed = min(passed, 2 * interval)
        earlier, self.silences = self.silences, {}
        for attempt in attempts:
            folders = [claim.folder for claim in attempt.claims.values()]
            stamps, silence = read_stamps(folders), earlier.get(attempt)
            if silence is None or silence.stamps != stamps:
                self.silences[attempt] = Silence(stamps, 0.0, NOTICE_FRACTION * self.timeout)
                continue
            self.silences[attempt] = silence
            silence.seconds += passed
            if silence.seconds >= silence.notice_at:
                allowed = max(allowed_silence(c, f, self.timeout) for c, f in zip(attempt.cells, folders, strict=True))
                if silence.seconds < NOTICE_FRACTION * allowed:
                    silence.notice_at = NOTICE_FRACTION * allowed
                else:
                    silence.notice_at = min(2 * silence.seconds, allowed)
                    yield attempt, silence.seconds, allowed


def allowed_silence(cell: Cell, run: Path, timeout: float) -> float:
    """Seconds that a run may write nothing: the timeout, or SILENT_STEPS of its steps, or as long as it would train on
    the tokens of one evaluation, whichever is longest."""
    speed = read_cell_progress(run, cell).tokens_per_second
    tokens = max(SILENT_STEPS * cell.config.data.batch_tokens, cell.config.measure.validation_tokens)
    return max(timeout, tokens / speed) if speed else timeout


def read_stamps(folders: Iterable[Path]) -> FileStamps:
    """The stamps of the files in run folders that a training process writes. Of the checkpoints that are whole, only
    the folder; of those that are being written, every file."""
    stamps = set()
    for folder in folders:
        unfinished = (path for kind in (CHECKPOINTS, BRANCHES) for path in folder.glob(f"{kind}/*tmp*/**/*"))
        for path in (*folder.glob("[!.]*"), *unfinished):
            # A file may vanish between the listing and the look.
            with contextlib.suppress(OSError):
                if path.name not in (LEASE, RUN_LOCK, ATTEMPTS):
                    stat = path.stat()
                    stamps.add((str(path), stat.st_size, stat.st_mtime_ns))
    return frozenset(stamps)
