"""The verb `scaling profile`: traces a run's training step and prints what its time goes into."""

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
from rich.table import Table

from scaling.accounting import counts
from scaling.config.run_config import RunConfig
from scaling.data.shards import TokenShards, check_batches, limit_unique_tokens, open_shards
from scaling.errors import InputError
from scaling.files import write_json
from scaling.model import sharding
from scaling.performance import trace
from scaling.terminal import make_console
from scaling.training import multihost
from scaling.training.prefetch import prefetch
from scaling.training.train import StepInput, step_input
from scaling.training.train_step import Program, TrainState, build_program

DEFAULT = RunConfig()
WINDOW = "scaling profile"
TOP = 15


@dataclass(frozen=True)
class Profile:
    """The measured step of a run. wall: milliseconds of a step without the profiler; activity: what the profiler saw,
    which slows short operations; trace: the folder of the trace."""

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
    """Trace a run's training step and print the busy share of the devices, the gaps between steps, and the longest
    operations.

    The trace is kept in the folder --out: open it in Perfetto or XProf.

    Args:
        config: the fields of the run.
        folder: a run folder whose config.json the flags change.
        file: a config.json that the flags change, instead of the folder's own or the defaults.
        out: folder of the trace.
        steps: number of steps that are timed, and of steps that are traced after them; at least 2.
        warmup: number of steps before them; at least 1.
        json: also write what is printed to this file.
    """
    del folder, file  # scaling.cli has read them into `config`
    multihost.join_processes()
    measured = profile_run(config, out, steps, warmup)
    if jax.process_index() == 0:
        print_profile(measured)
        if json is not None:
            write_json(json, profile_to_json(measured))


def profile_run(
    config: RunConfig, out: Path, steps: int = 20, warmup: int = 5, host: Callable[[], object] = lambda: None
) -> Profile:
    """Builds the training step, warms it up, times `steps` steps, then traces as many. Batches are prefetched as in
    training.

    host: called after each step is dispatched; tests use it to slow the host. Raises InputError when the run does not
    fit the devices or the data, or when steps or warmup are too few.
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
    """Options of the profiler, without Python's own calls: tracing them slows the host and says nothing of the
    devices."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


@dataclass(frozen=True)
class Loop:
    """The training loop without logs and checkpoints: batches are prefetched, metrics fetched a step late."""

    config: RunConfig
    program: Program
    tokens: TokenShards
    host: Callable[[], object]

    def run(self, state: TrainState, steps: int) -> TrainState:
        """Trains that many steps and waits for the last one."""
        make = functools.partial(step_input, self.config, self.tokens, self.program.mesh)
        pending = None
        with prefetch(make, range(steps)) as feeds:
            for step_inputs in feeds:
                state, metrics = self.step(state, step_inputs)
                self.host()
                jax.device_get(pending)
                pending = metrics
        jax.block_until_ready((state, pending))
        return state

    def step(self, state: TrainState, inputs: StepInput) -> tuple[TrainState, Any]:
        """Dispatches one training step. Returns the new state and its metrics."""
        return self.program.step(state, inputs.tokens_BS, inputs.rates)

    def program_text(self, state: TrainState) -> str:
        """The HLO text of the compiled step."""
        inputs = step_input(self.config, self.tokens, self.program.mesh, 0)
        lowered = self.program.step.lower(state, inputs.tokens_BS, inputs.rates)  # pyrefly: ignore
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


def profile_to_json(measured: Profile) -> dict[str, Any]:
    """What --json writes: the facts of the tables, and every operation. Times in milliseconds per step, shares of 1."""
    return dataclasses.asdict(measured) | {"verdict": measured.activity.verdict}


def print_profile(measured: Profile) -> None:
    """Prints a table of the step, a table of its longest operations, and the verdict."""
    console, a = make_console(), measured.activity
    mfu = f", {measured.mfu:.1%} of peak FLOPs (exact causal)" if measured.mfu is not None else ""
    gap = "not known" if a.gap is None else f"{a.gap:.3f} ms ({a.gap / a.wall:.1%} of the wall)"
    rows = [
        ("wall a step", f"{measured.wall:.3f} ms, {measured.tokens_per_second:,.0f} tokens/s{mfu}"),
        ("  while traced", f"{a.wall:.3f} ms, {a.wall / measured.wall:.2f} times"),
        ("devices busy", f"{a.busy:.1%} of the wall; the idlest {a.least_busy:.1%}"),
        ("gap between steps", gap),
        ("time by kind", ", ".join(f"{kind} {share:.1%}" for kind, share in a.kinds.items())),
    ]
    title = (
        f"{measured.params:,} parameters, {measured.batch_tokens:,} tokens a step, attention {measured.kernel}, "
        f"{measured.devices} x {measured.device_kind}, {measured.steps} steps"
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
    console.print(f"{a.verdict}\nThe trace is in {measured.trace} (Perfetto: *.trace.json.gz; XProf: the folder).")
