"""The cells that a runner has not started: which is next, and which could go with it, found without a look at all.

A cell sleeps until a moment; or it waits behind its trunk; or it is due. Of those behind trunks only the ones whose
trunk may have come further are looked at: a trunk that waits here itself has not, for all that this runner knows.

Not in the design's list of modules: runner.py would pass 300 lines.
"""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from sweeps.planning.plan import Cell

RankedId = tuple[int, str]
"""A number to sort by, and a run_id."""


@dataclass
class WaitingCells:
    """Cells by run_id, and where each of them stands.

    ready: whether the trunk of a cell has come to where it leaves, or will not; those that leave early are ready first.
    kind: what cells have in common that may start together; asked as a cell becomes due. seconds: estimated, of all.
    ranks: places in the order. asleep, until: those that sleep, and until when. behind: trunk -> those that wait for
    it, by the step at which they leave. watched: trunks that may have come further. due, alike: all that are due, and
    those of each kind. kinds: of each that is due.
    """

    ready: Callable[[Cell], bool]
    group_key: Callable[[Cell], Hashable]
    cells: dict[str, Cell] = field(default_factory=dict)
    seconds: float = 0.0
    first: int = 0
    last: int = 0
    ranks: dict[str, int] = field(default_factory=dict)
    asleep: list[tuple[float, str]] = field(default_factory=list)
    until: dict[str, float] = field(default_factory=dict)
    by_trunk: defaultdict[str, list[RankedId]] = field(default_factory=lambda: defaultdict(list))
    moving_trunks: set[str] = field(default_factory=set)
    due: list[RankedId] = field(default_factory=list)
    due_groups: dict[str, Hashable] = field(default_factory=dict)
    due_by_group: defaultdict[Hashable, list[RankedId]] = field(default_factory=lambda: defaultdict(list))

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells.values())

    def add(self, cells: Iterable[Cell], *, at_front: bool = False, until: float = 0.0) -> None:
        """Cells come in at the end, or ahead of all. until: monotonic seconds, before which they do not start."""
        come = tuple(cells)
        for cell in come:
            self.cells[cell.run_id] = cell
            self.seconds += cell.estimated_seconds
            self.first, self.last = self.first - at_front, self.last + (not at_front)
            self.ranks[cell.run_id] = self.first if at_front else self.last
        for cell in come:
            self._place(cell, until)

    def remove(self, cell: Cell) -> None:
        """A cell starts, or has ended."""
        self._unplace(cell)
        del self.cells[cell.run_id], self.ranks[cell.run_id]
        self.seconds -= cell.estimated_seconds
        self._watch(cell.run_id)

    def sleep(self, cell: Cell, until: float) -> None:
        """A cell is another runner's, at least until a moment in monotonic seconds."""
        self._unplace(cell)
        self._place(cell, until)
        self._watch(cell.run_id)

    def next(self, now: float) -> Cell | None:
        """The first of the cells that are due at a moment in monotonic seconds."""
        self._wake(now)
        while self.due:
            rank, run_id = self.due[0]
            if run_id not in self.due_groups or self.ranks[run_id] != rank:
                heapq.heappop(self.due)
            elif not self.ready(self.cells[run_id]):
                self._unplace(self.cells[run_id])
                self._place_behind(self.cells[run_id])
            else:
                return self.cells[run_id]
        return None

    def companions(self, cell: Cell) -> Iterator[Cell]:
        """A due cell, and after it those due that may start with it, in their order."""
        yield cell
        for _, run_id in self.due_by_group[self.due_groups[cell.run_id]]:
            if run_id != cell.run_id and self.ready(self.cells[run_id]):
                yield self.cells[run_id]

    def _place(self, cell: Cell, until: float) -> None:
        if until:
            self.until[cell.run_id] = until
            heapq.heappush(self.asleep, (until, cell.run_id))
        elif self.ready(cell):
            self._place_due(cell)
        else:
            self._place_behind(cell)

    def _place_behind(self, cell: Cell) -> None:
        trunk = cell.config.branch_of
        bisect.insort(self.by_trunk[trunk], (cell.config.branch_step, cell.run_id))
        if trunk not in self.cells:
            self.moving_trunks.add(trunk)

    def _place_due(self, cell: Cell) -> None:
        place = (self.ranks[cell.run_id], cell.run_id)
        kind = self.due_groups[cell.run_id] = self.group_key(cell)
        heapq.heappush(self.due, place)
        bisect.insort(self.due_by_group[kind], place)

    def _unplace(self, cell: Cell) -> None:
        self.until.pop(cell.run_id, None)
        if cell.run_id in self.due_groups:
            _remove_ranked(self.due_by_group[self.due_groups.pop(cell.run_id)], (self.ranks[cell.run_id], cell.run_id))
        elif cell.config.branch_of in self.by_trunk:
            _remove_ranked(self.by_trunk[cell.config.branch_of], (cell.config.branch_step, cell.run_id))

    def _watch(self, run_id: str) -> None:
        if self.by_trunk.get(run_id):
            self.moving_trunks.add(run_id)

    def _wake(self, now: float) -> None:
        """Finds what has become due since."""
        while self.asleep and self.asleep[0][0] <= now:
            until, run_id = heapq.heappop(self.asleep)
            if self.until.get(run_id) == until:
                del self.until[run_id]
                self._place(self.cells[run_id], 0.0)
        for trunk in tuple(self.moving_trunks):
            behind = self.by_trunk[trunk]
            come = next((i for i, (_, run_id) in enumerate(behind) if not self.ready(self.cells[run_id])), len(behind))
            for _, run_id in behind[:come]:
                self._place_due(self.cells[run_id])
            del behind[:come]
            if not behind:
                self.moving_trunks.discard(trunk)
                del self.by_trunk[trunk]


def _remove_ranked(places: list[RankedId], place: RankedId) -> None:
    """Takes a place out of a sorted list, if it is there."""
    at = bisect.bisect_left(places, place)
    if places[at : at + 1] == [place]:
        del places[at]
