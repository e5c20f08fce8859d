"""Compares the store of logged steps with a loop over lines, and measures collecting thousands of cells.

    python benchmarks/store.py

Two parts, into benchmarks/store.json. Steps: 300 runs of 2,000 logged steps, loaded and grouped (mean loss by run and
hundred steps), from JSONL and compacted; compacted from nothing, and again with ten runs changed; each beside
json.loads line by line into a table, in turns, in seconds of CPU: above 1 the store is faster. Cells: `scaling sweep
collect` of 1,000 and of 10,000 simulated cells, milliseconds of CPU a cell: a cost that grows with the number of cells
alone is the same in both.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from train import provenance

from analysis.commands.collect import collect
from analysis.tables import metrics
from scaling import files
from scaling.recipes import recipes
from scaling.record import run_folder
from scaling.training import simulated_run
from sweeps.grids import apply, axis, overlay, product

OUT = Path(__file__).with_suffix(".json")
RUNS, STEPS, CHANGED, BIN, TURNS = 300, 2_000, 10, 100, 3
CELLS = (1_000, 10_000)


def write_run(folder: Path, rng: np.random.Generator) -> None:
    """A run's log as the trainer writes it."""
    folder.mkdir(parents=True)
    numbers = rng.random((STEPS, 4))
    lines = (
        {"step": i, "tokens": 4_096 * i, "loss": a, "grad_norm": b, "learning_rate": c, "tokens_per_second": d}
        for i, (a, b, c, d) in enumerate(numbers.tolist(), 1)
    )
    (folder / run_folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_by_line(folder: Path) -> pd.DataFrame:
    """The baseline: every run, read by the reader of training, in one table."""
    runs = sorted((folder / "runs").iterdir())
    return pd.concat([pd.DataFrame(run_folder.read_metrics(run)).assign(run_id=run.name) for run in runs])


def mean_loss_by_bin(table: pd.DataFrame) -> pd.Series:
    return table.groupby(["run_id", table["step"] // BIN], observed=True)["loss"].mean()


def measure_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and of wall time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def steps(folder: Path) -> dict[str, Any]:
    """Every way once a turn."""
    rng = np.random.default_rng(0)
    for i in range(RUNS):
        write_run(folder / "runs" / f"{i:012x}", rng)

    def touched() -> None:
        for i in range(CHANGED):
            os.utime(folder / "runs" / f"{i:012x}" / run_folder.METRICS)

    compacted = folder / metrics.FILE
    timings: dict[str, list[tuple[float, float]]] = {}
    for _ in range(TURNS):
        compacted.unlink(missing_ok=True)
        turn = {
            "by line, grouped": measure_seconds(lambda: mean_loss_by_bin(read_by_line(folder))),
            "from JSONL, grouped": measure_seconds(lambda: mean_loss_by_bin(metrics.load_metrics(folder))),
            "compacted from nothing": measure_seconds(lambda: metrics.compact_metrics(folder)),
            "from Parquet, grouped": measure_seconds(lambda: mean_loss_by_bin(metrics.load_metrics(folder))),
        }
        touched()
        turn[f"compacted with {CHANGED} runs changed"] = measure_seconds(lambda: metrics.compact_metrics(folder))
        turn["compacted with none changed"] = measure_seconds(lambda: metrics.compact_metrics(folder))
        for name, seconds in turn.items():
            timings.setdefault(name, []).append(seconds)
    rows = [
        {"what": name, "cpu": statistics.median(c for c, _ in turns), "wall": statistics.median(w for _, w in turns)}
        for name, turns in timings.items()
    ]
    sizes = {
        "jsonl": sum(path.stat().st_size for path in folder.rglob(run_folder.METRICS)),
        "parquet": compacted.stat().st_size,
    }
    return {"runs": RUNS, "steps": STEPS, "turns": TURNS, "bytes": sizes, "rows": rows}


def simulate(folder: Path, count: int) -> list[Path]:
    """Run folders of a grid of sizes, budgets, learning rates and seeds, without training."""
    base = overlay(
        recipes.small((16, 1), 819_200),
        {"data.corpus": "simulated", "data.batch_sequences": 32, "data.sequence_length": 128, "sweep": "simulated"},
    )
    axes = (
        axis("model.width", *range(16, 176, 16)),
        axis("tokens", *(409_600 * i for i in range(1, 11))),
        axis("optimizer.learning_rate", *(1e-3 * 1.5**i for i in range(10))),
        axis("seed", *range(count // 1_000)),
    )
    runs = []
    for config in apply(base, product(*axes)):
        runs.append(folder / "runs" / config.run_id)
        simulated_run.simulate_run(config, runs[-1])
    return runs


def cells(folder: Path, count: int) -> dict[str, Any]:
    """`scaling sweep collect`, from nothing and with one cell in a hundred changed; its output thrown away."""
    runs = simulate(folder / "simulated", count)

    def collected() -> None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            collect("simulated", folder)

    first = measure_seconds(collected)
    for run in runs[::100]:
        os.utime(run / run_folder.METRICS)
    again = measure_seconds(collected)
    shutil.rmtree(folder / "simulated")
    return {"cells": count, "first_cpu": first[0], "again_cpu": again[0], "first_wall": first[1]}


def main() -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as place:
        timings = {"steps": steps(Path(place) / "steps")}
        console.print(timings["steps"])
        rows = []
        for count in CELLS:
            rows.append(cells(Path(place), count))
            console.print(rows[-1])
    versions = {"pandas": pd.__version__, "pyarrow": metrics.pa.__version__}
    files.write_json(OUT, provenance() | {"versions": versions} | timings | {"cells": rows})


if __name__ == "__main__":
    main()
