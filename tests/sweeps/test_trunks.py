from __future__ import annotations

import dataclasses
import math

import pytest

from scaling.config.run_config import RunConfig, ScheduleConfig
from scaling.recipes import recipes
from sweeps.grids import Sweep, apply, axis, overlay, product
from sweeps.planning.plan import build_plan, freeze_plan, load_plan, plan_to_dict, summarize_plan
from sweeps.trunks import share_trunks
from tests.support.stand_in_sweep import WALL_TIME, StandInCorpus

WSD = ScheduleConfig(kind="wsd", warmup_tokens=4096, cooldown_fraction=0.2)
BASE = RunConfig(schedule=WSD, tokens=2_048 * 100)


def horizons(*steps: int) -> tuple[RunConfig, ...]:
    return apply(BASE, axis("tokens", *(2_048 * s for s in steps)))


def test_the_longest_is_the_trunk_and_keeps_what_the_others_need() -> None:
    short, long, middle = share_trunks(horizons(100, 400, 200))
    assert long.branch_of == ""
    assert long.measure.branch_at_steps == (80, 160) == (short.branch_step, middle.branch_step)
    assert short.branch_of == middle.branch_of == long.run_id
    assert [one.run_id for one in (short, long, middle)] == [one.run_id for one in horizons(100, 400, 200)]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"optimizer.learning_rate": 0.5},
        {"data.batch_sequences": 8},
        {"schedule.warmup_tokens": 2048},
        {"schedule.cooldown_fraction": 0.3},
        {"model.depth": 3},
        {"measure.validation_tokens": 4096},
    ],
)
def test_runs_that_differ_in_more_than_their_budget_share_nothing(change: dict) -> None:
    one, two = share_trunks((BASE, overlay(BASE, change | {"tokens": 2 * BASE.tokens})))
    assert one.branch_of == two.branch_of == ""
    assert two.measure.branch_at_steps == ()


def test_runs_of_other_names_and_cadence_share_a_trunk() -> None:
    one, two = share_trunks((BASE, overlay(BASE, {"tokens": 2 * BASE.tokens, "name": "x", "measure.keep": 3})))
    assert one.branch_of == two.run_id


def test_a_run_that_cools_down_from_its_first_step_or_by_cosine_stays_alone() -> None:
    for schedule in (ScheduleConfig(), dataclasses.replace(WSD, warmup_tokens=0, cooldown_fraction=1.0)):
        made = share_trunks([dataclasses.replace(one, schedule=schedule) for one in horizons(100, 200)])
        assert [one.branch_of for one in made] == ["", ""]
        assert made[1].measure.branch_at_steps == ()


def test_shared_again_with_other_runs_it_is_shared_anew() -> None:
    once = share_trunks(horizons(100, 200))
    again = share_trunks((*once, *horizons(400)))
    assert [one.branch_of for one in again] == [again[2].run_id, again[2].run_id, ""]
    assert again[1].measure.branch_at_steps == ()


@pytest.mark.parametrize(("ratio", "count", "saved"), [(2.0, 10, 0.40), (math.sqrt(2), 20, 0.57)])
def test_a_plan_states_what_sharing_saves(tmp_path, ratio: float, count: int, saved: float) -> None:
    steps = [round(1_000_000 / ratio**i) for i in range(count)]
    plan = build_plan(Sweep("ladder", horizons(*steps), "horizons"), WALL_TIME, lambda config: StandInCorpus())
    totals = plan_to_dict(plan)["totals"]
    assert 1 - totals["flops_spent"] / totals["flops"] == pytest.approx(saved, abs=0.01)
    assert f"{saved:.0%}" in summarize_plan(plan, 2)
    longest = max(cell.known_columns["flops"] for cell in plan.cells)
    formula = 0.8 + 0.2 * ratio / (ratio - 1)
    assert totals["flops_spent"] / longest == pytest.approx(formula, rel=0.01)
    assert load_again(tmp_path, plan) == plan


def load_again(folder, plan):
    freeze_plan(folder, plan)
    return load_plan(folder)


def test_estimates_count_what_is_trained() -> None:
    plan = build_plan(Sweep("two", horizons(100, 200), ""), WALL_TIME, lambda config: StandInCorpus())
    alone = [WALL_TIME.estimate_seconds(dataclasses.replace(cell.config, branch_of="")) for cell in plan.cells]
    assert plan.cells[0].estimated_seconds < 0.5 * alone[0] + WALL_TIME.per_run
    assert plan.cells[1].estimated_seconds == pytest.approx(alone[1], abs=0.1)


def test_every_size_and_seed_has_a_trunk_of_its_own() -> None:
    cells = apply(BASE, product(axis("seed", 0, 1), axis("model.width", 64, 128), axis("tokens", 204_800, 409_600)))
    made = share_trunks(cells)
    assert len({one.run_id for one in made if not one.branch_of}) == 4
    assert sum(bool(one.branch_of) for one in made) == 4


def test_a_recipe_whose_batch_follows_the_budget_shares_nothing() -> None:
    made = share_trunks([recipes.small((16, 2), tokens) for tokens in (262_144, 2_097_152)])
    assert [one.branch_of for one in made] == ["", ""]
