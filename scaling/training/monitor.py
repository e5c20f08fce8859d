"""Watches a run while it trains: its throughput, divergence, signals to stop, waits, and the progress bar."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scaling.accounting import counts
from scaling.config.run_config import RunConfig
from scaling.signals import handle_signals
from scaling.terminal import make_console

DIVERGED_STEPS = 200
"""Consecutive steps with a loss above ln V, the loss of a uniform guess, after which a run counts as diverged."""
SIGN_OF_LIFE_SECONDS = 5.0
"""Least time between two renewals of metrics.jsonl by steps that are not logged."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(Exception):
    """Raised when a signal stopped the training: the state is saved, and the same command resumes from it."""


@dataclass
class Clock:
    """Measures the throughput of this session, from its first finished step on, so without compilation, and without
    pauses. steps: those timed, -1 before the first has finished; seconds: their time; last: when the latest finished;
    signed_at: when `is_sign_of_life_due` was last true.
    """

    config: RunConfig
    steps: int = -1
    seconds: float = 0.0
    last: float = field(default_factory=time.perf_counter)
    signed_at: float = -math.inf

    def tick(self) -> None:
        """Counts one more finished step."""
        now = time.perf_counter()
        self.seconds += now - self.last if self.steps >= 0 else 0.0
        self.steps, self.last = self.steps + 1, now

    def is_sign_of_life_due(self) -> bool:
        """Whether this is the first call, or the first for SIGN_OF_LIFE_SECONDS that returns true."""
        is_due = time.perf_counter() - self.signed_at >= SIGN_OF_LIFE_SECONDS
        self.signed_at = time.perf_counter() if is_due else self.signed_at
        return is_due

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside the block out of `seconds`."""
        before = time.perf_counter()
        yield
        self.last += time.perf_counter() - before

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the timed steps; nan before there are any."""
        return self.steps * self.config.data.batch_tokens / self.seconds if self.seconds else math.nan

    def throughput(self) -> dict[str, float]:
        """tokens_per_second, and mfu (model FLOPs utilization, by exact_causal FLOPs) where the peak of the devices is
        published; empty before a step is timed."""
        if not self.seconds:
            return {}
        c = self.config
        peak = counts.peak_flops(jax.devices()[0].device_kind, c.precision.compute)
        per_token = counts.train_flops(c.model, c.data.sequence_length, 1, "exact_causal")
        mfu = {"mfu": self.tokens_per_second * per_token / (peak * jax.device_count())} if peak else {}
        return {"tokens_per_second": self.tokens_per_second} | mfu


@dataclass
class DivergenceMonitor:
    """Notices divergence: a loss that is not finite, or one above `limit` (ln V) for DIVERGED_STEPS consecutive steps
    of one session. steps_above: how many of the latest steps in a row were above it."""

    limit: float
    steps_above: int = field(default=0)

    def divergence_reason(self, step: int, loss: float) -> str:
        """Why the run has diverged, or "". step: counted from 1, as in metrics.jsonl; loss: nats per token."""
        self.steps_above = self.steps_above + 1 if loss > self.limit else 0
        if not math.isfinite(loss):
            return f"loss is {loss} at step {step}"
        if self.steps_above >= DIVERGED_STEPS:
            return f"loss {loss:.3f} above ln V = {self.limit:.3f} for {self.steps_above} steps, at step {step}"
        return ""


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal to stop has arrived: SIGTERM, SIGUSR1 or SIGUSR2, which
    schedulers send ahead of a preemption and which would otherwise end the run at once, or ctrl-C.

    A second ctrl-C raises KeyboardInterrupt. Outside the main thread no signal ever arrives (scaling.signals).
    """
    received: list[int] = []

    def record(number: int) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    with handle_signals(STOP_SIGNALS, record):
        yield lambda: bool(received)


@contextlib.contextmanager
def timeout_with_notice(what: str, seconds: float, code: int, every: float = 60.0) -> Iterator[None]:
    """Ends the process with exit code `code` and one line on stderr when the block takes longer than `seconds`; until
    then prints on stderr, `every` so many seconds, that it still waits for `what`.

    For a wait inside XLA, which no Python exception can interrupt and which would end in a stack trace.
    """
    finished, start = threading.Event(), time.monotonic()

    def watch() -> None:
        while not finished.wait(min(every, max(start + seconds - time.monotonic(), 0.0))):
            waited = time.monotonic() - start
            if waited >= seconds:
                print(f"error: waited {waited:.0f} s for {what}: start every one of them", file=sys.stderr, flush=True)
                os._exit(code)
            print(f"waiting for {what}: {waited:.0f} s so far, at most {seconds:.0f}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, name="timeout", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


@contextlib.contextmanager
def progress_bar(name: str, steps: int, quiet: bool) -> Iterator[Callable[[int, float, float], None]]:
    """Shows a progress bar on a terminal, and nothing elsewhere. Yields show(step, loss, tokens per second)."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = quiet or not sys.stderr.isatty() or jax.process_index() != 0
    with Progress(*columns, console=make_console(stderr=True), disable=hidden) as progress:
        task = progress.add_task(name, total=steps, loss=math.nan, rate=0.0)
        yield lambda step, loss, rate: progress.update(task, completed=step, loss=loss, rate=rate)
