"""Fixtures and helpers of several test modules: small corpora, small configs, subprocesses."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

# Many tests compile the same small programs, some of them in subprocesses: once is enough. Before JAX is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from scaling import cli
from scaling.config.run_config import DataConfig, MeasureConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from scaling.data.prepare import prepare
from scaling.data.shards import open_shards

ROOT = Path(__file__).parent.parent

# `make test &` and nohup start the suite with ctrl-C ignored, which its processes would inherit. Tests of signals start
# from the usual handler, as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take minutes, longest first. Processes take files in the order of collection; these must not start last.
LONG_FILES = (
    "tests/cluster/test_chaos.py",
    "tests/docs/test_demo.py",
    "tests/cluster/test_slurm.py",
    "tests/cluster/test_ray.py",
    "tests/docs/test_docs.py",
    "tests/notebooks/test_notebooks.py",
    "tests/scaling/training/test_out_of_memory.py",
    "tests/analysis/fitting/test_recovery.py",
    "tests/scaling/commands/test_data.py",
    "tests/analysis/commands/test_downstream.py",
)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core, and one more where the tests of clusters run, which wait for most of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return cores + ("not cluster" not in config.option.markexpr)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of LONG_FILES first, in an order that stays otherwise, and marks those of slow_tests.txt slow."""
    slow = {line for line in (ROOT / "tests" / "slow_tests.txt").read_text().splitlines() if not line.startswith("#")}
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)
    places = {ROOT / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public tables; tests that read them skip where they are not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("public tables absent: no ../shared/data beside this checkout; none is part of the project")
    return folder


@pytest.fixture(scope="session")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of planted laws, named like the public ones: for tests of how those are read and fitted."""
    from tests.support import made_tables

    return made_tables.write_tables(tmp_path_factory.mktemp("made_data"))


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `walk` is prepared without seqio, so that training tests spend no time on data."""
    folder = tmp_path_factory.mktemp("corpora")
    prepare("walk", folder, backend="plain")
    return folder


@pytest.fixture(scope="session")
def tiny(corpora: Path) -> RunConfig:
    """A run of a second: 32 steps of 8 x 32 tokens."""
    return RunConfig(
        model=ModelConfig(width=32, depth=2, heads=2),
        data=DataConfig(
            corpus="walk",
            fingerprint=open_shards(corpora, "walk").fingerprint,
            sequence_length=32,
            batch_sequences=8,
            directory=str(corpora),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_tokens=1024),
        measure=MeasureConfig(validation_tokens=2048, log_every_steps=1, checkpoint_every_tokens=2048),
        tokens=32 * 8 * 32,
    )


def scaling(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `scaling ...` as a user would, from `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", "scaling.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def in_process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `scaling`, but in this process, which saves seconds of imports: for verbs that are refused, and so change no
    state here."""
    command, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(command)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which `scaling data prepare stdlib` has been run, and the finished process. It goes through seqio
    where that is installed, which takes seconds."""
    place = tmp_path_factory.mktemp("stdlib")
    done = scaling("data", "prepare", "stdlib", cwd=place)
    assert done.returncode == 0, done.stderr[-2000:]
    return place, done


PLANTED = {"E": 1.7, "A": 420.0, "B": 1800.0, "alpha": 0.35, "beta": 0.37}


def simulated(noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A results table of 30 runs whose losses are a planted Chinchilla law times log-normal noise."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 3e10, 5)))
    p = SimpleNamespace(**PLANTED)
    loss = p.E + p.A / n**p.alpha + p.B / d**p.beta
    loss = loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)) if noise else 0.0)
    return pd.DataFrame(
        {
            "run_id": [f"{i:012x}" for i in range(len(n))],
            "status": "done",
            "params_matmul": n,
            "params_total": n * 1.1,
            "tokens": d,
            "flops": 6.2 * n * d,
            "loss": loss,
            "branch_of": "",
        }
    )


@pytest.fixture(scope="module")
def unoptimized_programs() -> Iterator[None]:
    """Compiles programs in two thirds of the time; they run slower. For modules whose programs run a few times and are
    compared within rounding, not bit for bit."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def no_rivals() -> Iterator[None]:
    """Limits back-tests to one candidate law, for modules that do not test the choice of a law."""
    from analysis.forecasting import saved_fit
    from analysis.forecasting.law_choice import CANDIDATES, choose

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_fit, "choose", functools.partial(choose, candidates=CANDIDATES[:1]))
        yield


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small sweep with its fit and its report, for tests of the page and of a browser that opens it."""
    from analysis.commands import fit, report
    from tests.support.reported import write_sweep

    folder = write_sweep(tmp_path_factory.mktemp("reported"))
    fit.fit(folder / "results.parquet", holdout="largest", draws=64)
    report.report(folder, json=folder / "report.json")
    return folder
