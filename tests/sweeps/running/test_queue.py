"""The queue of a runner says what a look at all cells would say, without one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Hashable
from dataclasses import dataclass, field

import pytest

from sweeps.catalog import smoke
from sweeps.grids import Sweep, apply, axis, product
from sweeps.planning.plan import Cell, build_plan
from sweeps.running.queue import WaitingCells
from tests.support.stand_in_sweep import WALL_TIME, StandInCorpus


def cells(seeds: int) -> list[Cell]:
    """Two widths, each seed with a trunk and three branches."""
    varied = product(axis("model.width", 8, 16), axis("seed", *range(seeds)), axis("tokens", 4096, 8192, 16384, 32768))
    sweep = Sweep("waiting", apply(smoke.sweep().cells[0], varied), "")
    made = build_plan(sweep, WALL_TIME, lambda config: StandInCorpus()).cells
    return sorted(made, key=lambda cell: bool(cell.config.branch_of))


@dataclass
class Trunks:
    """Which cells may start, by how far their trunks have come; counts how often it is checks."""

    steps: dict[str, int] = field(default_factory=dict)
    checks: int = 0

    def ready(self, cell: Cell) -> bool:
        self.checks += 1
        return not cell.config.branch_of or self.steps.get(cell.config.branch_of, 0) >= cell.config.branch_step


def width(cell: Cell) -> Hashable:
    return cell.config.model.width


def names(group: list[Cell]) -> list[str]:
    return [cell.run_id for cell in group]


@dataclass
class SortedList:
    """The same queue, as a list that is looked through."""

    trunks: Trunks
    waiting: list[Cell] = field(default_factory=list)
    until: dict[str, float] = field(default_factory=dict)

    def due(self, now: float) -> list[Cell]:
        return [c for c in self.waiting if self.until.get(c.run_id, 0.0) <= now and self.trunks.ready(c)]


@pytest.mark.parametrize("seed", range(20))
def test_the_queue_answers_as_a_sorted_list_does(seed: int) -> None:
    chance, trunks, made = random.Random(seed), Trunks(), cells(4)
    queue, reference, now = WaitingCells(trunks.ready, width), SortedList(trunks), 1.0
    queue.add(made)
    reference.waiting += made
    out: list[Cell] = []
    for _ in range(300):
        now += chance.random()
        for cell in out:
            if not cell.config.branch_of and chance.random() < 0.3:
                trunks.steps[cell.run_id] = trunks.steps.get(cell.run_id, 0) + 8
        first, due = queue.next(now), reference.due(now)
        assert names([first] if first else []) == names(due[:1])
        assert len(queue) == len(reference.waiting)
        assert sorted(names(list(queue))) == sorted(names(reference.waiting))
        assert queue.seconds == pytest.approx(sum(cell.estimated_seconds for cell in reference.waiting))
        if first:
            companions = list(queue.companions(first))
            assert names(companions) == names([cell for cell in due if width(cell) == width(first)])
            if chance.random() < 0.3:
                reference.until[first.run_id] = now + 2
                queue.sleep(first, now + 2)
            else:
                for cell in companions[: chance.choice((1, 3))]:
                    queue.remove(cell)
                    reference.waiting.remove(cell)
                    out.append(cell)
        if out and chance.random() < 0.4:
            back, ahead, until = (
                out.pop(chance.randrange(len(out))),
                chance.random() < 0.5,
                chance.choice((0.0, now + 3)),
            )
            queue.add([back], at_front=ahead, until=until)
            reference.until[back.run_id] = until
            reference.waiting.insert(0 if ahead else len(reference.waiting), back)
    assert out


def test_a_branch_whose_trunk_is_reopened_waits_again() -> None:
    trunks, branch = Trunks(), cells(1)[-1]
    trunk, queue = branch.config.branch_of, WaitingCells(trunks.ready, width)
    trunks.steps[trunk] = branch.config.branch_step
    queue.add([branch])
    assert queue.next(1.0) == branch
    trunks.steps.clear()
    assert queue.next(2.0) is None
    trunks.steps[trunk] = branch.config.branch_step
    assert queue.next(3.0) == branch


def drain(seeds: int) -> tuple[int, int]:
    """Questions checks while all cells start, eight at a time, and how many cells there were."""
    trunks, made = Trunks(), cells(seeds)
    queue, running = WaitingCells(trunks.ready, width), []
    queue.add(made)
    while len(queue):
        first = queue.next(1.0)
        assert first is not None
        queue.remove(first)
        running.append(first)
        if len(running) == 8:
            trunks.steps |= {cell.run_id: cell.config.steps for cell in running}
            running.clear()
        if not queue.due:
            trunks.steps |= {cell.run_id: cell.config.steps for cell in running}
    return trunks.checks, len(made)


def test_readiness_checks_per_cell_do_not_grow_with_the_queue() -> None:
    for seeds in (10, 100):
        checks, count = drain(seeds)
        assert checks < 20 * count


def test_a_cell_that_comes_back_often_is_in_the_queue_once() -> None:
    one = dataclasses.replace(cells(1)[0], estimated_seconds=5.0)
    queue = WaitingCells(Trunks().ready, width)
    for _ in range(3):
        queue.add([one], until=7.0)
        assert queue.next(6.0) is None
        assert queue.next(7.0) == one
        queue.remove(one)
        assert queue.next(9.0) is None
        assert (len(queue), queue.seconds) == (0, 0.0)
