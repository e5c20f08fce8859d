"""What a sweep costs grows with its cells, not with their square. Work is counted, as calls of functions; no clock.

Times, and 10,000 cells, are in benchmarks/executors.py. That flags grow so too is a test of the collapse.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from analysis.tables import results
from sweeps.catalog import smoke
from sweeps.commands.run import run_locally
from sweeps.grids import Sweep, apply, axis, overlay, product
from sweeps.planning.plan import build_plan, freeze_plan, load_plan, plan_table, summarize_plan
from sweeps.running.progress import read_sweep_progress
from tests.support.stand_in_sweep import WALL_TIME

SIZES = (60, 120, 240)
SLACK = 1.005
"""What a cell may cost more among 240 than among 120. One call for each pair of cells adds 180: 1.5 % of the dearest
stage, `run`, and more of all others."""


def cells(count: int, corpus: str = "simulated?alpha=.3") -> Sweep:
    """Five widths, four horizons, and seeds."""
    base = overlay(smoke.sweep().cells[0], {"data.corpus": corpus})
    widths, horizons = axis("model.width", 8, 16, 24, 32, 40), axis("tokens", 8_192, 16_384, 32_768, 65_536)
    varied = product(widths, axis("seed", *range(count // 20)), horizons)
    return Sweep("scale", apply(base, varied), "many")


def calls(work: Callable[[], Any]) -> int:
    """How many functions a piece of work calls, Python's and C's."""
    count = 0

    def count_call(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def stages(folder: Path, count: int) -> dict[str, int]:
    """The calls that each stage of a sweep takes, in their order."""
    sweep, place, made = cells(count), folder / "scale", []
    found = {
        "build": calls(lambda: made.append(build_plan(sweep, WALL_TIME))),
        "freeze": calls(lambda: freeze_plan(place, made[0])),
    }
    again = build_plan(cells(count), WALL_TIME)
    found |= {
        "freeze again": calls(lambda: freeze_plan(place, again)),
        "load": calls(lambda: load_plan(place)),
        "table": calls(lambda: (plan_table(again), summarize_plan(again, 2))),
        "run": calls(lambda: run_locally(place, jobs=2)),
        "run again": calls(lambda: run_locally(place, jobs=2)),
        "status": calls(lambda: read_sweep_progress(place, again)),
    }
    assert len(results.read_table(place)) == count
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    stages(tmp_path_factory.mktemp("first"), 20)
    return [stages(tmp_path_factory.mktemp(str(count)), count) for count in SIZES]


def test_each_stage_costs_a_cell_the_same_among_many_as_among_few(counted: list[dict[str, int]]) -> None:
    few, some, many = counted
    first, second, third = SIZES
    slopes = {
        stage: ((many[stage] - some[stage]) / (third - second), (some[stage] - few[stage]) / (second - first))
        for stage in few
    }
    print({stage: f"{late:.0f} calls a cell, {late / early - 1:+.2%}" for stage, (late, early) in slopes.items()})
    assert {stage: slope for stage, slope in slopes.items() if slope[0] > SLACK * slope[1]} == {}
