"""Members of a population are the runs that they would be alone, whatever happens to the others."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import files
from scaling.accounting.counts import count_params
from scaling.commands.population import population
from scaling.config.run_config import ModelConfig, OptimizerConfig, PrecisionConfig, RunConfig, ScheduleConfig, to_dict
from scaling.errors import InputError
from scaling.model.sharding import make_mesh
from scaling.record import run_folder
from scaling.training.memory import estimate_bytes
from scaling.training.monitor import Stopped
from scaling.training.population import train_population
from scaling.training.population_limits import MEMORY_FRACTION, STATE_BYTES_PER_PARAM, members_that_fit, program_key
from scaling.training.population_step import batched_step, member_kernel
from scaling.training.schedule import Rates
from scaling.training.train import train
from scaling.training.train_step import build_program
from tests.scaling.training.test_train import facts, final_state


def members(tiny: RunConfig) -> list[RunConfig]:
    """Five runs that share nothing but their shape; two of them diverge, one of these in its last step."""
    batch_tokens = tiny.data.batch_tokens

    def member(name: str, steps: int, rate: OptimizerConfig = tiny.optimizer, **changes: Any) -> RunConfig:
        return dataclasses.replace(tiny, name=name, tokens=steps * batch_tokens, optimizer=rate, **changes)

    order = dataclasses.replace(tiny.data, order=7)
    return [
        member("plain", 20),
        member("seed and schedule", 12, seed=1, schedule=ScheduleConfig(kind="wsd", warmup_tokens=0)),
        member("diverges", 30, OptimizerConfig(learning_rate=1e30)),
        member("rate, decay and order", 12, OptimizerConfig(learning_rate=2e-3, weight_decay=0.0), data=order),
        member(
            "diverges in its last step",
            1,
            OptimizerConfig(learning_rate=1e38, weight_decay=1e9),
            schedule=ScheduleConfig(),
        ),
    ]


def write_folders(configs: list[RunConfig], folder: Path) -> list[Path]:
    for config in configs:
        files.write_json(folder / config.run_id / run_folder.CONFIG, to_dict(config))
    return [folder / config.run_id for config in configs]


@pytest.fixture(scope="module")
def alone(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = write_folders(members(tiny), tmp_path_factory.mktemp("alone"))
    for config, folder in zip(members(tiny), folders, strict=True):
        train(config, folder, quiet=True)
    return folders


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in run_folder.read_metrics(folder)]


def test_each_member_is_its_solo_run_bit_for_bit(tiny: RunConfig, alone: list[Path], tmp_path: Path) -> None:
    folders = write_folders(members(tiny), tmp_path)
    outcomes = train_population(folders, quiet=True)
    assert list(outcomes.values()) == ["done", "done", "diverged", "done", "diverged"]
    for config, folder, solo in zip(members(tiny), folders, alone, strict=True):
        assert facts(folder) == facts(solo), config.name
        assert losses(folder) == losses(solo), config.name
        if outcomes[folder] == "done":
            for a, b in zip(*(jax.tree.leaves(final_state(config, path)) for path in (folder, solo)), strict=True):
                np.testing.assert_array_equal(a, b)
    assert files.read_json(folders[3] / run_folder.ENVIRONMENT)["population"] == {"members": 5, "lane": 3}


def test_vmapped_survivors_are_their_solo_runs(
    tiny: RunConfig, alone: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on accelerators, vmapped, with XLA's attention; half diverge, and the others are stepped without them."""
    monkeypatch.setattr("scaling.training.population_step.sequential_on_device", lambda mesh: False)
    chosen = [members(tiny)[i] for i in (1, 2, 4, 3)]
    folders = write_folders(chosen, tmp_path)
    assert list(train_population(folders, quiet=True).values()) == ["done", "diverged", "diverged", "done"]
    assert files.read_json(folders[0] / run_folder.ENVIRONMENT)["attention_kernel"] == "xla"
    for folder, solo in ((folders[0], alone[1]), (folders[3], alone[3])):
        assert [line[0] for line in losses(folder)] == [line[0] for line in losses(solo)]
        np.testing.assert_allclose([v[1] for v in losses(folder)], [v[1] for v in losses(solo)], rtol=0, atol=1e-5)
        assert facts(folder)[0]["loss"] == pytest.approx(facts(solo)[0]["loss"], abs=1e-5)
    for folder, solo in ((folders[1], alone[2]), (folders[2], alone[4])):
        assert facts(folder)[0] == facts(solo)[0]


def stop_after(polls: int) -> Any:
    """Stands in for `stop_signals`: the signal arrives after so many polls, one of which is made a step."""

    @contextlib.contextmanager
    def signals() -> Iterator[Any]:
        left = iter(range(polls, -1, -1))
        yield lambda: next(left) == 0

    return signals


def test_runs_resume_alone_and_together_in_any_order(
    tiny: RunConfig, alone: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a alone to step 5; a and b together to steps 9 and 4; then a alone, and b and c together, to the end."""
    configs = [members(tiny)[i] for i in (0, 1, 3)]
    a, b, c = write_folders(configs, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("scaling.training.train.stop_signals", stop_after(4))
        with pytest.raises(Stopped):
            train(configs[0], a, quiet=True)
        patch.setattr("scaling.training.population.stop_signals", stop_after(3))
        with pytest.raises(Stopped, match=r"\b2\b"):
            train_population([a, b], quiet=True)
    steps = [[int(path.name) for path in (folder / run_folder.CHECKPOINTS).iterdir()] for folder in (a, b)]
    assert steps == [[9], [4]]
    assert not any((folder / run_folder.RESULT).exists() for folder in (a, b))
    assert train(configs[0], a, quiet=True) == "done"
    assert list(train_population([a, b, c], quiet=True).values()) == ["done"] * 3
    for folder, solo in ((a, alone[0]), (b, alone[1]), (c, alone[3])):
        assert facts(folder) == facts(solo)
        assert losses(folder) == losses(solo)


def test_a_branch_and_its_trunk_may_each_be_a_member(tiny: RunConfig, tmp_path: Path) -> None:
    wsd = dataclasses.replace(tiny, schedule=ScheduleConfig(kind="wsd", cooldown_fraction=0.5))
    long, short = (dataclasses.replace(wsd, tokens=steps * tiny.data.batch_tokens) for steps in (12, 8))
    trunk = dataclasses.replace(long, measure=dataclasses.replace(tiny.measure, branch_at_steps=(4,)))
    branch = dataclasses.replace(short, branch_of=trunk.run_id)
    others = [dataclasses.replace(wsd, seed=seed, tokens=tiny.data.batch_tokens) for seed in (5, 6)]
    folders = write_folders([trunk, branch, *others], tmp_path / "together")
    early = train_population([folders[1], folders[0], folders[2]], quiet=True)
    assert re.search(r"\b4\b.*measure\.branch_at_steps", str(early.pop(folders[1])))
    assert list(early.values()) == ["done", "done"]
    assert list(train_population([folders[1], folders[3]], quiet=True).values()) == ["done", "done"]
    (solo,) = write_folders([short], tmp_path / "alone")
    train(short, solo, quiet=True)
    assert losses(folders[1]) == losses(solo)
    assert facts(folders[1])[0]["loss"] == facts(solo)[0]["loss"]


def test_a_member_that_cannot_be_trained_is_reported_and_the_others_go_on(
    tiny: RunConfig, alone: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, held = tmp_path / "torn", tmp_path / "held"
    files.write_json(held / run_folder.CONFIG, to_dict(tiny))
    torn.mkdir()
    (torn / run_folder.CONFIG).write_text("{")
    with run_folder.locked_run_folder(held, tiny, "none"):
        assert population((alone[0], tmp_path / "absent", torn, held), quiet=True) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{alone[0]}: done"]
    for folder, line in zip((tmp_path / "absent", torn, held), err.splitlines(), strict=True):
        assert line.startswith(f"error: {folder}: ")
        assert not (folder / run_folder.METRICS).exists()
    with pytest.raises(InputError):
        population(())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ModelConfig(width=32, depth=3, heads=2)}, r"model\.depth.*\b2\b.*\b3\b"),
        ({"precision": PrecisionConfig("bfloat16")}, r"precision\.compute.*'float32'.*'bfloat16'"),
        ({"optimizer": OptimizerConfig(beta2=0.99)}, r"optimizer\.beta2.*\b0\.95\b.*\b0\.99\b"),
        ({"model": ModelConfig(width=32, depth=2, heads=2, attention="cudnn")}, r"model\.attention.*'cudnn'"),
    ],
)
def test_runs_of_different_programs_are_refused_before_anything_is_spent(
    tiny: RunConfig, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    other = dataclasses.replace(tiny, **changes)
    folders = write_folders([tiny, other], tmp_path)
    with pytest.raises(InputError, match=words):
        train_population(folders, quiet=True)
    assert [path.name for folder in folders for path in folder.iterdir()] == [run_folder.CONFIG] * 2
    assert program_key(tiny) != program_key(other)


def test_fields_in_which_members_may_differ_do_not_change_the_program_key(tiny: RunConfig) -> None:
    keys = {program_key(config) for config in members(tiny)}
    assert len(keys) == 1
    resolved = dataclasses.replace(tiny.model, kv_heads=tiny.model.heads, ff_width=tiny.model.num_ff)
    assert program_key(dataclasses.replace(tiny, model=resolved, sweep="s", recipe="r", overrides=("x",))) in keys


def test_members_share_activations_only_where_they_are_stepped_one_after_the_other(tiny: RunConfig) -> None:
    one, state = estimate_bytes(tiny, (1, 1, 1)), STATE_BYTES_PER_PARAM * count_params(tiny.model).total
    room = (one + 3 * state) / MEMORY_FRACTION * (1 + 1e-9)
    assert members_that_fit(tiny, room, "cpu") == 4
    assert members_that_fit(tiny, 4 * one / MEMORY_FRACTION * (1 + 1e-9), "gpu") == 4
    assert members_that_fit(tiny, 0.9 * one, "cpu") == members_that_fit(tiny, 0.9 * one, "gpu") == 0


@pytest.mark.parametrize(("sequential", "count"), [(True, 5), (False, 4)])
def test_only_members_of_the_mask_are_stepped(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, sequential: bool, count: int
) -> None:
    """One after the other as on CPUs, and vmapped; members that the mask leaves out are given a rate of nan."""
    monkeypatch.setattr("scaling.training.population_step.sequential_on_device", lambda mesh: sequential)
    mesh = make_mesh(tiny.mesh)
    program = build_program(tiny, mesh, member_kernel(tiny, mesh))
    before = [jax.device_get(program.init(jax.random.key(seed))) for seed in range(count)]
    tokens = np.zeros((count, tiny.data.batch_sequences, tiny.data.sequence_length + 1), np.int32)
    live = np.arange(count) % 2 == 0
    rates = Rates(np.where(live, 1e-3, np.nan).astype(np.float32), np.zeros(count, np.float32))
    step_arguments = jax.device_put((jax.tree.map(lambda *x: np.stack(x), *before), tokens, rates, live))
    after, metrics = batched_step(program)(*step_arguments)
    for member, (start, alive) in enumerate(zip(before, live, strict=True)):
        end = jax.tree.map(lambda x, row=member: np.asarray(x)[row], after)
        assert int(end.step) == int(alive)
        same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (start.params, end.params)), strict=True)]
        assert all(same) is not bool(alive)
        assert any(same) is not bool(alive)
        assert np.isfinite(metrics["loss"][member])
