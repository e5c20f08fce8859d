"""Measures how the best learning rate moves with width and depth under each parametrization, on text, on a CPU.

    python benchmarks/transfer.py            # writes benchmarks/transfer.json after every run; again to go on
    python benchmarks/transfer_report.py     # docs/transfer.png and docs/transfer.md from that file

Every run sees the same batches as the others of its seed. Where two parametrisations are one (simplest_equivalent)
their runs are one: muP over depth is standard over depth here, CompleteP over width is muP over width.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.progress import Progress

from scaling.accounting import counts
from scaling.config.run_config import (
    DataConfig,
    MeasureConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling.data.prepare import prepare
from scaling.data.shards import TokenShards, open_shards
from scaling.data.tokenizer import load_tokenizer
from scaling.files import write_json
from scaling.measurements import validation_loss
from scaling.model import sharding
from scaling.record.environment import describe_environment
from scaling.training.prefetch import prefetch
from scaling.training.schedule import step_rates
from scaling.training.train import step_input
from scaling.training.train_step import Program, build_program

Parametrization = Literal["standard", "mup", "completep"]
HERE = Path(__file__).parent
JSON = HERE / "transfer.json"
WIDTHS, DEPTHS = (16, 32, 64, 128), (1, 2, 4, 8)
BASE_WIDTH, BASE_DEPTH, HEAD_WIDTH = 32, 2, 16
RATES = tuple(2.0**power for power in range(-10, -2))
STEPS, BATCH, SEQUENCE = 400, 8, 64
VALIDATION_TOKENS = 16_384


@dataclass(frozen=True)
class Cell:
    """One program: all its learning rates and seeds share it."""

    parametrization: Parametrization
    width: int
    depth: int

    def config(self, data: DataConfig, rate: float, seed: int) -> RunConfig:
        """Heads of 16, queries and keys normalised, as in recipes; a tenth of the steps warm up, then cosine."""
        return RunConfig(
            model=ModelConfig(
                width=self.width,
                depth=self.depth,
                heads=self.width // HEAD_WIDTH,
                qk_norm=True,
                parametrization=self.parametrization,
                base_width=BASE_WIDTH,
                base_depth=BASE_DEPTH,
            ),
            data=data,
            optimizer=OptimizerConfig(learning_rate=rate),
            schedule=ScheduleConfig(warmup_tokens=STEPS // 10 * data.batch_tokens),
            measure=MeasureConfig(validation_tokens=VALIDATION_TOKENS),
            tokens=STEPS * data.batch_tokens,
            seed=seed,
        )


def cells() -> list[Cell]:
    """Standard everywhere, muP over widths, CompleteP over depths; the base size, where all are one, once."""
    by_width = [Cell(p, w, BASE_DEPTH) for w in WIDTHS for p in ("standard", "mup") if w != BASE_WIDTH]
    by_depth = [Cell(p, BASE_WIDTH, d) for d in DEPTHS for p in ("standard", "completep") if d != BASE_DEPTH]
    return [Cell("standard", BASE_WIDTH, BASE_DEPTH), *by_width, *by_depth]


def train_cell(
    cell: Cell, program: Program, tokens: TokenShards, data: DataConfig, rate: float, seed: int
) -> dict[str, Any]:
    """One run. loss: validation, nats per token; infinite where it diverged."""
    config, start = cell.config(data, rate, seed), time.process_time()
    state = program.init(jax.random.key(seed))
    with prefetch(functools.partial(step_input, config, tokens, program.mesh), range(config.steps)) as feeds:
        for step, given in enumerate(feeds):
            state, _ = program.step(state, given.tokens_BS, step_rates(step, config))
    measure = validation_loss.validation_loss(tokens, config.data.sequence_length, program.mesh)
    vocabulary = load_tokenizer(config.data.vocabulary)
    nats = measure.run(program.model, state.params, vocabulary, jax.random.key(0), VALIDATION_TOKENS)["nats"]
    loss = nats[0] if math.isfinite(nats[0]) else None
    run = {"loss": loss, "cpu_seconds": round(time.process_time() - start, 2), "run_id": config.run_id}
    return {**asdict(cell), "learning_rate": rate, "seed": seed, **run}


def train(directory: Path = Path("out/corpora"), json_file: Path = JSON, seeds: int = 2) -> None:
    """Trains what the file does not hold yet.

    Args:
      directory: Where the corpus is prepared, or will be.
      json_file: Where results go, after every run.
      seeds: Of initial weights and the order of batches.
    """
    prepare("stdlib", directory, backend="plain")
    tokens = open_shards(directory, "stdlib")
    data = DataConfig(
        corpus="stdlib",
        fingerprint=tokens.fingerprint,
        sequence_length=SEQUENCE,
        batch_sequences=BATCH,
        directory=str(directory),
    )
    facts = json.loads(json_file.read_text()) if json_file.exists() else empty_results(data)
    done = {run_key(run) for run in facts["runs"]}
    left = [(cell, seed) for seed in range(seeds) for cell in cells()]
    with Progress() as progress:
        bar = progress.add_task("learning rates", total=len(left) * len(RATES), completed=len(done))
        for cell, seed in left:
            missing = [r for r in RATES if run_key({**asdict(cell), "learning_rate": r, "seed": seed}) not in done]
            program = (
                build_program(cell.config(data, RATES[0], seed), sharding.make_mesh(MeshConfig())) if missing else None
            )
            for rate in missing:
                assert program is not None
                facts["runs"].append(train_cell(cell, program, tokens, data, rate, seed))
                write_json(json_file, facts)
                progress.advance(bar)


def empty_results(data: DataConfig) -> dict[str, Any]:
    """The file before its first run: what is common to all."""
    common = {"steps": STEPS, "batch_tokens": data.batch_tokens, "sequence_length": SEQUENCE, "corpus": data.corpus}
    base = {"base_width": BASE_WIDTH, "base_depth": BASE_DEPTH, "head_width": HEAD_WIDTH}
    tokens = STEPS * data.batch_tokens
    flops = [counts.train_flops(c.config(data, 1.0, 0).model, SEQUENCE, tokens, "exact") for c in cells()]
    return {
        "date": datetime.date.today().isoformat(),
        "environment": describe_environment("blocked"),
        "common": common | base | {"fingerprint": data.fingerprint, "validation_tokens": VALIDATION_TOKENS},
        "flops_a_seed": len(RATES) * sum(flops),
        "runs": [],
    }


def run_key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("parametrization", "width", "depth", "learning_rate", "seed"))


if __name__ == "__main__":
    tyro.cli(train)
