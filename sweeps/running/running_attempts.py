"""The processes that a runner has started: which slots are free, and how the processes are stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sweeps.local.launch import ProcessHandle, Slot
from sweeps.planning.plan import Cell
from sweeps.running.claims import Claim, LeaseRenewer

GRACE_SECONDS = 120.0
"""How long a process that was asked to save and end may take before it is killed."""
STUCK_GRACE_SECONDS = 30.0
"""The same for a process that has made no progress for long."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One process, and the runs that it trains. claims: by run_id. slots: those that it occupies."""

    claims: dict[str, Claim]
    cells: tuple[Cell, ...]
    process: ProcessHandle
    slots: tuple[Slot, ...]


@dataclass
class RunningAttempts:
    """The running attempts.

    Args:
      free: slots without a process.
      jobs: most processes at once; None for one in every slot.
      renewer: renews the claims of all attempts.
      running: the attempts, in the order of their start.
      stop_requested: the attempts whose process was asked to save and end.
      kill_deadline: when those are killed, in seconds of time.monotonic(); 0 before the first request.
      stuck: the attempts that are being ended because they make no progress: why, in words, and when they are killed.
    """

    free: list[Slot]
    jobs: int | None = None
    renewer: LeaseRenewer = field(default_factory=LeaseRenewer)
    running: list[Attempt] = field(default_factory=list)
    stop_requested: set[Attempt] = field(default_factory=set)
    kill_deadline: float = 0.0
    stuck: dict[Attempt, tuple[str, float]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self.running))

    def __len__(self) -> int:
        return len(self.running)

    def has_room(self) -> bool:
        """Whether one more process may start."""
        return bool(self.free) and (self.jobs is None or len(self.running) < self.jobs)

    def add(self, attempt: Attempt) -> None:
        self.running.append(attempt)
        for slot in attempt.slots:
            self.free.remove(slot)

    def remove(self, attempt: Attempt) -> None:
        """Releases the claims and frees the slots of an attempt whose process has ended."""
        for claim in attempt.claims.values():
            self.renewer.release(claim)
        self.running.remove(attempt)
        self.stop_requested.discard(attempt)
        self.stuck.pop(attempt, None)
        self.free += attempt.slots

    def stop(self, *, now: bool) -> None:
        """Asks every process once to save and end; kills them when `now`, or GRACE_SECONDS after the first call."""
        self.kill_deadline = self.kill_deadline or time.monotonic() + GRACE_SECONDS
        for attempt in self.running:
            if now or time.monotonic() > self.kill_deadline:
                attempt.process.kill()
            elif attempt not in self.stop_requested:
                self.stop_requested.add(attempt)
                attempt.process.terminate()

    def end_stuck(self, attempt: Attempt, reason: str) -> None:
        """Asks a process that makes no progress to save and end; `kill_stuck` kills it if it does not."""
        self.stuck[attempt] = reason, time.monotonic() + STUCK_GRACE_SECONDS
        attempt.process.terminate()

    def kill_stuck(self) -> None:
        """Kills the processes that make no progress and did not end when they were asked to."""
        for attempt, (_, deadline) in tuple(self.stuck.items()):
            if time.monotonic() > deadline:
                attempt.process.kill()

    def lost_claims(self) -> Iterator[tuple[Attempt, list[Cell]]]:
        """The attempts of which another runner took over a run, each with those cells."""
        for attempt in self if self.renewer.lost_nonces else ():
            if lost := [
                cell for cell in attempt.cells if attempt.claims[cell.run_id].nonce in self.renewer.lost_nonces
            ]:
                yield attempt, lost
