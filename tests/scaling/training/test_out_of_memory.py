from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from scaling import exit_codes, files
from scaling.config.run_config import MeshConfig, RunConfig, load_config, to_dict
from scaling.errors import InputError
from scaling.model.sharding import check_divisibility, make_mesh
from scaling.record import run_folder
from scaling.training.failures import report_failure
from scaling.training.out_of_memory import count_oom_kills, is_out_of_memory, oom_kill_since, with_smaller_microbatch
from scaling.training.train import train

LIMITED = "resource.setrlimit(resource.RLIMIT_AS, (1900 * 2**20,) * 2)"
CGROUPS = Path("/sys/fs/cgroup/memory")
PLAIN = {"MALLOC_ARENA_MAX": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""One malloc arena, and fast compilation as in conftest.unoptimized_programs: these tests ask whether arrays fit."""


@pytest.fixture(scope="module")
def large_run(tiny: RunConfig) -> RunConfig:
    """One step of 256 sequences of 512: scores and what belongs to them take 2.04 GB at once, 0.26 in eight parts."""
    data = dataclasses.replace(tiny.data, batch_sequences=256, sequence_length=512)
    model = dataclasses.replace(tiny.model, width=32, depth=1, heads=8)
    return dataclasses.replace(tiny, model=model, data=data, tokens=256 * 512)


def attempt(config: RunConfig, folder: Path, verb: str, first: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb in a process that executes `first`. It has two cores, so that it has few thread stacks."""
    files.write_json(folder / run_folder.CONFIG, to_dict(config))
    cores = f"os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[:2]})"
    program = f"import os, resource, sys; {cores}; {first}; from scaling.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, verb]
    command += ["--folder", str(folder)] if verb == "train" else [str(folder)]
    return subprocess.run(command, env=os.environ | PLAIN, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds a process on Linux")
def test_a_run_that_runs_out_of_memory_says_so_and_ends_well_with_a_smaller_microbatch(
    large_run: RunConfig, tmp_path: Path
) -> None:
    """Every attempt has the same limit on memory; both verbs are tried first."""
    for verb in ("train", "population"):
        failed = attempt(large_run, tmp_path, verb, LIMITED)
        assert failed.returncode == exit_codes.OUT_OF_MEMORY, failed.stderr[-3000:]
        *before, last = failed.stderr.strip().splitlines()
        assert "Traceback (most recent call last):" in before
        assert re.match("error: .*RESOURCE_EXHAUSTED.*--data.microbatch-sequences", last)
        assert run_folder.read_result(tmp_path) is None
    smaller = large_run
    for _ in range(3):
        smaller = with_smaller_microbatch(smaller) or smaller
    assert smaller.run_id == large_run.run_id
    done = attempt(smaller, tmp_path, "train", LIMITED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_config(tmp_path / run_folder.CONFIG).data.microbatch_sequences == 32


@contextlib.contextmanager
def cgroup(name: str, limit: int) -> Iterator[Path]:
    """A memory cgroup of that many bytes. Skips where it cannot be made."""
    place = CGROUPS / name
    try:
        place.mkdir()
        (place / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        pytest.skip(f"no memory cgroup (v1) of one's own here: {error}")
    try:
        yield place
    finally:
        place.rmdir()


@pytest.mark.slow
def test_a_run_that_the_kernel_kills_for_memory_is_told_from_other_kills(large_run: RunConfig, tmp_path: Path) -> None:
    with cgroup(f"scaling-test-{os.getpid()}", 700 * 2**20) as place:
        before = count_oom_kills()
        killed = attempt(large_run, tmp_path, "train", f"open('{place}/cgroup.procs', 'w').write('0')")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert oom_kill_since(before)
    other = subprocess.Popen(["sleep", "60"])
    before = count_oom_kills()
    other.kill()
    assert other.wait() == -signal.SIGKILL
    assert not oom_kill_since(before)
    assert not oom_kill_since(None)


def test_a_microbatch_halved_midway_ends_where_the_whole_batch_does(tiny: RunConfig, tmp_path: Path) -> None:
    """From the checkpoint of step 16 of 32, in float32. Only the order of sums differs: losses to 2e-6 nats, of 4."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    keep = dataclasses.replace(tiny, measure=dataclasses.replace(tiny.measure, keep=9))
    assert train(keep, whole, quiet=True) == "done"
    shutil.copytree(whole, parts)
    (parts / run_folder.RESULT).unlink()
    for step in (24, 32):
        shutil.rmtree(parts / run_folder.CHECKPOINTS / str(step))
    kept = (parts / run_folder.METRICS).read_text().splitlines(keepends=True)[:16]
    (parts / run_folder.METRICS).write_text("".join(kept))
    smaller = with_smaller_microbatch(keep)
    assert smaller is not None
    assert smaller.data.microbatch_sequences == tiny.data.batch_sequences // 2
    assert train(smaller, parts, quiet=True) == "done"
    a, b = (np.array([line["loss"] for line in run_folder.read_metrics(path)]) for path in (whole, parts))
    assert len(a) == len(b) == 32
    np.testing.assert_array_equal(a[:16], b[:16])
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    assert (a[16:] != b[16:]).any(), "the second half was trained in microbatches"
    found = [run_folder.read_result(path) for path in (whole, parts)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0]["row"]["loss"] == pytest.approx(found[1]["row"]["loss"], abs=2e-6)


@pytest.mark.parametrize(
    ("batch", "micro", "mesh", "devices", "then"),
    [
        (8, None, MeshConfig(), 1, 4),
        (8, 4, MeshConfig(), 1, 2),
        (8, 1, MeshConfig(), 1, None),
        (12, None, MeshConfig(), 1, 6),
        (12, 6, MeshConfig(), 1, 3),
        (15, None, MeshConfig(), 1, 5),
        (7, None, MeshConfig(), 1, 1),
        (16, None, MeshConfig(data=2, fsdp=2), 4, 8),
        (16, 4, MeshConfig(data=2, fsdp=2), 4, None),
        (24, None, MeshConfig(fsdp=2), 8, 8),
        (24, 8, MeshConfig(fsdp=2), 8, None),
        (24, None, MeshConfig(tensor=4), 8, 12),
    ],
)
def test_the_next_smaller_microbatch_divides_batch_and_devices(
    tiny: RunConfig, batch: int, micro: int | None, mesh: MeshConfig, devices: int, then: int | None
) -> None:
    data = dataclasses.replace(tiny.data, batch_sequences=batch, microbatch_sequences=micro)
    found = with_smaller_microbatch(
        dataclasses.replace(tiny, data=data, mesh=mesh, tokens=data.batch_tokens * 32), devices
    )
    assert (found.data.microbatch_sequences if found else None) == then


def test_the_smallest_microbatch_still_fits_the_mesh(tiny: RunConfig) -> None:
    config, mesh = tiny, make_mesh(MeshConfig())
    while (smaller := with_smaller_microbatch(config)) is not None:
        check_divisibility(smaller, mesh)
        config = smaller
    assert config.data.microbatch_sequences == 1


def wrapped(error: Exception) -> Exception:
    outer = ValueError("while saving")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 900801348 bytes."),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.00GiB."),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G"),
        jax.errors.JaxRuntimeError("INTERNAL: cublas: CUBLAS_STATUS_ALLOC_FAILED"),
        jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        wrapped(MemoryError("Unable to allocate 3. GiB")),
    ],
)
def test_out_of_memory_is_recognised(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_out_of_memory(error)
    assert report_failure(error) == exit_codes.OUT_OF_MEMORY
    said = capsys.readouterr().err.strip().splitlines()
    assert re.match("error: .*--data.microbatch-sequences", said[-1])


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: no kernel for this chip"),
        ValueError("RESOURCE_EXHAUSTED"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        InputError("weights and optimizer state: 20.0 GiB on each device, which has 15.8"),
    ],
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
    refused = InputError("no space left for a checkpoint")
    refused.__cause__ = MemoryError()
    assert not is_out_of_memory(refused), "who refused it knew better"
    assert report_failure(refused) == exit_codes.BAD_INPUT


def test_without_vmstat_no_kill_is_attributed_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling.training.out_of_memory.VMSTAT", tmp_path / "absent")
    assert count_oom_kills() is None
    assert not oom_kill_since(0)
