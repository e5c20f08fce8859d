"""The benchmarks' page agrees with their result files, and a worker reports the time of its steps."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_figures_of_the_files() -> None:
    page = (BENCHMARKS / "README.md").read_text()
    assert load("tables").fill_tables(page) == page


def test_a_worker_answers_each_line_with_the_time_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    train = load("train")
    command = [sys.executable, str(BENCHMARKS / "train.py"), "serve"]
    shape = {"width": 32, "depth": 1, "heads": 2}
    environment = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    worker = train.Worker.start(command, shape, train.Mode("one core", 1, 1), **environment)
    assert (worker.hello["kernel"], worker.hello["devices"]) == ("blocked", 1)
    warm = worker.ask(1)
    first, second = worker.ask(1), worker.ask(12)
    worker.end()
    assert second["loss"] < warm["loss"]
    assert 0 < first["wall"] < second["wall"]
    assert worker.process.returncode == 0


def test_no_gpu_is_said_and_nothing_is_written() -> None:
    before = {path: path.stat().st_mtime_ns for path in BENCHMARKS.iterdir()}
    process = subprocess.run([sys.executable, BENCHMARKS / "train.py", "gpu"], capture_output=True, text=True)
    if process.returncode == 0:
        pytest.skip("there is a GPU here")
    assert process.returncode == 1
    assert "GPU" in process.stderr
    assert "Traceback" not in process.stderr
    assert {path: path.stat().st_mtime_ns for path in BENCHMARKS.iterdir()} == before
