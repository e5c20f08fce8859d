"""The verb `scaling profile`: is a run's step compute-bound, and in what does it spend its time?"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from scaling.accounting import counts
from scaling.config.run_config import RunConfig
from scaling.data.shards import TokenShards, check_batches, limit_unique_tokens, open_shards
from scaling.errors import InputError
from scaling.files import write_json
from scaling.model import sharding
from scaling.performance import trace
from scaling.training import multihost
from scaling.training.prefetch import prefetch
from scaling.training.train import StepInput, step_input
from scaling.training.train_step import Program, TrainState, build_program

DEFAULT = RunConfig()
WINDOW = "scaling profile"
TOP = 15


@dataclass(frozen=True)
class Profile:
    """wall: milliseconds of a step without the profiler; activity: with it, which slows short operations."""

    run_id: str
    params: int
    batch_tokens: int
    kernel: str
    devices: int
    device_kind: str
    steps: int
    wall: float
    tokens_per_second: float
    mfu: float | None
    activity: trace.Activity
    trace: str


def profile(
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = DEFAULT,
    folder: Path | None = None,
    file: Path | None = None,
    out: Path = Path("out/profile"),
    steps: int = 20,
    warmup: int = 5,
    json: Path | None = None,
) -> None:
    """Traces a run's training step: busy share of the devices, gaps, and what the time goes into.

    The trace stays in the folder --out: open it in Perfetto or XProf.

    Args:
        config: every field of the run.
        folder: a run folder whose config.json the flags change.
        file: a config.json that the flags change, in place of the folder's.
        out: folder of the trace.
        steps: number of steps that are timed, and then traced; at least 2.
        warmup: number of steps before that; at least 1.
        json: also write the printed facts to this file.
    """
    del folder, file  # scaling.cli has read them into `config`
    multihost.join_processes()
    found = profile_run(config, out, steps, warmup)
    if jax.process_index() == 0:
        show(found)
        if json is not None:
            write_json(json, facts(found))


def profile_run(
    config: RunConfig, out: Path, steps: int = 20, warmup: int = 5, host: Callable[[], object] = lambda: None
) -> Profile:
    """Builds the real step, warms it up, times `steps` steps, then traces as many. Batches come as in training.

    host: called after each step is dispatched, as whatever else the host may have to do. Raises InputError when the
    run does not fit the devices or the data, or steps and warm-up are too few.
    """
    if steps < 2 or warmup < 1:
        raise InputError(f"steps = {steps}, warmup = {warmup}: must be at least 2 and 1")
    data = config.data
    tokens = limit_unique_tokens(
        open_shards(data.directory, data.corpus, data.vocabulary, data.fingerprint), data.unique_tokens
    )
    check_batches(
        tokens,
        sequence_length=data.sequence_length,
        validation_tokens=config.measure.validation_tokens,
        vocab_size=config.model.vocab_size,
    )
    program = build_program(config, sharding.make_mesh(config.mesh))
    loop = Loop(config, program, tokens, host)
    state = loop.run(program.init(jax.random.key(config.seed)), warmup)
    start = time.perf_counter()
    state = loop.run(state, steps)
    wall = (time.perf_counter() - start) / steps
    with jax.profiler.trace(out, profiler_options=_options()), jax.profiler.TraceAnnotation(WINDOW):
        state = loop.run(state, steps)
    of_kind, containers = trace.operation_kinds(loop.program_text(state))
    activity = trace.measure_activity(trace.read_trace(out, WINDOW, containers), of_kind, steps)
    return _profile(config, program, wall, activity, steps, out)


def _options() -> Any:
    """Python's own calls are left out: to trace them slows the host and tells nothing of the devices."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


@dataclass(frozen=True)
class Loop:
    """The training loop without its records: batches made ahead, metrics fetched a step late."""

    config: RunConfig
    program: Program
    tokens: TokenShards
    host: Callable[[], object]

    def run(self, state: TrainState, steps: int) -> TrainState:
        """Returns when the last step is done."""
        make = functools.partial(step_input, self.config, self.tokens, self.program.mesh)
        pending = None
        with prefetch(make, range(steps)) as feeds:
            for given in feeds:
                state, metrics = self.step(state, given)
                self.host()
                jax.device_get(pending)
                pending = metrics
        jax.block_until_ready((state, pending))
        return state

    def step(self, state: TrainState, given: StepInput) -> tuple[TrainState, Any]:
        return self.program.step(state, given.tokens_BS, given.rates)

    def program_text(self, state: TrainState) -> str:
        given = step_input(self.config, self.tokens, self.program.mesh, 0)
        lowered = self.program.step.lower(state, given.tokens_BS, given.rates)  # pyrefly: ignore
        return lowered.compile().as_text()


def _profile(
    config: RunConfig, program: Program, wall: float, activity: trace.Activity, steps: int, out: Path
) -> Profile:
    model, data = config.model, config.data
    kind, devices = jax.devices()[0].device_kind, jax.device_count()
    peak = counts.peak_flops(kind, config.precision.compute)
    flops = counts.train_flops(model, data.sequence_length, data.batch_tokens, "exact_causal")
    return Profile(
        run_id=config.run_id,
        params=counts.count_params(model).total,
        batch_tokens=data.batch_tokens,
        kernel=program.model.kernel,
        devices=devices,
        device_kind=kind,
        steps=steps,
        wall=wall * 1e3,
        tokens_per_second=data.batch_tokens / wall,
        mfu=flops / wall / (peak * devices) if peak else None,
        activity=activity,
        trace=str(out),
    )


def facts(found: Profile) -> dict[str, Any]:
    """What the table shows and all operations, for machines. Times in milliseconds a step, shares of 1."""
    return dataclasses.asdict(found) | {"verdict": found.activity.verdict}


def show(found: Profile) -> None:
    """Prints two short tables and the verdict."""
    console, a = Console(), found.activity
    mfu = f", {found.mfu:.1%} of peak FLOPs (exact causal)" if found.mfu is not None else ""
    gap = "cannot be told" if a.gap is None else f"{a.gap:.3f} ms ({a.gap / a.wall:.1%} of the wall)"
    rows = [
        ("wall a step", f"{found.wall:.3f} ms, {found.tokens_per_second:,.0f} tokens/s{mfu}"),
        ("  while traced", f"{a.wall:.3f} ms, {a.wall / found.wall:.2f} times"),
        ("devices busy", f"{a.busy:.1%} of the wall; the idlest {a.least_busy:.1%}"),
        ("gap between steps", gap),
        ("time by kind", ", ".join(f"{kind} {share:.1%}" for kind, share in a.kinds.items())),
    ]
    title = (
        f"{found.params:,} parameters, {found.batch_tokens:,} tokens a step, attention {found.kernel}, "
        f"{found.devices} x {found.device_kind}, {found.steps} steps"
    )
    summary = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for row in rows:
        summary.add_row(*row)
    console.print(summary)
    table = Table(title="Operations, of one step of one device", title_justify="left", box=None, pad_edge=False)
    for name, justify in (
        ("operation", "left"),
        ("kind", "left"),
        ("share", "right"),
        ("ms", "right"),
        ("runs", "right"),
    ):
        table.add_column(name, justify=justify)
    for op in itertools.islice(a.ops, TOP):
        table.add_row(op.name, op.kind, f"{op.share:.1%}", f"{op.milliseconds:.3f}", f"{op.calls:g}")
    console.print(table)
    console.print(f"{a.verdict}\nThe trace is in {found.trace} (Perfetto: *.trace.json.gz; XProf: the folder).")
