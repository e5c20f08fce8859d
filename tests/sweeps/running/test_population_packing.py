from __future__ import annotations

import dataclasses

import pytest

from scaling.recipes import recipes
from sweeps.grids import Sweep, apply, axis
from sweeps.local.processes import Slot
from sweeps.planning.plan import Cell, build_plan
from sweeps.planning.wall_time import WallTimeModel
from sweeps.running import population_packing
from sweeps.running.population_packing import choose_members
from tests.support.stand_in_sweep import StandInCorpus

WALL_TIME = WallTimeModel(10.0, 0.0, 1e-4, 1e18, "a test")
CORE, GPU = Slot(cores=(0,)), Slot(gpu="0")


@pytest.fixture(autouse=True)
def a_gpu_of_100_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = population_packing.slot_memory
    monkeypatch.setattr(population_packing, "slot_memory", lambda slot, slots: 1e8 if slot.gpu else real(slot, slots))


def cells(*overlays: dict, tokens: int = 65_536) -> list[Cell]:
    base = recipes.small((16, 2), tokens)
    corpus = StandInCorpus()
    return list(build_plan(Sweep("packs", apply(base, overlays), ""), WALL_TIME, lambda config: corpus).cells)


def total_seconds(made: list[Cell]) -> float:
    return sum(cell.estimated_seconds for cell in made)


def test_only_runs_of_one_shape_share_a_population() -> None:
    made = cells({"seed": 0}, {"seed": 1}, {"model.width": 32}, {"optimizer.learning_rate": 0.1, "seed": 2})
    assert [c.config.seed for c in choose_members(made, 20 * total_seconds(made), CORE, 1, None)] == [0, 1, 2]
    assert all(c.config.model.width == 16 for c in choose_members(made, 20 * total_seconds(made), CORE, 1, None))


def test_a_limit_on_members_holds() -> None:
    made = cells(*axis("seed", *range(6)))
    assert len(choose_members(made, 20 * total_seconds(made), CORE, 1, 4)) == 4
    assert len(choose_members(made, 20 * total_seconds(made), CORE, 1, 1)) == 1


def test_work_is_left_for_the_other_slots() -> None:
    made = cells(*axis("seed", *range(24)))
    assert len(choose_members(made, total_seconds(made), CORE, 1, None)) == 12
    assert len(choose_members(made, total_seconds(made), CORE, 2, None)) == 6
    assert len(choose_members(made[:1], total_seconds(made[:1]), CORE, 2, None)) == 1


def test_a_device_is_not_filled_beyond_its_memory() -> None:
    made = cells(*axis("seed", *range(200)))
    chosen = choose_members(made, 90 * total_seconds(made), GPU, 1, None)
    assert 1 < len(chosen) == population_packing.members_that_fit(made[0].config, 1e8, "gpu") < 200


def test_members_have_equal_lengths_on_a_device_but_not_on_a_cpu() -> None:
    made = cells({"seed": 0}, {"seed": 1, "tokens": 131_072}, {"seed": 2})
    made = [dataclasses.replace(cell, estimated_seconds=1.0) for cell in made]
    assert [c.config.seed for c in choose_members(made, 20 * total_seconds(made), GPU, 1, None)] == [0, 2]
    assert [c.config.seed for c in choose_members(made, 20 * total_seconds(made), CORE, 1, None)] == [0, 1, 2]


def test_on_a_cpu_large_runs_are_alone_unless_they_are_short() -> None:
    made = cells(*({"model.width": 64, "model.depth": 4, "model.heads": 4, "seed": seed} for seed in range(4)))
    assert made[0].known_columns["params_matmul"] > population_packing.LARGE_PARAMS
    for seconds, slot, count in ((50.0, CORE, 4), (70.0, CORE, 1), (70.0, GPU, 4)):
        timed = [dataclasses.replace(cell, estimated_seconds=seconds) for cell in made]
        assert len(choose_members(timed, 20 * total_seconds(timed), slot, 1, None)) == count


def test_memory_of_a_slot_is_its_share() -> None:
    assert population_packing.slot_memory(CORE, 2) == pytest.approx(population_packing.slot_memory(CORE, 1) / 2)
