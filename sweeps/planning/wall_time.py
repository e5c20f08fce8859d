"""Estimates before training: the wall time of runs on this machine, and their cost on TPU slices.

`scaling sweep plan` prints both; the runner orders cells and sizes populations by the wall time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaling.accounting import counts
from scaling.config.run_config import RunConfig
from sweeps.local.launch import Slot
from sweeps.local.processes import ONE_THREAD_VARIABLES

if TYPE_CHECKING:
    from scaling.accounting.chips import Topology
    from scaling.performance.roofline import Estimate

TIME_MATMUL_PROGRAM = """
import time, numpy
a = numpy.ones((384, 384), numpy.float32)
best = 1e9
for _ in range(40):
    start = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - start)
print(2 * 384**3 / best)
"""
START_SECONDS = 9.0  # a run on one core: import, compile, write a checkpoint
STEP_SECONDS = 5e-4  # a step: dispatch and the optimizer
TOKEN_SECONDS = 1e-6  # a token, beside matrix products: norms, softmax
SUSTAINED_FRACTION = 0.36  # of the measured product rate that the narrow products of small models reach
FALLBACK_CORE_FLOPS = 2e10  # FLOP/s of a core, where the measurement fails


@dataclass(frozen=True)
class WallTimeModel:
    """A linear model of the wall time of a run: seconds for the run, for each step and token, and for its FLOPs.

    source: where the numbers come from, for the summary of a plan.
    """

    per_run: float
    per_step: float
    per_token: float
    flops_per_second: float
    source: str

    def estimate_seconds(self, config: RunConfig) -> float:
        """Estimated wall seconds of one run in one slot: start-up + steps + tokens + FLOPs at the sustained rate."""
        # Validation is a forward pass: a third of the FLOPs of a training step on as many tokens. A branch trains its
        # own steps only, after its trunk's.
        tokens = config.own_steps * config.data.batch_tokens + config.measure.validation_tokens / 3
        flops = counts.train_flops(config.model, config.data.sequence_length, round(tokens), "exact")
        work = tokens * self.per_token + flops / self.flops_per_second
        return self.per_run + config.own_steps * self.per_step + work


def wall_time_model(slot: Slot) -> WallTimeModel:
    """The model of one slot. On a CPU it times matrix products on one core now; on a GPU it is stated, not measured."""
    if slot.gpu:
        return WallTimeModel(
            40.0, 4e-3, 0.0, 1e14, "a stated model of a GPU: 40 s a run, 4 ms a step, 100 TFLOP/s; not measured"
        )
    core = measure_core_flops()
    cores = max(len(slot.cores), 1)
    source = f"{cores} core(s) a run at {core / 1e9:.0f} GFLOP/s in float32 products, timed just now; an estimate"
    # Small models do not use all cores fully: their speed grows about with the square root of the number of cores.
    return WallTimeModel(
        START_SECONDS, STEP_SECONDS, TOKEN_SECONDS / cores**0.5, SUSTAINED_FRACTION * core * cores**0.5, source
    )


def measure_core_flops() -> float:
    """FLOP/s of float32 matrix products on one core, timed for a tenth of a second in a single-threaded process."""
    command = [sys.executable, "-c", TIME_MATMUL_PROGRAM]
    done = subprocess.run(
        command, env=dict(os.environ) | ONE_THREAD_VARIABLES, capture_output=True, text=True, check=False
    )
    try:
        return float(done.stdout)
    except ValueError:
        return FALLBACK_CORE_FLOPS


@dataclass(frozen=True)
class TpuCost:
    """What runs would cost on a TPU slice, by the roofline of their compiled train steps; nothing is measured.

    topology: name of the slice. chips: of the slice. programs: distinct train steps. overlapped: chip-hours when
    compute, memory and network of a chip work at the same time. in_turn: chip-hours when they work one after another.
    """

    topology: str
    chips: int
    programs: int
    overlapped: float
    in_turn: float

    def __str__(self) -> str:
        hours = f"{self.overlapped:,.2f} to {self.in_turn:,.2f} chip-hours"
        return f"on {self.topology}: {hours}, by the roofline of {self.programs} compiled train steps; not measured"


def estimate_tpu_cost(
    configs: Iterable[RunConfig], target: Topology, cost: Callable[[RunConfig, Topology], Estimate]
) -> TpuCost:
    """The cost of runs on a TPU slice. Each distinct train step is compiled once, for the slice, on this CPU.

    cost: estimates a step of a config on a slice, as scaling.performance.compile_ahead.estimate_step does. Raises
    InputError when a run does not fit the slice.
    """
    estimates: dict[Any, Estimate] = {}
    overlapped, in_turn = 0.0, 0.0
    for config in configs:
        data = config.data
        shapes = (data.sequence_length, data.batch_sequences, data.microbatch_sequences)
        key = (config.model, shapes, config.optimizer.kind, config.precision, config.mesh)
        step = estimates[key] = estimates.get(key) or cost(config, target)
        hours = config.own_steps * target.chips / 3600
        overlapped, in_turn = overlapped + hours * step.overlapped_seconds, in_turn + hours * step.sequential_seconds
    return TpuCost(target.name, target.chips, len(estimates), overlapped, in_turn)
