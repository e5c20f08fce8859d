"""The cells that a runner has not started: which is next, and which others could start in the same process.

A waiting cell is in one of three states: asleep until a moment, waiting for its trunk, or due. The runner asks every
few hundredths of a second, so an answer must not look at every cell: the due ones are kept in order. Branches
are checked again only if their trunk is no longer queued here, or sleeps.
"""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from sweeps.planning.plan import Cell

RankedId = tuple[int, str]
"""(a number to sort by, run_id)."""


@dataclass
class WaitingCells:
    """The waiting cells of a runner, in order.

    Args:
      is_ready: whether a cell has no trunk to wait for: see `Runner.is_ready`.
      group_key: the key that cells share which may train in one process; called when a cell becomes due.
      cells: all waiting cells by run_id.
      seconds: their estimated wall time, added up.
      lowest_rank, highest_rank: the ranks given out so far; a cell added at the front goes below all others.
      ranks: run_id -> rank; lower ranks start first.
      asleep: heap of (moment, run_id) of the cells that sleep; it may hold outdated entries.
      until: run_id -> moment, of the cells that sleep.
      by_trunk: trunk -> the cells that wait for it, sorted by the step at which they leave it.
      trunks_to_check: trunks whose waiting branches may have become ready: each trains, sleeps, has ended or belongs
        to another runner.
      due: heap of (rank, run_id) of the cells that may start; it may hold outdated entries.
      group_of: run_id -> group key, of the cells that are due.
      due_by_group: group key -> the due cells of the group, sorted.
    """

    is_ready: Callable[[Cell], bool]
    group_key: Callable[[Cell], Hashable]
    cells: dict[str, Cell] = field(default_factory=dict)
    seconds: float = 0.0
    lowest_rank: int = 0
    highest_rank: int = 0
    ranks: dict[str, int] = field(default_factory=dict)
    asleep: list[tuple[float, str]] = field(default_factory=list)
    until: dict[str, float] = field(default_factory=dict)
    by_trunk: defaultdict[str, list[RankedId]] = field(default_factory=lambda: defaultdict(list))
    trunks_to_check: set[str] = field(default_factory=set)
    due: list[RankedId] = field(default_factory=list)
    group_of: dict[str, Hashable] = field(default_factory=dict)
    due_by_group: defaultdict[Hashable, list[RankedId]] = field(default_factory=lambda: defaultdict(list))

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells.values())

    def add(self, cells: Iterable[Cell], *, at_front: bool = False, until: float = 0.0) -> None:
        """Adds cells at the end, or at the front. until: when they may start, in seconds of time.monotonic()."""
        added = tuple(cells)
        for cell in added:
            self.cells[cell.run_id] = cell
            self.seconds += cell.estimated_seconds
            self.lowest_rank, self.highest_rank = self.lowest_rank - at_front, self.highest_rank + (not at_front)
            self.ranks[cell.run_id] = self.lowest_rank if at_front else self.highest_rank
        for cell in added:
            self._place(cell, until)

    def remove(self, cell: Cell) -> None:
        """Takes out a cell that starts or has ended."""
        self._unplace(cell)
        del self.cells[cell.run_id], self.ranks[cell.run_id]
        self.seconds -= cell.estimated_seconds
        self._watch(cell.run_id)

    def sleep(self, cell: Cell, until: float) -> None:
        """Lets a cell that another runner holds wait until a moment in seconds of time.monotonic()."""
        self._unplace(cell)
        self._place(cell, until)
        self._watch(cell.run_id)

    def next(self, now: float) -> Cell | None:
        """The first cell that is due at `now`, in seconds of time.monotonic(), which stays in the queue; else None."""
        self._wake(now)
        while self.due:
            # Cells that were removed or put to sleep leave an outdated entry in the heap, which is dropped here.
            rank, run_id = self.due[0]
            if run_id not in self.group_of or self.ranks[run_id] != rank:
                heapq.heappop(self.due)
            elif not self.is_ready(self.cells[run_id]):
                # Its trunk had ended without a state when the cell became due, and is tried again now.
                self._unplace(self.cells[run_id])
                self._place_behind_trunk(self.cells[run_id])
            else:
                return self.cells[run_id]
        return None

    def companions(self, cell: Cell) -> Iterator[Cell]:
        """A due cell, and then the due cells of the same group, which may start with it, in the order of the queue."""
        yield cell
        for _, run_id in self.due_by_group[self.group_of[cell.run_id]]:
            if run_id != cell.run_id and self.is_ready(self.cells[run_id]):
                yield self.cells[run_id]

    def _place(self, cell: Cell, until: float) -> None:
        """Puts a cell into the state that it belongs in."""
        if until:
            self.until[cell.run_id] = until
            heapq.heappush(self.asleep, (until, cell.run_id))
        elif self.is_ready(cell):
            self._place_due(cell)
        else:
            self._place_behind_trunk(cell)

    def _place_behind_trunk(self, cell: Cell) -> None:
        """Lets a cell wait for its trunk. Branches that leave their trunk early are ready first."""
        trunk = cell.config.branch_of
        bisect.insort(self.by_trunk[trunk], (cell.config.branch_step, cell.run_id))
        if trunk not in self.cells:
            self.trunks_to_check.add(trunk)

    def _place_due(self, cell: Cell) -> None:
        """Adds a cell to those that may start now."""
        ranked = (self.ranks[cell.run_id], cell.run_id)
        group = self.group_of[cell.run_id] = self.group_key(cell)
        heapq.heappush(self.due, ranked)
        bisect.insort(self.due_by_group[group], ranked)

    def _unplace(self, cell: Cell) -> None:
        """Takes a cell out of whichever state it is in."""
        self.until.pop(cell.run_id, None)
        if cell.run_id in self.group_of:
            _remove_ranked(self.due_by_group[self.group_of.pop(cell.run_id)], (self.ranks[cell.run_id], cell.run_id))
        elif cell.config.branch_of in self.by_trunk:
            _remove_ranked(self.by_trunk[cell.config.branch_of], (cell.config.branch_step, cell.run_id))

    def _watch(self, run_id: str) -> None:
        """Notes that a cell no longer waits here. If it is a trunk, its branches may become ready from now on."""
        if self.by_trunk.get(run_id):
            self.trunks_to_check.add(run_id)

    def _wake(self, now: float) -> None:
        """Moves cells whose moment has come, and branches whose trunk has come far enough, to those that are due."""
        while self.asleep and self.asleep[0][0] <= now:
            until, run_id = heapq.heappop(self.asleep)
            if self.until.get(run_id) == until:
                del self.until[run_id]
                self._place(self.cells[run_id], 0.0)
        for trunk in tuple(self.trunks_to_check):
            # Branches are sorted by the step at which they leave: the first that is not ready ends the search.
            branches = self.by_trunk[trunk]
            waiting = (i for i, (_, run_id) in enumerate(branches) if not self.is_ready(self.cells[run_id]))
            ready_count = next(waiting, len(branches))
            for _, run_id in branches[:ready_count]:
                self._place_due(self.cells[run_id])
            del branches[:ready_count]
            if not branches:
                self.trunks_to_check.discard(trunk)
                del self.by_trunk[trunk]


def _remove_ranked(entries: list[RankedId], entry: RankedId) -> None:
    """Removes an entry from a sorted list, if it is there."""
    at = bisect.bisect_left(entries, entry)
    if entries[at : at + 1] == [entry]:
        del entries[at]
