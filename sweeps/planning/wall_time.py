"""How long a run will take, before it is spent: an estimate, which says where it comes from.

Not in the design's list of modules: the rate of a machine is a concept of its own beside the plan.
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

MATMUL = """
import time, numpy
a = numpy.ones((384, 384), numpy.float32)
best = 1e9
for _ in range(40):
    start = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - start)
print(2 * 384**3 / best)
"""
START_SECONDS = 9.0  # import, compile, checkpoint, on one core
STEP_SECONDS = 5e-4  # dispatch, the optimizer
TOKEN_SECONDS = 1e-6  # what is not a product: norms, softmax
SUSTAINED_FRACTION = 0.36  # of the product rate, in the narrow products of small models
FALLBACK_CORE_FLOPS = 2e10  # FLOP/s, where the measurement fails


@dataclass(frozen=True)
class WallTimeModel:
    """A model of wall time: seconds a run (start, compile), a step and a token, and FLOP/s beyond those.

    source: says where the numbers come from.
    """

    per_run: float
    per_step: float
    per_token: float
    flops_per_second: float
    source: str

    def estimate_seconds(self, config: RunConfig) -> float:
        """Estimated wall seconds of one run in one slot."""
        validation = config.measure.validation_tokens / 3
        tokens = config.own_steps * config.data.batch_tokens + validation
        flops = counts.train_flops(config.model, config.data.sequence_length, round(tokens), "exact")
        work = tokens * self.per_token + flops / self.flops_per_second
        return self.per_run + config.own_steps * self.per_step + work


def wall_time_model(slot: Slot) -> WallTimeModel:
    """The rate of one slot. On a CPU from products timed on one core just now; on a GPU stated, not measured."""
    if slot.gpu:
        return WallTimeModel(
            40.0, 4e-3, 0.0, 1e14, "a stated model of a GPU: 40 s a run, 4 ms a step, 100 TFLOP/s; not measured"
        )
    core = measure_core_flops()
    cores = max(len(slot.cores), 1)
    source = f"{cores} core(s) a run at {core / 1e9:.0f} GFLOP/s in float32 products, timed just now; an estimate"
    return WallTimeModel(
        START_SECONDS, STEP_SECONDS, TOKEN_SECONDS / cores**0.5, SUSTAINED_FRACTION * core * cores**0.5, source
    )


def measure_core_flops() -> float:
    """FLOP/s of float32 matrix products on one core, timed for a tenth of a second in a process of its own."""
    command = [sys.executable, "-c", MATMUL]
    found = subprocess.run(
        command, env=dict(os.environ) | ONE_THREAD_VARIABLES, capture_output=True, text=True, check=False
    )
    try:
        return float(found.stdout)
    except ValueError:
        return FALLBACK_CORE_FLOPS


@dataclass(frozen=True)
class TpuCost:
    """What runs would cost on TPUs that are not there: chip-hours when the engines of a chip overlap perfectly, and
    when they do not at all. Rooflines, not measurements. programs: distinct train steps, each compiled once."""

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
    """The price of runs on a topology; cost: as compile_ahead.estimate_step. Raises InputError where
    one does not fit it."""
    made: dict[Any, Estimate] = {}
    overlapped, in_turn = 0.0, 0.0
    for config in configs:
        data = config.data
        shapes = (data.sequence_length, data.batch_sequences, data.microbatch_sequences)
        key = (config.model, shapes, config.optimizer.kind, config.precision, config.mesh)
        step = made[key] = made.get(key) or cost(config, target)
        hours = config.own_steps * target.chips / 3600
        overlapped, in_turn = overlapped + hours * step.overlapped_seconds, in_turn + hours * step.sequential_seconds
    return TpuCost(target.name, target.chips, len(made), overlapped, in_turn)
