"""The sweeps ready to run: as many cells as they say, at the price they say, varied in what they say.

Rewrite the golden file, after reading the difference, with: python tests/sweeps/catalog/test_catalog.py
"""

import dataclasses
import hashlib
import importlib
import itertools
import json
import re
from collections import defaultdict
from dataclasses import make_dataclass, replace
from pathlib import Path

import pytest

from scaling.accounting.counts import count_params, train_flops
from scaling.config.fields import later_field
from scaling.config.run_config import RunConfig
from scaling.record import run_folder
from scaling.training.train import train
from sweeps.catalog.fineweb import CORPUS, CORPUS_TOKENS, h200_hours, vocabulary_path
from sweeps.grids import Sweep
from sweeps.planning.plan import build_plan, find_sweep, sweep_names
from sweeps.trunks import share_trunks
from tests.conftest import ROOT, in_process
from tests.support.stand_in_sweep import WALL_TIME, StandInCorpus

GOLDEN = ROOT / "tests" / "golden" / "sweeps.json"
NAMES = ("data_constrained", "data_constrained_cpu", "isoflop_1gpu", "ladder_1gpu", "lr_transfer", "vocabulary")


@pytest.fixture(scope="module")
def sweeps() -> dict[str, Sweep]:
    return {name: find_sweep(name) for name in NAMES}


def golden(sweep: Sweep) -> dict:
    """As much as shows a changed sweep: how many cells, how many tokens, which runs, before a plan names the corpus."""
    ids = [cell.run_id for cell in sweep.cells]
    return {
        "cells": len(ids),
        "tokens": sum(cell.tokens for cell in sweep.cells),
        "runs": hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12],
    }


def flops(cell: RunConfig) -> float:
    return train_flops(cell.model, cell.data.sequence_length, cell.tokens, "exact_causal")


def count(cell: RunConfig) -> int:
    return count_params(cell.model).matmul


def test_golden(sweeps: dict[str, Sweep]) -> None:
    """Of every sweep of the catalog: its run_ids stay what they are, whatever fields a config gains."""
    every = {name: golden(sweeps.get(name) or find_sweep(name)) for name in sorted(sweep_names())}
    assert every == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("section", ["model", "data", "optimizer"])
def test_a_field_that_a_config_gains_changes_no_run_id(sweeps: dict[str, Sweep], section: str) -> None:
    old = type(getattr(RunConfig(), section))
    fields = later_field("silu"), dataclasses.field(default="silu")
    later, ordinary = (make_dataclass(old.__name__, [("gate", str, f)], bases=(old,), frozen=True) for f in fields)

    def run_id(config: RunConfig, kind: type, **values: str) -> str:
        return replace(config, **{section: kind(**vars(getattr(config, section)), **values)}).run_id

    cells = [cell for sweep in sweeps.values() for cell in sweep.cells]
    assert [run_id(cell, later) for cell in cells] == [cell.run_id for cell in cells]
    assert len({run_id(cells[0], later, gate=gate) for gate in ("silu", "gelu", "relu")}) == 3
    assert run_id(cells[0], ordinary) != cells[0].run_id, "an ordinary field is hashed at its default too"


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_of_it_is_whole_and_says_what_it_varies(sweeps: dict[str, Sweep], name: str) -> None:
    sweep = sweeps[name]
    plan = build_plan(sweep, WALL_TIME, lambda config: StandInCorpus(tokens=CORPUS_TOKENS))
    assert name in set(sweep_names())
    assert sweep.name == name
    assert len({cell.run_id for cell in plan.cells}) == len(plan.cells) == len(sweep.cells)
    assert all(cell.recipe and cell.learning_rate_from for cell in sweep.cells)
    assert sweep.description
    assert sweep.why


@pytest.mark.parametrize("name", ["data_constrained", "isoflop_1gpu", "ladder_1gpu", "vocabulary"])
def test_its_docstring_states_its_cost(sweeps: dict[str, Sweep], name: str) -> None:
    stated = re.search(
        r"\b([\d.]+) H200-hours\b", importlib.import_module(f"sweeps.catalog.{name}").__doc__ or "", re.I
    )
    assert stated
    assert h200_hours(sweeps[name].cells) == pytest.approx(float(stated[1]), rel=0.02)


def test_the_ladder_spans_and_shares(sweeps: dict[str, Sweep]) -> None:
    cells = sweeps["ladder_1gpu"].cells
    counts = sorted({count(cell) for cell in cells})
    assert counts[0] < 1.2e7
    assert counts[-1] > 5e8
    assert max(cell.tokens for cell in cells) <= CORPUS_TOKENS
    ratios = {round(cell.tokens / count(cell)) for cell in cells}
    assert {5, 10, 20, 40, 80, 160} <= ratios
    first = [cell for cell in share_trunks(cells) if cell.seed == 0]
    assert sum(not cell.branch_of for cell in first) == len(counts)
    alone = sum(flops(cell) for cell in cells)
    spent = sum(
        run_folder.result_row(c, tokens=c.tokens, unique_tokens=None)["flops_spent"] for c in share_trunks(cells)
    )
    assert spent < 0.7 * alone
    places = defaultdict(set)
    for cell in cells:
        places[count(cell), round(cell.tokens / count(cell))].add(cell.seed)
    assert sum(len(seeds) == 3 for seeds in places.values()) >= 4


def test_isoflop_covers_two_decades_at_seven_sizes(sweeps: dict[str, Sweep]) -> None:
    cells = sweeps["isoflop_1gpu"].cells
    curves = [cells[i : i + 7] for i in range(0, len(cells), 7)]
    assert [flops(curve[3]) for curve in curves] == pytest.approx([1e17, 10**17.5, 1e18, 10**18.5, 1e19], rel=0.01)
    for curve in curves:
        assert [flops(cell) for cell in curve] == pytest.approx([flops(curve[3])] * 7, rel=0.01)
        assert 12 < count(curve[-1]) / count(curve[0]) < 20


def test_transfer_varies_shape_rate_and_parametrisation_alone(sweeps: dict[str, Sweep]) -> None:
    cells = sweeps["lr_transfer"].cells
    kinds = defaultdict(set)
    for cell in cells:
        kinds[cell.model.parametrization].add((cell.model.width, cell.model.depth))
    for wider in ("standard", "mup"):
        assert {(64, 2), (128, 2), (256, 2), (256, 8)} <= kinds[wider]
    for deeper in ("standard", "completep"):
        assert {(32, 4), (32, 8), (256, 8)} <= kinds[deeper]
    assert (32, 2) in kinds["standard"]
    rates = sorted({cell.optimizer.learning_rate for cell in cells})
    assert len(cells) == sum(map(len, kinds.values())) * len(rates)
    assert rates[-1] / rates[0] == 64
    assert len({(cell.data, cell.schedule, cell.measure, cell.tokens, cell.seed) for cell in cells}) == 1
    (told,) = {cell.learning_rate_from for cell in cells}
    assert re.match(r"scan: .*\blr_transfer\b", told)


@pytest.mark.parametrize("name", ["data_constrained", "data_constrained_cpu"])
def test_repeats_double_on_the_same_tokens_and_share_a_trunk(sweeps: dict[str, Sweep], name: str) -> None:
    cells = sweeps[name].cells
    by_place = defaultdict(list)
    for cell in cells:
        by_place[cell.model.width, cell.data.unique_tokens].append(cell)
    assert len(by_place) >= 6
    for (_, unique), runs in by_place.items():
        epochs = [run.tokens / unique for run in runs]
        assert all(b / a == pytest.approx(2, rel=0.02) for a, b in itertools.pairwise(epochs))
    assert sum(not cell.branch_of for cell in share_trunks(cells)) == len(by_place)
    plan = build_plan(sweeps[name], WALL_TIME, lambda config: StandInCorpus(tokens=10**12))
    for cell in plan.cells:
        data = cell.config.data
        assert cell.known_columns["unique_tokens"] == min(
            data.unique_tokens // data.sequence_length * data.sequence_length, cell.config.tokens
        )


def test_vocabularies_meet_at_equal_compute(sweeps: dict[str, Sweep]) -> None:
    by_shape = defaultdict(list)
    for cell in sweeps["vocabulary"].cells:
        by_shape[cell.model.width, cell.model.depth].append(cell)
        assert cell.data.vocabulary == vocabulary_path(cell.model.vocab_size)
    for runs in by_shape.values():
        assert len({run.model.vocab_size for run in runs}) == len(runs) == 4
        assert [flops(run) for run in runs] == pytest.approx([flops(runs[0])] * 4, rel=0.01)
        assert [run.tokens for run in runs] == sorted((run.tokens for run in runs), reverse=True)


def test_a_web_corpus_that_is_not_prepared_is_one_line_with_the_command(tmp_path: Path) -> None:
    done = in_process("sweep", "plan", "ladder_1gpu", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert vocabulary_path(32_000) in done.stderr
    assert "scaling data vocabulary" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert CORPUS in (importlib.import_module("sweeps.catalog.fineweb").__doc__ or "")
    assert vocabulary_path(32_000) in (importlib.import_module("sweeps.catalog.fineweb").__doc__ or "")


def test_a_model_memorizes_few_tokens_that_it_repeats_often(tiny: RunConfig, tmp_path: Path) -> None:
    """64 epochs of four windows: the loss on them falls far below that of text not seen, and the row says four."""
    T = tiny.data.sequence_length
    few = replace(tiny, data=replace(tiny.data, unique_tokens=4 * T + 5))
    assert few.run_id != tiny.run_id
    assert train(few, tmp_path, quiet=True) == "done"
    result = run_folder.read_result(tmp_path)
    assert result is not None
    assert result["row"]["tokens"] == 64 * 4 * T
    assert result["row"]["unique_tokens"] == 4 * T
    assert run_folder.read_metrics(tmp_path)[-1]["loss"] < result["row"]["loss"] - 0.5


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: golden(find_sweep(name)) for name in sorted(sweep_names())}, indent=1) + "\n")
