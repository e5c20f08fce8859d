from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scaling import files
from scaling.accounting import counts
from scaling.config.run_config import (
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    from_dict,
    load_config,
    to_dict,
)
from scaling.data.prepare import prepare
from scaling.data.shards import TokenShards, gather_batch, open_shards
from scaling.errors import InputError
from scaling.exit_codes import DISK_FULL, PROCESS_LOST
from scaling.model.sharding import make_mesh
from scaling.record import run_folder, schema
from scaling.training.checkpoints import Checkpoints
from scaling.training.memory import state_bytes
from scaling.training.population import train_population
from scaling.training.restore import restore_model
from scaling.training.schedule import Rates
from scaling.training.train import train
from scaling.training.train_step import batch_gradients, build_program
from tests.conftest import scaling

TIMING = {"seconds", "tokens_per_second"}


def final_state(config: RunConfig, folder: Path) -> Any:
    program = build_program(config, make_mesh(config.mesh))
    with Checkpoints(folder / run_folder.CHECKPOINTS, keep=1) as save:
        return save.restore(config.steps, program.abstract_state)


def facts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    result = run_folder.read_result(folder)
    assert result is not None
    return {name: value for name, value in result["row"].items() if name not in TIMING}, result["measurements"]


@pytest.fixture(scope="module")
def unbroken(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert train(tiny, folder, quiet=True) == "done"
    return folder


def test_a_run_folder_holds_config_environment_metrics_and_result(tiny: RunConfig, unbroken: Path) -> None:
    assert from_dict(files.read_json(unbroken / run_folder.CONFIG)) == tiny
    program = build_program(tiny, make_mesh(tiny.mesh))
    kernel = program.model.kernel
    assert files.read_json(unbroken / run_folder.ENVIRONMENT)["attention_kernel"] == kernel != "auto"
    lines = run_folder.read_metrics(unbroken)
    assert [line["step"] for line in lines] == list(range(1, 33))
    assert lines[-1]["tokens"] == tiny.tokens
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    assert lines[-1]["tokens_per_second"] > 0
    row, measurements = facts(unbroken)
    assert row["run_id"] == tiny.run_id
    assert row["tokens"] == tiny.tokens
    assert row["params_total"] == sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state.params))
    assert row["loss"] == measurements["loss/nats"][0]
    assert 0 < row["loss_stderr"] < 0.1
    assert row["loss"] == pytest.approx(lines[-1]["loss"], abs=0.3)
    assert row.keys() == {column.name for column in schema.COLUMNS if column.in_row} - TIMING


def test_counts_that_are_not_those_of_the_parameter_tree_stop_a_run_before_it_begins(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a variant of the decoder whose formula was not changed with it: alone, in a population, and restored."""
    right = counts.count_params(tiny.model)
    wrong = dataclasses.replace(right, blocks=right.blocks * 111 // 100)
    monkeypatch.setattr(counts, "count_params", lambda model: wrong)
    for name in ("a", "b"):
        files.write_json(tmp_path / name / run_folder.CONFIG, to_dict(dataclasses.replace(tiny, name=name)))
    (tmp_path / "a" / run_folder.CHECKPOINTS / "4").mkdir(parents=True)
    begin = (
        lambda: train(tiny, tmp_path / "a", quiet=True),
        lambda: train_population([tmp_path / "a", tmp_path / "b"], quiet=True),
        lambda: restore_model(tmp_path / "a"),
    )
    for call in begin:
        with pytest.raises(InputError, match=rf"\bblocks\b.*\b{right.blocks}\b.*\b{wrong.blocks}\b"):
            call()
    assert not (tmp_path / "a" / run_folder.ENVIRONMENT).exists()


def test_a_run_that_is_done_does_nothing(tiny: RunConfig, unbroken: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
    assert train(tiny, unbroken, quiet=True) == "done"
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")} == before


def start(config: RunConfig, folder: Path) -> subprocess.Popen[str]:
    files.write_json(folder / run_folder.CONFIG, to_dict(config))
    command = [sys.executable, "-m", "scaling.cli", "train", "--folder", str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in run_folder.read_metrics(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def long(tiny: RunConfig) -> RunConfig:
    """640 steps of the tiny run, long enough for a signal to arrive before the end."""
    return dataclasses.replace(
        tiny,
        tokens=tiny.tokens * 20,
        measure=dataclasses.replace(tiny.measure, checkpoint_every_tokens=100 * tiny.data.batch_tokens),
    )


@pytest.fixture(scope="module")
def long_unbroken(long: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    assert train(long, folder, quiet=True) == "done"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_run_stopped_midway_ends_bit_equal(
    long: RunConfig, long_unbroken: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start(long, tmp_path)
    wait_for_step(tmp_path, 220, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert run_folder.read_result(tmp_path) is None
    saved = max(int(path.name) for path in (tmp_path / run_folder.CHECKPOINTS).iterdir() if path.name.isdigit())
    assert (saved % 100 == 0) is (number == signal.SIGKILL), "a signal saves where it comes, not at the cadence"
    assert train(long, tmp_path, quiet=True) == "done"
    assert facts(tmp_path) == facts(long_unbroken)
    stopped, unbroken = (final_state(long, folder) for folder in (tmp_path, long_unbroken))
    for a, b in zip(jax.tree.leaves(stopped), jax.tree.leaves(unbroken), strict=True):
        np.testing.assert_array_equal(a, b)
    stopped_losses, losses = (
        [line["loss"] for line in run_folder.read_metrics(folder)] for folder in (tmp_path, long_unbroken)
    )
    assert stopped_losses == losses


def flip_a_bit(step_folder: Path, pattern: str = "**/d/*") -> None:
    """Flips a bit of the largest file of a checkpoint that matches."""
    path = max((step_folder / "default").glob(pattern), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def with_every_checkpoint(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with its checkpoints of steps 8, 16, 24 and 32, as if it had been killed before its result."""
    folder = tmp_path_factory.mktemp("every")
    train(dataclasses.replace(tiny, measure=dataclasses.replace(tiny.measure, keep=9)), folder, quiet=True)
    for name in (run_folder.RESULT, run_folder.METRICS):
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize(("damaged", "first"), [((24, 32), 17), ((8, 16, 24, 32), 1)])
def test_a_run_goes_on_from_its_last_whole_checkpoint_bit_equal(
    tiny: RunConfig, unbroken: Path, with_every_checkpoint: Path, tmp_path: Path, damaged: tuple[int, ...], first: int
) -> None:
    folder, alone = shutil.copytree(with_every_checkpoint, tmp_path / "run"), final_state(tiny, unbroken)
    config = load_config(folder / run_folder.CONFIG)
    for step in damaged:
        flip_a_bit(folder / run_folder.CHECKPOINTS / str(step))
    assert train(config, folder, quiet=True) == "done"
    assert [line["step"] for line in run_folder.read_metrics(folder)] == list(range(first, 33))
    assert facts(folder) == facts(unbroken)
    jax.tree.map(np.testing.assert_array_equal, final_state(tiny, folder), alone)
    names = {path.name for path in (folder / run_folder.CHECKPOINTS).iterdir()}
    assert names >= {"8", "16", "24", "32", *(f"{step}.damaged" for step in damaged)}


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def by_two(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run by two real processes over loopback, weights, optimizer state and batch split between them, every
    checkpoint kept. Compared to within rounding, so their programs are compiled as by conftest.unoptimized_programs."""
    place = tmp_path_factory.mktemp("two")
    config = dataclasses.replace(tiny, mesh=MeshConfig(fsdp=2), measure=dataclasses.replace(tiny.measure, keep=9))
    assert config.run_id == tiny.run_id
    files.write_json(place / "c.json", to_dict(config))
    command = [sys.executable, "-m", "scaling.cli", "train", "--file", str(place / "c.json")]
    command += ["--folder", str(place / "run")]
    fixed = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": "2"}
    fixed |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    both = [
        subprocess.Popen(command, env=os.environ | fixed | {"JAX_PROCESS_ID": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    for process in both:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr[-3000:]
    return place / "run"


def same_to_1e5(folder: Path, unbroken: Path) -> None:
    """Losses at every logged step, and what was measured at the end."""
    lines, alone = run_folder.read_metrics(folder), run_folder.read_metrics(unbroken)
    assert [line["step"] for line in lines] == [line["step"] for line in alone] == list(range(1, 33))
    np.testing.assert_allclose([line["loss"] for line in lines], [line["loss"] for line in alone], rtol=0, atol=1e-5)
    (row, measured), (row_alone, measured_alone) = facts(folder), facts(unbroken)
    assert row["loss"] == pytest.approx(row_alone["loss"], abs=1e-5)
    assert measured == {name: pytest.approx(value, abs=1e-5) for name, value in measured_alone.items()}


@pytest.mark.slow
def test_two_processes_train_as_one(tiny: RunConfig, unbroken: Path, by_two: Path) -> None:
    """Then one process alone finds the run done."""
    assert files.read_json(by_two / run_folder.ENVIRONMENT)["processes"] == 2
    same_to_1e5(by_two, unbroken)
    assert train(tiny, by_two, quiet=True) == "done"


@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two(
    tiny: RunConfig, unbroken: Path, by_two: Path, tmp_path: Path
) -> None:
    """As if both had been killed at step 18, after the checkpoint of step 16. Later checkpoints are there, and damaged
    in a file of the second process."""
    folder = tmp_path / "run"
    shutil.copytree(by_two, folder)
    (folder / run_folder.RESULT).unlink()
    steps = {int(path.name): path for path in (folder / run_folder.CHECKPOINTS).iterdir() if path.name.isdigit()}
    assert sorted(steps) == [8, 16, 24, 32]
    for step in (24, 32):
        flip_a_bit(steps[step], "ocdbt.process_1/d/*")
    kept = (folder / run_folder.METRICS).read_text().splitlines(keepends=True)[:18]
    (folder / run_folder.METRICS).write_text("".join(kept))
    assert train(tiny, folder, quiet=True) == "done"
    assert len([*(folder / run_folder.CHECKPOINTS).glob("*.damaged")]) == 2
    resumed = (folder / run_folder.METRICS).read_text().splitlines()[18:]
    assert [json.loads(line)["step"] for line in resumed] == list(range(17, 33)), "it went on, not from the start"
    same_to_1e5(folder, unbroken)
    for a, b in zip(*(jax.tree.leaves(final_state(tiny, path)) for path in (folder, unbroken)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("count", "words"), [("two", "JAX_NUM_PROCESSES=two"), (None, "JAX_NUM_PROCESSES")])
def test_incomplete_process_variables_are_refused(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str | None, words: str
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", free_address())
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    if count:
        monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    with pytest.raises(InputError, match=words):
        train(tiny, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_process_whose_peer_never_starts_ends_with_process_lost(tiny: RunConfig, tmp_path: Path) -> None:
    """It waits for three seconds here, not half an hour; XLA would abort at five."""
    files.write_json(tmp_path / "c.json", to_dict(tiny))
    program = "import sys; from scaling import cli; from scaling.training import multihost; "
    program += "multihost.START_TIMEOUT_SECONDS = 5; cli.main(sys.argv[1:])"
    alone = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    command = [sys.executable, "-c", program, "train", "--file", str(tmp_path / "c.json")]
    command += ["--folder", str(tmp_path / "run")]
    done = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True, timeout=60)
    assert done.returncode == PROCESS_LOST, done.stderr
    (line,) = done.stderr.strip().splitlines()
    for name, value in alone.items():
        assert f"{name}={value}" in line
    assert not (tmp_path / "run").exists()


def test_a_step_is_dispatched_before_the_last_ones_metrics_are_read_and_moves_nothing_itself(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is dispatched under a guard that raises on an implicit transfer, and every array that Python reads is
    counted. The run logs and saves nothing before its end, so that nothing but the loop reads.
    """
    quiet = dataclasses.replace(tiny.measure, checkpoint_every_tokens=tiny.tokens, log_every_steps=1000)
    config = dataclasses.replace(tiny, measure=quiet, tokens=6 * tiny.data.batch_tokens, schedule=ScheduleConfig())
    events: list[str] = []
    built = build_program(config, make_mesh(config.mesh))

    def step(*arguments: Any) -> Any:
        events.append("dispatch")
        with jax.transfer_guard("disallow"):
            return built.step(*arguments)

    array = type(jax.numpy.zeros(()))
    value = vars(array)["_value"]

    def read(self: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            events.append("read")
        return value.fget(self)

    monkeypatch.setattr(
        "scaling.training.train.build_program", lambda config, mesh: dataclasses.replace(built, step=step)
    )
    monkeypatch.setattr(array, "_value", property(read))
    assert train(config, tmp_path, quiet=True) == "done"
    loop = events[: len(events) - events[::-1].index("dispatch")]
    metrics = ["read"] * 2
    assert loop[loop.index("dispatch") :] == ["dispatch", *(["dispatch", *metrics] * 5)][:-2]
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        step(built.init(jax.random.key(0)), np.zeros((8, 33), np.int32), Rates(0.0, 0.1))


def test_microbatches_learn_what_the_batch_learns(tiny: RunConfig, unbroken: Path, tmp_path: Path) -> None:
    parts = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, microbatch_sequences=2))
    assert parts.run_id == tiny.run_id
    train(parts, tmp_path, quiet=True)
    np.testing.assert_allclose(
        [line["loss"] for line in run_folder.read_metrics(tmp_path)],
        [line["loss"] for line in run_folder.read_metrics(unbroken)],
        atol=2e-4,
    )


def test_microbatches_are_looped_over(tiny: RunConfig) -> None:
    parts = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, microbatch_sequences=2))
    program = build_program(parts, make_mesh(parts.mesh))
    params = program.abstract_state.params
    tokens_BS = jax.ShapeDtypeStruct((8, 33), np.int32)
    text = str(jax.make_jaxpr(lambda p, t: batch_gradients(program.model, parts, p, t))(params, tokens_BS))
    assert "length=4" in text
    assert "length=4" not in str(
        jax.make_jaxpr(lambda p, t: batch_gradients(program.model, tiny, p, t))(params, tokens_BS)
    )


def test_weights_that_are_ruined_by_the_last_step_are_divergence(tiny: RunConfig, tmp_path: Path) -> None:
    one = dataclasses.replace(
        tiny,
        tokens=tiny.data.batch_tokens,
        schedule=ScheduleConfig(),
        optimizer=OptimizerConfig(learning_rate=1e38, weight_decay=1e9),
    )
    assert train(one, tmp_path, quiet=True) == "diverged"
    result = run_folder.read_result(tmp_path)
    assert result is not None
    assert re.search(r"\b(nan|inf)\b", result["reason"])
    assert math.isfinite(run_folder.read_metrics(tmp_path)[-1]["loss"]), "the validation alone showed it"
    assert result["row"]["tokens"] == tiny.data.batch_tokens


def test_a_run_that_diverges_is_recorded_as_such(tiny: RunConfig, tmp_path: Path) -> None:
    wild = dataclasses.replace(tiny, optimizer=OptimizerConfig(learning_rate=1e30))
    assert train(wild, tmp_path, quiet=True) == "diverged"
    result = run_folder.read_result(tmp_path)
    assert result is not None
    assert result["status"] == result["row"]["status"] == "diverged"
    assert re.search(r"\b(nan|inf)\b", result["reason"])
    last = run_folder.read_metrics(tmp_path)[-1]
    assert last["loss"] is None, "the step that diverged is recorded"
    assert re.search(rf"\bstep {last['step']}\b", result["reason"]), "numbered as in metrics.jsonl"
    assert result["row"]["loss"] is None
    assert 0 < result["row"]["tokens"] < tiny.tokens


def test_an_error_in_the_input_ends_the_run_with_that_error(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before the error are recorded; no thread is left, neither here nor after a divergence."""

    def torn(tokens: TokenShards, *, step: int, **options: Any) -> np.ndarray:
        if step == 5:
            raise InputError("the shard is torn")
        return gather_batch(tokens, step=step, **options)

    monkeypatch.setattr("scaling.training.train.gather_batch", torn)
    with pytest.raises(InputError, match="the shard is torn"):
        train(tiny, tmp_path, quiet=True)
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == [1, 2, 3, 4]
    monkeypatch.undo()
    wild = dataclasses.replace(tiny, optimizer=OptimizerConfig(learning_rate=1e30))
    assert train(wild, tmp_path / "wild", quiet=True) == "diverged"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_seed_changes_start_and_order(tiny: RunConfig, unbroken: Path, tmp_path: Path) -> None:
    """The first loss of seed 1 is that of its own weights on its own batch; with either of seed 0 it differs."""
    train(
        dataclasses.replace(tiny, seed=1, tokens=tiny.data.batch_tokens, schedule=ScheduleConfig()),
        tmp_path,
        quiet=True,
    )
    program = build_program(tiny, make_mesh(tiny.mesh))
    tokens = open_shards(tiny.data.directory, "walk")
    first = {}
    for start in (0, 1):
        for order in (0, 1):
            rows = gather_batch(tokens, seed=order, step=0, batch_sequences=8, sequence_length=32)
            _, metrics = program.step(program.init(jax.random.key(start)), rows, Rates(0.0, 0.1))
            first[start, order] = float(metrics["loss"])
    assert len(set(first.values())) == 4
    assert run_folder.read_metrics(tmp_path)[0]["loss"] == pytest.approx(first[1, 1], abs=1e-6)
    assert run_folder.read_metrics(unbroken)[0]["loss"] == pytest.approx(first[0, 0], abs=1e-6)


def test_a_changed_corpus_is_refused_midway(tiny: RunConfig, tmp_path: Path) -> None:
    """The config has no fingerprint of its data; the run folder has."""
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph {i} of one text" for i in range(400)))
    corpus = f"text:{tmp_path}/a.txt?document=paragraph"
    data = dataclasses.replace(tiny.data, corpus=corpus, fingerprint="", directory=str(tmp_path / "corpora"))
    config = dataclasses.replace(tiny, data=data, measure=dataclasses.replace(tiny.measure, validation_tokens=64))
    prepare(corpus, tmp_path / "corpora", backend="plain")
    assert train(config, tmp_path / "run", quiet=True) == "done"
    held = load_config(tmp_path / "run" / run_folder.CONFIG)
    assert held.data.fingerprint
    (tmp_path / "run" / run_folder.RESULT).unlink()
    (tmp_path / "a.txt").write_text("\n\n".join(f"section {i} of another" for i in range(400)))
    prepare(corpus, tmp_path / "corpora", backend="plain")
    with pytest.raises(InputError, match=held.data.fingerprint):
        train(config, tmp_path / "run", quiet=True)


def test_validation_is_logged_at_its_cadence(tiny: RunConfig, tmp_path: Path) -> None:
    measured = dataclasses.replace(tiny, measure=dataclasses.replace(tiny.measure, every_tokens=3000))
    train(measured, tmp_path, quiet=True)
    found = {
        line["step"]: line["validation_loss"] for line in run_folder.read_metrics(tmp_path) if "validation_loss" in line
    }
    assert sorted(found) == [12, 24]
    assert found[24] < found[12]


def test_wrong_shards_are_refused_before_anything_is_written(tiny: RunConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, fingerprint="0" * 16))
    with pytest.raises(InputError, match="fingerprint"):
        train(other, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_the_command_in_one_line_and_loses_nothing(tiny: RunConfig, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root on Linux)")
    try:
        kept = dataclasses.replace(tiny.measure, keep=100)
        config = dataclasses.replace(tiny, measure=kept)
        (tmp_path / "c.json").write_text(json.dumps(to_dict(config)))
        done = scaling("train", "--file", tmp_path / "c.json", "--folder", disk / "run")
        assert done.returncode == DISK_FULL, done.stderr[-2000:]
        (line,) = done.stderr.strip().splitlines()
        assert str(disk / "run") in line
        assert run_folder.read_metrics(disk / "run")
        assert run_folder.read_result(disk / "run") is None
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert train(config, disk / "run", quiet=True) == "done"
        assert len(run_folder.read_metrics(disk / "run")) == config.steps
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_state_that_no_device_holds_ends_before_a_step(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is the memory that devices report, as GPUs and TPUs do."""

    class Small:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax.sharding.Mesh, "local_devices", property(lambda mesh: [Small()]))
    times = math.ceil(state_bytes(build_program(tiny, make_mesh(tiny.mesh)).abstract_state) / 1000)
    with pytest.raises(InputError, match=rf"mesh\.fsdp.*mesh\.tensor.*\b{times}\b"):
        train(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()
