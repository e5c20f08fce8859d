"""Speed of the training step. On a CPU beside a plain PyTorch eager module; on a GPU by MFU.

    python benchmarks/train.py cpu      # three small sizes, into benchmarks/train_cpu.json
    python benchmarks/train.py gpu      # 50M to 1.3B parameters, into benchmarks/train_gpu.json

On a CPU, ours and theirs are two processes on the same cores that take turns, a few dozen steps each, and what counts
is the median over the turns of theirs / ours. PyTorch lives in an environment of its own, benchmarks/.venv-torch,
which is made from benchmarks/torch.txt when it is not there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from scaling.config.run_config import DataConfig, MeshConfig, ModelConfig, PrecisionConfig, RunConfig
from scaling.files import write_json
from scaling.training.schedule import Rates

HERE = Path(__file__).parent
TORCH = HERE / ".venv-torch" / "bin" / "python"
SIZES = ((32, 2, 2), (64, 4, 4), (128, 4, 8))
"""Width, depth, heads, as recipe.small makes them; 42k, 234k and 857k parameters."""
SEQUENCE, BATCH, TURNS, TURN_SECONDS = 128, 16, 9, 0.7


@dataclass(frozen=True)
class Mode:
    """How the cores are used. cores: how many the two processes may use; None means all. devices: JAX's."""

    name: str
    cores: int | None
    devices: int


def modes() -> list[Mode]:
    """As a sweep runs (a run a core), as `scaling train` runs, and with a device a core."""
    cores = len(os.sched_getaffinity(0))
    return [
        Mode("one core", 1, 1),
        Mode(f"{cores} cores, one device", None, 1),
        Mode(f"{cores} cores, a device each", None, cores),
    ]


@dataclass
class Worker:
    """A process that trains when asked to: a line with a number of steps in, a line of JSON out."""

    process: subprocess.Popen[str]
    hello: dict[str, Any]

    @classmethod
    def start(cls, command: list[str], first: dict[str, Any], mode: Mode, **environment: str) -> Worker:
        allowed = sorted(os.sched_getaffinity(0))[: mode.cores]

        def pin() -> None:
            os.sched_setaffinity(0, allowed)

        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=pin,
            env=os.environ | environment,
        )
        worker = cls(process, {})
        worker.hello = worker.ask(json.dumps(first))
        return worker

    def ask(self, line: str | int) -> dict[str, Any]:
        to, back = self.process.stdin, self.process.stdout
        assert to is not None
        assert back is not None
        to.write(f"{line}\n")
        to.flush()
        answer = back.readline()
        if not answer:
            raise SystemExit(f"a worker ended: {self.process.args}")
        return json.loads(answer)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def small(width: int, depth: int, heads: int) -> RunConfig:
    model = ModelConfig(width=width, depth=depth, heads=heads, qk_norm=True)
    return RunConfig(model=model, data=DataConfig(sequence_length=SEQUENCE, batch_sequences=BATCH))


def serve(lines: IO[str]) -> None:
    """Our worker: the step of `scaling train` on random tokens. The first line of input names the shape."""
    from scaling.training.malloc import keep_freed_pages

    keep_freed_pages()
    import jax
    import numpy as np

    from scaling.accounting.counts import count_params
    from scaling.model import sharding
    from scaling.training.train_step import build_program

    shape = json.loads(lines.readline())
    config = small(shape["width"], shape["depth"], shape["heads"])
    mesh = sharding.make_mesh(MeshConfig())
    program = build_program(config, mesh)
    rng = np.random.default_rng(0)
    batches = [
        sharding.put_batch(lambda rows, b=b: b[rows], b.shape, mesh)
        for b in rng.integers(0, config.model.vocab_size, (8, BATCH, SEQUENCE + 1)).astype(np.int32)
    ]
    state = program.init(jax.random.key(0))
    start = time.perf_counter()
    lowered = program.step.lower(state, batches[0], Rates(1e-3, 0.1))  # pyrefly: ignore
    traced = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter()
    hello = {"jax": jax.__version__, "kernel": program.model.kernel, "devices": jax.device_count()}
    hello |= {"params": count_params(config.model).total, "trace_s": traced - start, "compile_s": compiled - traced}
    print(json.dumps(hello), flush=True)
    for line in lines:
        wall, cpu = time.perf_counter(), time.process_time()
        pending = None
        for step in range(int(line)):
            state, metrics = program.step(state, batches[step % 8], Rates(1e-3, 0.1))
            # As in training, two steps are in flight at most. With more, two CPU devices can wait for each other.
            jax.device_get(pending)
            pending = metrics
        done = {"loss": float(metrics["loss"])}  # pyrefly: ignore
        done |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(done), flush=True)


def compare(size: tuple[int, int, int], mode: Mode, console: Console) -> dict[str, Any]:
    """One size in one mode: ours and theirs in turns."""
    config = small(*size)
    model = config.model
    ours = {"width": size[0], "depth": size[1], "heads": size[2]}
    theirs = ours | {"vocab_size": model.vocab_size, "kv_heads": model.num_kv_heads, "ff_width": model.num_ff}
    theirs |= {"qk_norm": model.qk_norm, "sequence_length": SEQUENCE, "batch": BATCH, "fused": True}
    theirs |= {"threads": mode.cores or 0}
    command = [sys.executable, str(Path(__file__).resolve()), "serve"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(mode.devices),
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        cold = Worker.start(command, ours, mode, **environment)
        cold.end()
        us = Worker.start(command, ours, mode, **environment)
        them = Worker.start([str(TORCH), str(HERE / "eager_torch.py")], theirs, mode)
        assert us.hello["params"] == them.hello["params"], "not the same model"
        us.ask(3), them.ask(3)
        steps = [max(int(TURN_SECONDS / (w.ask(5)["wall"] / 5)), 2) for w in (us, them)]
        turns = []
        for turn in range(TURNS):
            pair = ((us, steps[0]), (them, steps[1]))
            figures = {id(w): (w.ask(n), n) for w, n in (pair if turn % 2 else pair[::-1])}
            (a, n), (b, m) = figures[id(us)], figures[id(them)]
            turns.append({"wall": b["wall"] / m / (a["wall"] / n), "cpu": b["cpu"] / m / (a["cpu"] / n)})
            console.print(f"  {turn + 1}/{TURNS}: theirs / ours {turns[-1]['wall']:.2f} wall", end="\r")
        us.end(), them.end()
    row: dict[str, Any] = {"mode": mode.name, "params": us.hello["params"], "shape": list(size)}
    for clock in ("wall", "cpu"):
        ratios = sorted(t[clock] for t in turns)
        row[f"{clock}_ratio"] = statistics.median(ratios)
        row[f"{clock}_quartiles"] = [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]
    row |= {"kernel": us.hello["kernel"], "trace_s": us.hello["trace_s"]}
    return row | {"compile_s": cold.hello["compile_s"], "compile_from_cache_s": us.hello["compile_s"]}


def cpu(out: Path) -> None:
    if not TORCH.exists():
        subprocess.run([sys.executable, "-m", "venv", str(TORCH.parent.parent)], check=True)
        subprocess.run([str(TORCH), "-m", "pip", "install", "-q", "-r", str(HERE / "torch.txt")], check=True)
    console = Console()
    rows = [compare(size, mode, console) for mode in modes() for size in SIZES]
    table = Table(title="Time of PyTorch eager / time of ours, a step of 2,048 tokens: above 1, ours is faster")
    for name in ("mode", "parameters", "wall", "quartiles", "CPU", "compile s", "from cache s"):
        table.add_column(name, justify="right")
    for r in rows:
        low, high = r["wall_quartiles"]
        table.add_row(
            *(r["mode"], f"{r['params']:,}", f"{r['wall_ratio']:.2f}", f"{low:.2f} {high:.2f}"),
            *(f"{r['cpu_ratio']:.2f}", f"{r['compile_s']:.1f}", f"{r['compile_from_cache_s']:.2f}"),
        )
    console.print(table)
    asked = "import torch; print(torch.__version__)"
    torch = subprocess.run([str(TORCH), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    about = {"torch": torch, "cores": len(os.sched_getaffinity(0)), "turns": TURNS, "batch": BATCH}
    write_json(out, provenance() | about | {"sequence_length": SEQUENCE, "rows": rows})


GPU_RUNS = (("gpt-50m", 1024, 64), ("gpt-130m", 1024, 32), ("gpt-350m", 1024, 16), ("gpt-1300m", 2048, 8))
"""Shape, sequence length, and the microbatch to begin with: halved while memory does not suffice."""
GPU_BATCH_TOKENS, GPU_STEPS = 524_288, 20


def gpu(out: Path) -> None:
    """Tokens per second and MFU of each shape on one device, in bfloat16; causal attention counted halved."""
    import jax

    if jax.default_backend() != "gpu":
        raise SystemExit(f"no GPU here: JAX found {jax.devices()[0].device_kind}. Nothing was measured.")
    rows = []
    for name, length, microbatch in GPU_RUNS:
        rows.append(time_on_gpu(name, length, microbatch))
        print(json.dumps(rows[-1]), flush=True)
        about = {"convention": "exact_causal: 6 FLOPs a weight and token, causal attention counted halved"}
        write_json(out, provenance() | {"device": jax.devices()[0].device_kind} | about | {"rows": rows})


def time_on_gpu(name: str, length: int, microbatch: int) -> dict[str, Any]:
    import jax
    import numpy as np

    from scaling.accounting import counts
    from scaling.accounting.model_shapes import find_published_model
    from scaling.model import sharding
    from scaling.training.train_step import build_program

    data = DataConfig(
        sequence_length=length, batch_sequences=GPU_BATCH_TOKENS // length, microbatch_sequences=microbatch
    )
    config = RunConfig(
        model=find_published_model(name).model,
        data=data,
        precision=PrecisionConfig("bfloat16"),
        tokens=10 * GPU_BATCH_TOKENS,
    )
    mesh = sharding.make_mesh(MeshConfig(data=1))
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (data.batch_sequences, length + 1))
    try:
        program = build_program(config, mesh)
        state = program.init(jax.random.key(0))
        batch = sharding.put_batch(lambda rows: tokens.astype(np.int32)[rows], tokens.shape, mesh)
        start = time.perf_counter()
        state, metrics = program.step(state, batch, Rates(1e-4, 0.1))
        float(metrics["loss"])
        compile_s = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(GPU_STEPS):
            state, metrics = program.step(state, batch, Rates(1e-4, 0.1))
        float(metrics["loss"])
        seconds = (time.perf_counter() - start) / GPU_STEPS
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or microbatch == 1:
            raise
        return time_on_gpu(name, length, microbatch // 2)
    rate = GPU_BATCH_TOKENS / seconds
    peak = counts.peak_flops(jax.devices()[0].device_kind, "bfloat16")
    flops = counts.train_flops(config.model, length, 1, "exact_causal")
    row = {"shape": name, "params": counts.count_params(config.model).total, "sequence_length": length}
    row |= {"microbatch": microbatch, "kernel": program.model.kernel, "seconds_a_step": seconds}
    return row | {"tokens_per_second": rate, "mfu": rate * flops / peak if peak else None, "first_step_s": compile_s}


def provenance() -> dict[str, Any]:
    """Date, hardware and versions, without a name of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    packages = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor or platform.processor(),
        "python": platform.python_version(),
        **packages,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cpu", "gpu", "serve"), help="serve is for the benchmark itself")
    asked = parser.parse_args().what
    if asked == "serve":
        serve(sys.stdin)
    else:
        (cpu if asked == "cpu" else gpu)(HERE / f"train_{asked}.json")
