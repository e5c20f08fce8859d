"""A plan is found by name, costs what its cells cost, and stays frozen."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest

from scaling.accounting import counts
from scaling.accounting.chips import parse_topology
from scaling.config.run_config import from_dict
from scaling.errors import InputError
from scaling.performance import compile_ahead
from scaling.record.run_folder import PLAN, write_config
from sweeps.commands import plan as plan_verb
from sweeps.grids import overlay
from sweeps.local.processes import Slot
from sweeps.planning import wall_time
from sweeps.planning.plan import (
    build_plan,
    find_sweep,
    freeze_plan,
    load_plan,
    makespan,
    plan_table,
    plan_to_dict,
    summarize_plan,
)
from sweeps.planning.wall_time import TpuCost, WallTimeModel, estimate_tpu_cost, wall_time_model
from tests.support.stand_in_sweep import WALL_TIME, StandInCorpus, stand_in_plan, stand_in_sweep


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stdlib_cp", r"\bstdlib_cp\b.*\bstdlib_cpu\b"),
        ("plan", r"\bplan\b.*\bsmoke\b.*\bstdlib_cpu\b"),
        ("executors", r"\bexecutors\b.*\bsmoke\b"),
        ("no/such", r"no/such\b.*\bsmoke\b"),
    ],
)
def test_unknown_sweep_names_the_nearest(name, says):
    with pytest.raises(InputError, match=says):
        find_sweep(name)


def test_plan_on_disk_says_what_it_will_cost(tmp_path):
    made = stand_in_plan(tmp_path / "s", "", "", "")
    held = json.loads((tmp_path / "s" / PLAN).read_text())
    assert held == plan_to_dict(made)
    for cell in held["cells"]:
        config = from_dict(cell["config"])
        assert config.run_id == cell["run_id"]
        assert config.sweep == "stand_in"
        assert config.data.fingerprint == "f00d"
        T = config.data.sequence_length
        assert cell["flops"] == counts.train_flops(config.model, T, config.tokens, "exact_causal")
        assert cell["flops_6nd"] == 6 * cell["params_matmul"] * cell["tokens"]
        assert cell["estimated_seconds"] > WALL_TIME.per_run
    for key in ("tokens", "flops", "flops_6nd", "estimated_seconds"):
        assert held["totals"][key] == sum(cell[key] for cell in held["cells"])
    assert held["totals"]["cells"] == 3
    assert load_plan(tmp_path / "s") == made


def test_repeated_text_is_counted_as_such():
    cells = build_plan(find_sweep("smoke"), WALL_TIME, lambda config: StandInCorpus(tokens=5_000)).cells
    assert [cell.unique_tokens for cell in cells[:3]] == [2_048, 4_096, 5_000]


def test_the_same_cells_again_change_nothing(tmp_path):
    made = stand_in_plan(tmp_path, "", "")
    before = (tmp_path / PLAN).read_bytes()
    slower = build_plan(
        stand_in_sweep("", ""), dataclasses.replace(WALL_TIME, per_run=99.0), lambda config: StandInCorpus()
    )
    assert freeze_plan(tmp_path, slower) == made
    assert (tmp_path / PLAN).read_bytes() == before


def test_what_changes_no_result_may_change(tmp_path):
    stand_in_plan(tmp_path, "", "")
    renamed = stand_in_plan(tmp_path, "crash", "")
    assert load_plan(tmp_path) == renamed
    assert renamed.cells[0].name == "c0:crash"


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (lambda cells: cells[:1], r"\b1\b.*\bc1\b.*\b0\b"),
        (lambda cells: cells[::-1], PLAN),
        (
            lambda cells: (cells[0], dataclasses.replace(cells[1], tokens=4_096)),
            r"\b1\b.*\bc1\b.*\btokens\b.*\b2048\b.*\b4096\b",
        ),
    ],
)
def test_another_plan_in_the_folder_is_refused(tmp_path, cells, says):
    stand_in_plan(tmp_path, "", "")
    before = (tmp_path / PLAN).read_bytes()
    sweep = stand_in_sweep("", "")
    other = build_plan(dataclasses.replace(sweep, cells=cells(sweep.cells)), WALL_TIME, lambda config: StandInCorpus())
    with pytest.raises(InputError, match=says) as caught:
        freeze_plan(tmp_path, other)
    assert "--out" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / PLAN).read_bytes() == before


def test_another_corpus_is_another_plan(tmp_path):
    stand_in_plan(tmp_path, "")
    with pytest.raises(InputError, match=r"\bdata\.fingerprint\b.*\bf00d\b.*\bbeef\b"):
        freeze_plan(tmp_path, build_plan(stand_in_sweep(""), WALL_TIME, lambda config: StandInCorpus("beef")))


def test_equal_cells_are_refused():
    sweep = stand_in_sweep("")
    twin = dataclasses.replace(sweep.cells[0], name="twin")
    with pytest.raises(InputError, match=r"\bc0\b.*\btwin\b"):
        build_plan(dataclasses.replace(sweep, cells=(*sweep.cells, twin)), WALL_TIME, lambda config: StandInCorpus())


def test_corpus_that_is_not_prepared_is_bad_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"scaling data prepare.*{find_sweep('smoke').cells[0].data.corpus}"):
        plan_verb.plan("smoke")
    assert not (tmp_path / "out/smoke").exists()


def test_the_verb_prints_every_cell_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        plan_verb, "build_plan", lambda sweep, pace: build_plan(sweep, pace, lambda config: StandInCorpus())
    )
    made = plan_verb.plan("smoke", tmp_path, tmp_path / "facts.json")
    printed = capsys.readouterr().out
    for cell in made.cells:
        assert cell.run_id in printed
        assert cell.name in printed
        assert f"{cell.known_columns['flops']:.2e}" in printed
    assert made.created_with["time"] in printed
    assert json.loads((tmp_path / "facts.json").read_text()) == json.loads((tmp_path / "smoke" / PLAN).read_text())


@pytest.mark.parametrize(("name", "runs"), [("stdlib_cpu", 42), ("stdlib_rates", 30)])
def test_table_and_summary_fit_80_columns(capsys, name, runs):
    made = build_plan(find_sweep(name), WALL_TIME, lambda config: StandInCorpus())
    from rich.console import Console

    console = Console(width=80)
    console.print(plan_table(made))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert f"{max(cell.config.tokens for cell in made.cells):,}" in printed
    assert re.match(rf"{runs}\b", summarize_plan(made, 2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "scaling sweep plan"),
        ('{"schema": 1, "cells"', ""),
        ('{"schema": 7}', r"\bschema\b.*\b7\b"),
        ("{}", "schema"),
    ],
)
def test_absent_or_torn_plan_is_bad_input(tmp_path, text, says):
    if text is not None:
        (tmp_path / PLAN).write_text(text)
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / PLAN))}.*{says}"):
        load_plan(tmp_path)


def edit_cell(folder, **values):
    """Edits dotted fields of the first cell of a plan."""
    content = json.loads((folder / PLAN).read_text())
    for path, value in values.items():
        section = content["cells"][0]
        *parents, leaf = path.split(".")
        for name in parents:
            section = section[name]
        if value is None:
            del section[leaf]
        else:
            section[leaf] = value
    (folder / PLAN).write_text(json.dumps(content))


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"config.optimizer.learning_rate": 0.5}, r"\blearning_rate\b.*not 0\.5\b"),
        ({"config.seed": 9}, r"\bseed\b.*\b0, not 9\b"),
        ({"run_id": "0123456789ab"}, r"0123456789ab"),
        ({"params_matmul": 7}, r"\bparams_matmul = 7\b.*\bc0\b.*\d{4}"),
    ],
)
def test_an_edited_cell_is_refused_with_the_field(tmp_path, values, says, has_begun):
    made = stand_in_plan(tmp_path, "", "")
    if has_begun:
        write_config(tmp_path / "runs" / made.cells[0].run_id, made.cells[0].config)
    edit_cell(tmp_path, **values)
    before = (tmp_path / PLAN).read_bytes()
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path / PLAN))}.*{says}"):
        load_plan(tmp_path)
    with pytest.raises(InputError, match=says):
        stand_in_plan(tmp_path, "", "")
    assert (tmp_path / PLAN).read_bytes() == before


def test_a_field_without_a_column_is_named_by_the_run_or_by_the_catalog(tmp_path):
    made = stand_in_plan(tmp_path / "a", "")
    write_config(tmp_path / "a" / "runs" / made.cells[0].run_id, made.cells[0].config)
    freeze_plan(tmp_path / "b", build_plan(find_sweep("smoke"), WALL_TIME, lambda config: StandInCorpus()))
    for name in ("a", "b"):
        edit_cell(tmp_path / name, **{"config.optimizer.beta2": 0.5})
        with pytest.raises(InputError, match=r"\boptimizer\.beta2\b.*\b0\.95, not 0\.5\b"):
            load_plan(tmp_path / name)


def test_a_plan_whose_ids_this_version_hashes_in_another_way_is_refused(tmp_path):
    """As after a field was added that is hashed at its default: its runs would all be trained again."""
    stand_in_plan(tmp_path, "", "")
    edit_cell(tmp_path, **{"run_id": "0123456789ab", "config.model.qk_norm": None})
    with pytest.raises(InputError, match=r"0123456789ab.*\b1 of 2\b.*model\.qk_norm.*later_field"):
        load_plan(tmp_path)


def test_makespan_takes_the_longest_first():
    assert makespan([1, 2, 3, 4], 1) == 10
    assert makespan([1, 2, 3, 4], 2) == 5
    assert makespan([1, 1, 7], 2) == 7


def test_time_grows_with_every_term():
    config = find_sweep("smoke").cells[0]
    base = WallTimeModel(10.0, 0.1, 1e-3, 1e8, "")
    tokens = config.steps * config.data.batch_tokens + config.measure.validation_tokens / 3
    flops = counts.train_flops(config.model, config.data.sequence_length, round(tokens), "exact")
    assert base.estimate_seconds(config) == pytest.approx(10 + 0.1 * config.steps + 1e-3 * tokens + flops / 1e8)


def test_the_tpu_cost_compiles_each_shape_once_and_sums_the_runs():
    asked = []

    def cost(config, target):
        asked.append(config.model)
        return SimpleNamespace(overlapped_seconds=2.0 * config.model.width, sequential_seconds=3.0 * config.model.width)

    cells = find_sweep("smoke").cells
    costs = estimate_tpu_cost(cells, parse_topology("v5e:2x2"), cost)
    assert len(asked) == len(set(asked)) == 2
    hours = sum(config.steps * 2.0 * config.model.width * 4 / 3600 for config in cells)
    assert costs == TpuCost("v5e:2x2", 4, 2, pytest.approx(hours), pytest.approx(hours * 1.5))
    printed = re.escape(f"{costs.overlapped:,.2f}"), re.escape(f"{costs.in_turn:,.2f}")
    assert re.search(rf"v5e:2x2\b.*\b{printed[0]}\b.*\b{printed[1]}\b.*\b2\b", str(costs))


def test_the_tpu_cost_counts_own_steps_of_a_branch_and_each_optimizer_apart():
    wsd = {"schedule.kind": "wsd", "schedule.cooldown_fraction": 0.25, "schedule.warmup_tokens": 0}
    trunk = overlay(find_sweep("smoke").cells[3], wsd)
    alone = overlay(trunk, {"tokens": trunk.tokens // 2})
    branch = dataclasses.replace(alone, branch_of=trunk.run_id)
    muon = overlay(trunk, {"optimizer.kind": "muon"})
    target = parse_topology("v5e:4x4")

    def cost(config, target):
        return SimpleNamespace(overlapped_seconds=1.0, sequential_seconds=2.0)

    costs = [estimate_tpu_cost([config], target, cost).overlapped for config in (trunk, alone, branch)]
    assert costs[1] == pytest.approx(costs[0] / 2)
    assert costs[2] == pytest.approx(costs[1] / 4)
    assert estimate_tpu_cost([trunk, muon], target, cost).programs == 2


def test_the_plan_verb_prints_the_cost_on_a_topology(tmp_path, monkeypatch, capsys):
    made = stand_in_plan(tmp_path / "stand_in", "", "")
    monkeypatch.setattr(plan_verb, "build_plan", lambda *arguments: made)
    monkeypatch.setattr(plan_verb, "find_sweep", lambda name: None)
    monkeypatch.setattr(plan_verb, "wall_time_model", lambda slot: WALL_TIME)
    monkeypatch.setattr(
        compile_ahead,
        "estimate_step",
        lambda config, target: SimpleNamespace(overlapped_seconds=1.0, sequential_seconds=2.0),
    )
    plan_verb.plan("stand_in", out=tmp_path, topology="v5e:4x4", json=tmp_path / "facts.json")
    assert "v5e:4x4" in capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())
    steps = sum(cell.config.steps for cell in made.cells)
    assert facts["price"]["overlapped"] == pytest.approx(steps * 16 / 3600)
    assert "price" not in json.loads((tmp_path / "stand_in" / PLAN).read_text())
    with pytest.raises(InputError, match=r"\bv5e:3x3\b"):
        plan_verb.plan("stand_in", out=tmp_path, topology="v5e:3x3")


def test_cpu_rate_is_measured_and_gpu_rate_is_not(monkeypatch):
    measured = wall_time_model(Slot(cores=(0,)))
    assert 1e8 < measured.flops_per_second < 1e13
    monkeypatch.setattr(wall_time, "measure_core_flops", lambda: 7e9)
    assert wall_time_model(Slot(cores=(0,))).flops_per_second == pytest.approx(wall_time.SUSTAINED_FRACTION * 7e9)
    assert re.search(r"\b7\b", wall_time_model(Slot(cores=(0,))).source)
    monkeypatch.setattr(wall_time, "measure_core_flops", lambda: pytest.fail("it was measured"))
    assert wall_time_model(Slot(gpu="0")).source
