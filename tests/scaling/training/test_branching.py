from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling.config.run_config import OptimizerConfig, RunConfig, ScheduleConfig, load_config
from scaling.errors import InputError
from scaling.model.sharding import make_mesh
from scaling.record import run_folder
from scaling.training import branching
from scaling.training.checkpoints import Checkpoints
from scaling.training.train import train
from scaling.training.train_step import build_program

SPENT = {"seconds", "tokens_per_second", "branch_of", "flops_spent"}


@pytest.fixture(scope="module")
def alone(tiny: RunConfig) -> dict[int, RunConfig]:
    """The same run at three budgets, in steps."""
    wsd = ScheduleConfig(kind="wsd", warmup_tokens=1024, cooldown_fraction=0.25)
    base = dataclasses.replace(tiny, schedule=wsd)
    return {steps: dataclasses.replace(base, tokens=steps * base.data.batch_tokens) for steps in (12, 20, 32)}


@pytest.fixture(scope="module")
def trunk(alone: dict[int, RunConfig]) -> RunConfig:
    """The longest run, which saves its state where the others branch off: after 9 and 15 steps."""
    measure = dataclasses.replace(alone[32].measure, branch_at_steps=(alone[12].branch_step, alone[20].branch_step))
    return dataclasses.replace(alone[32], measure=measure)


@pytest.fixture(scope="module")
def trained(trunk: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders with that of the trained trunk."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(trunk, folder / trunk.run_id, quiet=True) == "done"
    return folder


def branch_of(trunk: RunConfig, config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, branch_of=trunk.run_id)


def end(config: RunConfig, folder: Path) -> tuple[Any, list[Any], dict[str, Any], dict[str, Any]]:
    """State, logged lines, row and measurements of a finished run, without the columns that say what it cost."""
    program = build_program(config, make_mesh(config.mesh))
    with Checkpoints(folder / run_folder.CHECKPOINTS, 1) as save:
        state = jax.tree.map(np.asarray, save.restore(config.steps, program.abstract_state))
    lines = [
        {name: line[name] for name in ("step", "tokens", "loss", "grad_norm", "learning_rate")}
        for line in run_folder.read_metrics(folder)
    ]
    result = run_folder.read_result(folder)
    assert result is not None
    row = {name: value for name, value in result["row"].items() if name not in SPENT}
    return state, lines, row, result["measurements"]


@pytest.mark.parametrize("steps", [12, 20])
def test_a_branch_ends_as_if_it_had_trained_alone_bit_for_bit(
    alone: dict[int, RunConfig], trunk: RunConfig, trained: Path, tmp_path: Path, steps: int
) -> None:
    config = branch_of(trunk, alone[steps])
    assert config.run_id == alone[steps].run_id
    assert train(config, trained / config.run_id, quiet=True) == "done"
    assert train(alone[steps], tmp_path / "alone", quiet=True) == "done"
    ours, theirs = end(config, trained / config.run_id), end(alone[steps], tmp_path / "alone")
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])
    assert ours[1:] == theirs[1:]
    assert [line["step"] for line in ours[1]] == list(range(1, steps + 1))


def test_what_a_branch_spends_is_its_cooldown(alone: dict[int, RunConfig], trunk: RunConfig) -> None:
    row = run_folder.result_row(branch_of(trunk, alone[20]), tokens=alone[20].tokens, unique_tokens=None)
    assert row["branch_of"] == trunk.run_id
    assert row["flops_spent"] == pytest.approx(row["flops"] * 5 / 20)
    whole = run_folder.result_row(alone[20], tokens=alone[20].tokens, unique_tokens=None)
    assert whole["flops_spent"] == whole["flops"] == row["flops"]


def test_a_branch_state_stays_when_the_trunk_deletes_its_own_checkpoints(trunk: RunConfig, trained: Path) -> None:
    kept = sorted(int(path.name) for path in (trained / trunk.run_id / run_folder.BRANCHES).iterdir())
    assert kept == [9, 15]
    assert [path.name for path in (trained / trunk.run_id / run_folder.CHECKPOINTS).iterdir() if path.is_dir()] == [
        "32"
    ]


def test_reading_a_trunk_does_not_delete_its_unfinished_checkpoints(
    alone: dict[int, RunConfig], trunk: RunConfig, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / trunk.run_id, tmp_path / trunk.run_id)
    unfinished = tmp_path / trunk.run_id / run_folder.BRANCHES / "20.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    config = branch_of(trunk, alone[12])
    folder = tmp_path / config.run_id
    folder.mkdir()
    branching.restore_branch_state(folder, config, build_program(config, make_mesh(config.mesh)).abstract_state)
    assert unfinished.is_dir()


def test_a_branch_whose_trunk_state_is_damaged_trains_alone(
    alone: dict[int, RunConfig], trunk: RunConfig, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = shutil.copytree(trained / trunk.run_id, tmp_path / trunk.run_id) / run_folder.BRANCHES
    (states / "9" / "default" / "manifest.ocdbt").unlink()
    config = branch_of(trunk, alone[12])
    folder = tmp_path / config.run_id
    assert train(config, folder, quiet=True) == "done"
    assert f"{states / '9'}:" in (named := capsys.readouterr().err)
    assert "manifest.ocdbt" in named
    assert "9.damaged" in named
    assert sorted(path.name for path in states.iterdir()) == ["15", "9.damaged"]
    assert load_config(folder / run_folder.CONFIG) == alone[12]
    assert train(alone[12], tmp_path / "alone", quiet=True) == "done"
    rows = []
    for name in (config.run_id, "alone"):
        result = run_folder.read_result(tmp_path / name)
        assert result is not None
        rows.append({name: value for name, value in result["row"].items() if name not in SPENT - {"flops_spent"}})
    assert rows[0] == rows[1], "flops_spent too: it trained every step"
    (folder / run_folder.RESULT).unlink()
    assert train(config, folder, quiet=True) == "done"
    result = run_folder.read_result(folder)
    assert result is not None
    assert result["row"]["flops_spent"] == result["row"]["flops"], (
        "what it spent stays when it goes on by the same command"
    )
    assert train(config, tmp_path / "again", quiet=True) == "done", "after the state was set aside"


def test_a_branch_of_a_trunk_that_diverged_before_it_left_diverged_too(
    alone: dict[int, RunConfig], trunk: RunConfig, tmp_path: Path
) -> None:
    wild = OptimizerConfig(learning_rate=1e30)
    trunk, short = (dataclasses.replace(config, optimizer=wild) for config in (trunk, alone[20]))
    assert train(trunk, tmp_path / trunk.run_id, quiet=True) == "diverged"
    config = branch_of(trunk, short)
    assert train(config, tmp_path / config.run_id, quiet=True) == "diverged"
    assert train(short, tmp_path / "alone", quiet=True) == "diverged"
    ours, theirs = (run_folder.read_result(tmp_path / name) for name in (config.run_id, "alone"))
    assert ours is not None
    assert theirs is not None
    assert trunk.run_id in ours["reason"]
    assert theirs["reason"] in ours["reason"]
    assert ours["row"]["tokens"] == theirs["row"]["tokens"]
    assert ours["row"].keys() == theirs["row"].keys()


def test_a_trunk_that_diverged_after_the_branch_step_does_not_end_the_branch(
    alone: dict[int, RunConfig], trunk: RunConfig, tmp_path: Path
) -> None:
    """The trunk saved no state to start from; but the branch alone would not have diverged by then."""
    config, run = branch_of(trunk, alone[20]), tmp_path / trunk.run_id
    for steps, diverged in ((15, True), (16, False)):
        row = {"tokens": steps * trunk.data.batch_tokens, "unique_tokens": 1}
        run_folder.write_result(run, status="diverged", row=row, measurements={}, reason="nan")
        assert branching.trunk_diverged_before(tmp_path / config.run_id, config) is diverged


def test_a_missing_or_different_trunk_is_refused_by_name(
    alone: dict[int, RunConfig], trunk: RunConfig, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"branch_of.*'gone'"):
        train(dataclasses.replace(alone[12], branch_of="gone"), tmp_path / "a", quiet=True)
    other = dataclasses.replace(branch_of(trunk, alone[12]), seed=1)
    with pytest.raises(InputError, match=f"branch_of.*{trunk.run_id}"):
        train(other, trained / "b", quiet=True)
    unkept = dataclasses.replace(branch_of(trunk, alone[12]), tokens=16 * alone[12].data.batch_tokens)
    with pytest.raises(InputError, match=r"\b12\b.*measure\.branch_at_steps"):
        train(unkept, trained / "c", quiet=True)
    assert not any((folder / run_folder.METRICS).exists() for folder in (tmp_path / "a", trained / "b", trained / "c"))
    with pytest.raises(InputError, match=r"RunConfig\.branch_of.*'x'.*\bwsd\b"):
        dataclasses.replace(alone[12], branch_of="x", schedule=ScheduleConfig())
