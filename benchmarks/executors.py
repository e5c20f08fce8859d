"""Measures the overhead of the executors: of a run, and of each cell of a sweep of ten thousand.

    python benchmarks/executors.py runs      # the same short runs on local, SLURM and Ray; into executors.json
    python benchmarks/executors.py start     # a process started as runs are, and one that is not; into the same file
    python benchmarks/executors.py cells     # 1,000, 3,000 and 10,000 simulated cells by stage; into the same file

Runs: RUNS short ones, two at once, by hand and by each executor in turn, one process a run, with a cache of programs
that is warm. What an executor adds is taken from the ledgers of the run folders (sweeps/running/attempt_log.py): from
the command to the first run's begin; from the end of a run to the begin of the next on that worker; from the last
result to the command's end. SLURM and Ray are real clusters of two nodes on this machine (tests/cluster); where one
cannot start, its row says why. SLURM needs root.

Cells: CPU time of one process, divided by the cells; simulated ones (scaling/training/simulated_run.py), so that only
the sweep's own work is counted. A stage without a quadratic step has the same figure in every column.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from analysis.commands.collect import collect
from scaling.config.run_config import to_dict
from scaling.data.prepare import prepare
from scaling.files import write_json
from scaling.record.run_folder import CONFIG, RESULT
from scaling.record.run_folder import RUNS as FOLDERS
from sweeps.catalog import smoke
from sweeps.commands.run import run_locally
from sweeps.grids import Sweep, apply, axis, overlay, product
from sweeps.local.processes import make_slots, start_process
from sweeps.planning.plan import Plan, build_plan, freeze_plan, load_plan
from sweeps.planning.wall_time import WallTimeModel
from sweeps.running import attempt_log
from sweeps.running.progress import read_sweep_progress

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.cluster import ray_cluster, slurm_cluster

OUT = Path(__file__).with_suffix(".json")
RUNS, AT_ONCE, TURNS = 8, 2, 1
CELLS = (1_000, 3_000, 10_000)
PACE = WallTimeModel(per_run=1.0, per_step=0.0, per_token=0.0, flops_per_second=1e9, source="none")
SETTINGS = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
SETTINGS |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
SHORT = {"data.corpus": "walk", "tokens": 65_536, "measure.checkpoint_every_tokens": 32_768}


@dataclass(frozen=True)
class Executor:
    """The flags of `scaling sweep run` for one executor. inside: argv -> the argv that runs it inside the cluster."""

    name: str
    flags: tuple[str, ...]
    inside: Callable[[list[str]], list[str]]
    seconds_up: float = 0.0


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "scaling.cli", *map(str, words)]


@contextlib.contextmanager
def local(work: Path) -> Iterator[Executor]:
    yield Executor("local", ("--jobs", str(AT_ONCE)), lambda argv: argv)


@contextlib.contextmanager
def slurm(work: Path) -> Iterator[Executor]:
    with slurm_cluster.slurm_cluster(work) as cluster:
        variables = [f"{name}={value}" for name, value in os.environ.items() if name in (*SETTINGS, CACHE)]
        flags = ("--jobs", str(AT_ONCE), "slurm", "--partition", "low")
        yield Executor("SLURM", flags, lambda argv: cluster.inside("env", *variables, *argv), cluster.seconds)


@contextlib.contextmanager
def ray(work: Path) -> Iterator[Executor]:
    began = time.monotonic()
    with ray_cluster.ray_cluster() as cluster:
        flags = ("--jobs", str(AT_ONCE), "ray", "--address", cluster.address)
        yield Executor("Ray", flags, lambda argv: argv, time.monotonic() - began)


CACHE = "JAX_COMPILATION_CACHE_DIR"


def short_runs(folder: Path, corpora: Path) -> Plan:
    """A plan of short runs that differ only in their seed."""
    base = overlay(smoke.sweep().cells[0], SHORT | {"data.directory": str(corpora)})
    return freeze_plan(
        folder, build_plan(Sweep(folder.name, apply(base, axis("seed", *range(RUNS))), "short runs"), PACE)
    )


def by_hand(folder: Path, corpora: Path) -> dict[str, Any]:
    """The runs of a plan without a sweep, two at once, each on a core of its own."""
    plan = short_runs(folder, corpora)
    cores = sorted(os.sched_getaffinity(0))

    def make(index: int) -> float:
        cell = plan.cells[index]
        run = folder / FOLDERS / cell.run_id
        write_json(run / CONFIG, to_dict(cell.config))
        began = time.monotonic()
        argv = ["taskset", "-c", str(cores[index % AT_ONCE]), *command("train", "--quiet", "--folder", run)]
        subprocess.run(argv, check=True, capture_output=True)
        return time.monotonic() - began

    with ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.monotonic()
        seconds = list(pool.map(make, range(RUNS)))
    return {"run": seconds, "total": time.monotonic() - began}


def measure_executor(executor: Executor, folder: Path, corpora: Path) -> dict[str, Any]:
    """Seconds of the same runs under an executor, from their attempt logs."""
    plan = short_runs(folder, corpora)
    typed = time.time()
    argv = command("sweep", "run", folder.name, "--out", folder.parent, "--members", 1, *executor.flags)
    process = subprocess.run(executor.inside(argv), capture_output=True, text=True, check=False)
    ended = time.time()
    if process.returncode:
        raise RuntimeError(f"{executor.name}: {process.stdout[-1000:]}{process.stderr[-1000:]}")
    runs = [folder / FOLDERS / cell.run_id for cell in plan.cells]
    last = max((run / RESULT).stat().st_mtime for run in runs)
    deadline = (
        time.monotonic() + 60
    )  # on a cluster the command ends with the last result, which workers have yet to note
    while not all(finished_in_one_attempt(run) for run in runs):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{executor.name}: not one attempt a run, done: {[*map(attempt_log.read_attempts, runs)]}"
            )
        time.sleep(0.1)
    lines = [*map(attempt_log.read_attempts, runs)]
    attempts = sorted((run[0]["at"], run[1]["at"], (run[0]["host"], run[0]["pid"])) for run in lines)
    return {
        "run": [end - begin for begin, end, _ in attempts],
        "to_first": attempts[0][0] - typed,
        "between": gaps(attempts),
        "to_end": ended - last,
        "total": ended - typed,
    }


def finished_in_one_attempt(run: Path) -> bool:
    """Whether a run began once and its end is in the attempt log."""
    return [line.get("kind", line["event"]) for line in attempt_log.read_attempts(run)] == [attempt_log.BEGAN, "done"]


def gaps(attempts: list[tuple[float, float, Any]]) -> list[float]:
    """Seconds between the end of a run and the start of the next one on its slot, in the order of starts."""
    seconds, ends = [], []
    for begin, end, _ in attempts:
        if len(ends) == AT_ONCE:
            previous_end = max((earlier_end for earlier_end in ends if earlier_end <= begin), default=min(ends))
            seconds.append(begin - previous_end)
            ends.remove(previous_end)
        ends.append(end)
    return seconds


def runs() -> dict[str, Any]:
    """Rows of the table: medians over runs and turns."""
    os.environ |= SETTINGS
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=Path.home()) as work_name:
        work = Path(work_name)
        os.environ[CACHE] = str(work / "programs")
        prepare("walk", work / "corpora", backend="plain")
        by_hand(work / "first", work / "corpora")
        for begin in (local, slurm, ray):
            try:
                with begin(work) as executor:
                    turns = [
                        (
                            by_hand(work / f"hand{i}{executor.name}", work / "corpora"),
                            measure_executor(executor, work / f"s{i}{executor.name}", work / "corpora"),
                        )
                        for i in range(TURNS)
                    ]
            except (slurm_cluster.Unavailable, ray_cluster.Unavailable) as why:
                rows.append({"executor": begin.__name__, "not_run_here": str(why)})
                continue
            rows.append({"executor": executor.name, "cluster_up": executor.seconds_up} | sum_turns(turns))
            Console().print(rows[-1])
    return {"rows": rows, "runs": RUNS, "at_once": AT_ONCE, "turns": TURNS}


def sum_turns(turns: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Medians in seconds. share: the time between two runs, over the time of a run started by hand."""
    hand = statistics.median(run_seconds for by_hand_turn, _ in turns for run_seconds in by_hand_turn["run"])
    run = statistics.median(run_seconds for _, swept in turns for run_seconds in swept["run"])
    between = statistics.median(run_seconds for _, swept in turns for run_seconds in swept["between"])
    ends = {name: statistics.median(swept[name] for _, swept in turns) for name in ("to_first", "to_end", "total")}
    return (
        {"by_hand": hand, "run": run, "between": between, "share": between / hand}
        | ends
        | {"total_by_hand": statistics.median(by_hand_turn["total"] for by_hand_turn, _ in turns)}
    )


def starts(times: int = 100) -> dict[str, float]:
    """Seconds from start to end of a process that does nothing, in turns: tied to its parent and its core by
    sweeps/local/child.py, and plainly. Medians."""
    seconds: dict[str, list[float]] = {"tied": [], "plain": []}
    slot = make_slots(AT_ONCE)[0]
    with tempfile.TemporaryDirectory() as work_name:
        folder = Path(work_name) / "runs" / "one"
        folder.mkdir(parents=True)
        for _ in range(times):
            for name, begin in (
                ("tied", lambda: start_process(["true"], folder, slot)),
                ("plain", lambda: subprocess.Popen(["true"])),
            ):
                began = time.perf_counter()
                process = begin()
                while process.poll() is None:
                    time.sleep(0.0005)
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times_of_kind) for name, times_of_kind in seconds.items()}


def many(count: int) -> Sweep:
    """Five widths, four horizons, and seeds."""
    base = overlay(smoke.sweep().cells[0], {"data.corpus": "simulated?alpha=.3"})
    widths, horizons = axis("model.width", 8, 16, 24, 32, 40), axis("tokens", 8_192, 16_384, 32_768, 65_536)
    return Sweep("many", apply(base, product(widths, axis("seed", *range(count // 20)), horizons)), "many")


def stages(count: int) -> dict[str, float]:
    """Milliseconds of CPU a cell, of each stage in its order; and the wall seconds of all."""
    milliseconds: dict[str, float] = {}
    began = time.monotonic()

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            result = work()
        milliseconds[stage] = 1e3 * (time.process_time() - start) / count
        return result

    with tempfile.TemporaryDirectory() as work_name:
        folder = Path(work_name) / "many"
        sweep = timed("cells", lambda: many(count))
        plan = timed("plan", lambda: build_plan(sweep, PACE))
        timed("freeze", lambda: freeze_plan(folder, plan))
        timed("load", lambda: load_plan(folder))
        timed("run", lambda: run_locally(folder, jobs=AT_ONCE))
        timed("run again", lambda: run_locally(folder, jobs=AT_ONCE))
        timed("status", lambda: read_sweep_progress(folder, plan))
        timed("collect", lambda: collect("many", folder.parent))
        timed("collect again", lambda: collect("many", folder.parent))
    return milliseconds | {"seconds": time.monotonic() - began}


def describe_machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "processor": processor, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("runs", "start", "cells"))
    what = parser.parse_args().what
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    load = os.getloadavg()[0]
    if what == "runs":
        measured = runs()
    elif what == "start":
        measured = starts()
    else:
        stages(20)
        measured = {"stages": {str(count): stages(count) for count in CELLS}}
        Console().print(measured)
    OUT.write_text(json.dumps(results | {what: measured | describe_machine() | {"load_before": load}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
