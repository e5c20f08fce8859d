"""Members of a population per second, beside the same runs one at a time.

    python benchmarks/population.py cpu     # on one core, as a sweep's slot has it; into benchmarks/population_cpu.json
    python benchmarks/population.py gpu     # up to 5M parameters and 64 members; into benchmarks/population_gpu.json

Runs: processes from start to result, with imports, compilation, checkpoints and the final measurement; each side begins
with an empty cache of programs. What K runs one at a time take is the first, which compiles, and K - 1 times one that
finds its program, timed beside each population. Steps: the compiled step alone, in turns within one process. Every
figure is time alone / time together, so above 1 a population is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaling import files
from scaling.accounting import counts
from scaling.config.run_config import DataConfig, MeasureConfig, ModelConfig, PrecisionConfig, RunConfig, to_dict
from scaling.data.prepare import prepare
from scaling.record import run_folder
from scaling.training.schedule import Rates

HERE = Path(__file__).parent
CPU_SIZES, CPU_MEMBERS = ((16, 2), (32, 3), (64, 4)), (2, 4, 8, 16)
"""Width and depth: 11k, 46k, 217k parameters that a token is multiplied by."""
CPU_BATCH, CPU_LENGTH, CPU_STEPS = 4, 128, 200
GPU_SIZES, GPU_MEMBERS = ((64, 4), (128, 6), (256, 6)), (1, 4, 16, 64)
GPU_BATCH, GPU_LENGTH = 16, 256
TURNS, TURN_SECONDS = 5, 0.3
ONE_CORE = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}


def config(size: tuple[int, int], batch: int, length: int, dtype: str = "float32") -> RunConfig:
    """A run of CPU_STEPS steps, heads of 16 or less."""
    width, depth = size
    tokens = CPU_STEPS * batch * length
    return RunConfig(
        model=ModelConfig(width=width, depth=depth, heads=max(width // 16, 1), qk_norm=True),
        data=DataConfig(corpus="walk", sequence_length=length, batch_sequences=batch),
        precision=PrecisionConfig(dtype),  # pyrefly: ignore
        measure=MeasureConfig(validation_tokens=65_536),
        tokens=tokens,
    )


def steps(run_config: RunConfig, members: int, turns: int = TURNS, seconds: float = TURN_SECONDS) -> dict[str, Any]:
    """Time of a step of each member alone / of a step together, by wall clock and by CPU time, in turns."""
    import jax
    import numpy as np

    from scaling.model import sharding
    from scaling.training.population_step import batched_step, member_kernel
    from scaling.training.train_step import build_program

    mesh = sharding.make_mesh(run_config.mesh, jax.devices()[:1])
    solo, program = build_program(run_config, mesh), build_program(run_config, mesh, member_kernel(run_config, mesh))
    step = batched_step(program)
    shape = (members, run_config.data.batch_sequences, run_config.data.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, run_config.model.vocab_size, shape).astype(np.int32)
    own = [sharding.put_batch(lambda rows, b=b: b[rows], b.shape, mesh) for b in tokens]
    rates = Rates(np.full(members, 1e-3, np.float32), np.full(members, 0.1, np.float32))
    solo_rates = Rates(np.float32(1e-3), np.float32(0.1))
    states = [solo.init(jax.random.key(seed)) for seed in range(members)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(states))
    live = np.ones(members, bool)
    state: dict[str, Any] = {"alone": states[0], "together": jax.device_put(stacked)}
    del states, stacked

    def step_alone() -> None:
        for member in range(members):
            state["alone"], state["metrics"] = solo.step(state["alone"], own[member], solo_rates)

    def jointly() -> None:
        state["together"], state["metrics"] = step(state["together"], tokens, rates, live)

    def timed(run: Callable[[], None], count: int) -> tuple[float, float]:
        jax.block_until_ready(state)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            run()
        jax.block_until_ready(state)
        return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count

    compile_s = {name: timed(run, 1)[0] for name, run in (("alone", step_alone), ("together", jointly))}
    count = max(int(seconds / timed(jointly, 2)[0]), 1)
    ratios = []
    for turn in range(turns):
        pair = [(step_alone, timed(step_alone, count)), (jointly, timed(jointly, count))][:: 1 if turn % 2 else -1]
        (wall, cpu), (wall_together, cpu_together) = (times for _, times in sorted(pair, key=lambda p: p[0] is jointly))
        ratios.append((wall / wall_together, cpu / cpu_together, wall_together))
    walls, cpus, each = zip(*ratios, strict=True)
    row = {
        "params": counts.count_params(run_config.model).total,
        "matmul": counts.count_params(run_config.model).matmul,
    }
    row |= {
        "size": [run_config.model.width, run_config.model.depth],
        "members": members,
        "compute": run_config.precision.compute,
    }
    row |= {"kernel_alone": solo.model.kernel, "kernel": program.model.kernel}
    row |= {f"first_step_{name}_s": value for name, value in compile_s.items()}
    row |= {"step_wall": statistics.median(walls), "step_cpu": statistics.median(cpus), "step_s": min(each)}
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return row | {"peak_bytes": peak}


def write_run_folders(
    size: tuple[int, int], count: int, folder: Path, corpora: Path, batch: int, length: int
) -> list[str]:
    """Run folders with a config each: one shape, seeds 0, 1, 2."""
    run_config = config(size, batch, length)
    data = dataclasses.replace(run_config.data, directory=str(corpora))
    for seed in range(count):
        run = dataclasses.replace(run_config, data=data, seed=seed)
        files.write_json(folder / str(seed) / run_folder.CONFIG, to_dict(run))
    return [str(folder / str(seed)) for seed in range(count)]


def timed_command(arguments: list[str], cache: Path, core: int | None) -> tuple[float, float]:
    """Wall and CPU seconds of a `scaling` command, from its start to its end; on one core where one is given."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    wall, cpu = time.perf_counter(), spent()
    command = [sys.executable, "-m", "scaling.cli", *arguments]
    subprocess.run(
        command,
        env=environment | (ONE_CORE if core is not None else {}),
        check=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=pin,
    )
    return time.perf_counter() - wall, spent() - cpu


def runs(
    size: tuple[int, int], members: tuple[int, ...], batch: int, length: int, core: int | None
) -> Iterator[tuple[dict[str, Any], Path]]:
    """Whole runs of one size: the first alone, then for each K a population and one more run alone. With each comes the
    folder of the population's programs, for as long as the iterator lasts."""
    with tempfile.TemporaryDirectory() as name:
        work_folder = Path(name)
        corpora = work_folder / "corpora"
        prepare("walk", corpora, backend="plain")
        solo = write_run_folders(size, len(members) + 1, work_folder / "solo", corpora, batch, length)

        def train(folder: str) -> tuple[float, float]:
            return timed_command(["train", "--quiet", "--folder", folder], work_folder / "cache", core)

        first = train(solo[0])
        for index, count in enumerate(members):
            folders = write_run_folders(size, count, work_folder / str(count), corpora, batch, length)
            joint = timed_command(["population", "--quiet", *folders], work_folder / f"cache{count}", core)
            again = train(solo[index + 1])
            solo_seconds = [cold + (count - 1) * warm for cold, warm in zip(first, again, strict=True)]
            row = {"run_wall": solo_seconds[0] / joint[0], "run_cpu": solo_seconds[1] / joint[1]}
            row |= {"alone_cpu_s": solo_seconds[1], "together_cpu_s": joint[1]}
            row |= {"first_alone_cpu_s": first[1], "next_alone_cpu_s": again[1]}
            yield row, work_folder / f"cache{count}"


def cpu(out: Path) -> None:
    """Steps in a process of their own, for it must be pinned before JAX begins; then whole runs."""
    from train import provenance

    console, core, rows = Console(), max(os.sched_getaffinity(0)), []
    for size in CPU_SIZES:
        whole = runs(size, CPU_MEMBERS, CPU_BATCH, CPU_LENGTH, core)
        for members, (run_times, cache) in zip(CPU_MEMBERS, whole, strict=True):
            steps_arguments = json.dumps({"size": size, "members": members, "batch": CPU_BATCH, "length": CPU_LENGTH})
            command = [
                "taskset",
                "-c",
                str(core),
                sys.executable,
                str(Path(__file__).resolve()),
                "steps",
                steps_arguments,
            ]
            extra_environment = ONE_CORE | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
            process = subprocess.run(
                command, env=os.environ | extra_environment, check=True, capture_output=True, text=True
            )
            rows.append(json.loads(process.stdout.splitlines()[-1]) | run_times)
            console.print(rows[-1])
            about = {"batch": CPU_BATCH, "sequence_length": CPU_LENGTH, "steps": CPU_STEPS, "turns": TURNS}
            files.write_json(out, provenance() | about | {"rows": rows})
    console.print(make_table(rows))


def gpu(out: Path) -> None:
    """Steps of every size, dtype and K."""
    import jax
    from train import provenance

    if jax.default_backend() != "gpu":
        raise SystemExit(f"no GPU here: JAX found {jax.devices()[0].device_kind}. Nothing was measured.")
    console, rows = Console(), []
    about = {"device": jax.devices()[0].device_kind, "batch": GPU_BATCH, "sequence_length": GPU_LENGTH}
    for dtype in ("bfloat16", "float32"):
        for size in GPU_SIZES:
            for members in GPU_MEMBERS:
                rows.append(steps(config(size, GPU_BATCH, GPU_LENGTH, dtype), members))
                console.print(rows[-1])
                files.write_json(out, provenance() | about | {"steps": CPU_STEPS, "turns": TURNS, "rows": rows})
    console.print(make_table(rows))


def make_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Time of runs one at a time / time together: above 1, a population is faster")
    for name in ("parameters", "members", "compute", "runs", "runs, CPU", "step", "step, CPU"):
        table.add_column(name, justify="right")
    for r in rows:
        figures = (f"{r[k]:.2f}" if k in r else "" for k in ("run_wall", "run_cpu", "step_wall", "step_cpu"))
        table.add_row(f"{r['matmul']:,}", str(r["members"]), r["compute"], *figures)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cpu", "gpu", "steps"), help="steps is for the benchmark itself")
    parser.add_argument("asked", nargs="?", help="of steps: JSON")
    given = parser.parse_args()
    if given.what == "steps":
        from scaling.training.malloc import keep_freed_pages

        keep_freed_pages()
        asked = json.loads(given.asked)
        print(json.dumps(steps(config(tuple(asked["size"]), asked["batch"], asked["length"]), asked["members"])))
    else:
        (cpu if given.what == "cpu" else gpu)(HERE / f"population_{given.what}.json")


if __name__ == "__main__":
    main()
