"""The processes in which a runner makes runs, the room that they leave, and how they are asked to end.

Not in the design's list of modules: runner.py would pass 300 lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sweeps.local.launch import ProcessHandle, Slot
from sweeps.planning.plan import Cell
from sweeps.running.claims import Claim, LeaseRenewer

GRACE_SECONDS = 120.0


@dataclass(frozen=True, eq=False)
class Attempt:
    """Runs being made by one process: each under its claim, in these slots."""

    claims: dict[str, Claim]
    cells: tuple[Cell, ...]
    process: ProcessHandle
    slots: tuple[Slot, ...]


@dataclass
class RunningAttempts:
    """Those that run. free: slots without one. jobs: processes at once, at most. renewer: renews their claims. told:
    those that were asked to save and end; patience: monotonic seconds at which they have had long enough."""

    free: list[Slot]
    jobs: int | None = None
    renewer: LeaseRenewer = field(default_factory=LeaseRenewer)
    running: list[Attempt] = field(default_factory=list)
    stop_requested: set[Attempt] = field(default_factory=set)
    kill_deadline: float = 0.0

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self.running))

    def __len__(self) -> int:
        return len(self.running)

    def has_room(self) -> bool:
        """Whether there may be one more."""
        return bool(self.free) and (self.jobs is None or len(self.running) < self.jobs)

    def add(self, attempt: Attempt) -> None:
        self.running.append(attempt)
        for slot in attempt.slots:
            self.free.remove(slot)

    def remove(self, attempt: Attempt) -> None:
        """Its process has ended: its runs are anybody's, and its slots free."""
        for held in attempt.claims.values():
            self.renewer.release(held)
        self.running.remove(attempt)
        self.stop_requested.discard(attempt)
        self.free += attempt.slots

    def stop(self, *, now: bool) -> None:
        """Asks all to save and end, once; kills them when it must be now, or when patience ends."""
        self.kill_deadline = self.kill_deadline or time.monotonic() + GRACE_SECONDS
        for attempt in self.running:
            if now or time.monotonic() > self.kill_deadline:
                attempt.process.kill()
            elif attempt not in self.stop_requested:
                self.stop_requested.add(attempt)
                attempt.process.terminate()

    def lost_claims(self) -> Iterator[tuple[Attempt, list[Cell]]]:
        """Those that lost the claim of a run, and which."""
        for attempt in self if self.renewer.lost_nonces else ():
            if lost := [
                cell for cell in attempt.cells if attempt.claims[cell.run_id].nonce in self.renewer.lost_nonces
            ]:
                yield attempt, lost
