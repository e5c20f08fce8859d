"""What watches a run while it trains: rates, divergence, signals, the progress bar.

Not in the design's list of modules: it keeps the loop in train.py linear and under 300 lines.
"""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scaling.accounting import counts
from scaling.config.run_config import RunConfig
from scaling.signals import handle_signals

DIVERGED_STEPS = 200
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(Exception):
    """A signal came; the state is saved and the same command goes on from it."""


@dataclass
class Clock:
    """Rates of this session: from its first finished step on, so without compilation, and without pauses."""

    config: RunConfig
    steps: int = -1
    seconds: float = 0.0
    last: float = field(default_factory=time.perf_counter)

    def tick(self) -> None:
        """One more step has finished."""
        now = time.perf_counter()
        self.seconds += now - self.last if self.steps >= 0 else 0.0
        self.steps, self.last = self.steps + 1, now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is nobody's."""
        before = time.perf_counter()
        yield
        self.last += time.perf_counter() - before

    @property
    def tokens_per_second(self) -> float:
        return self.steps * self.config.data.batch_tokens / self.seconds if self.seconds else math.nan

    def rates(self) -> dict[str, float]:
        """tokens_per_second, and mfu (exact_causal FLOPs) where the peak of the devices is published."""
        if not self.seconds:
            return {}
        c = self.config
        peak = counts.peak_flops(jax.devices()[0].device_kind, c.precision.compute)
        per_token = counts.train_flops(c.model, c.data.sequence_length, 1, "exact_causal")
        mfu = {"mfu": self.tokens_per_second * per_token / (peak * jax.device_count())} if peak else {}
        return {"tokens_per_second": self.tokens_per_second} | mfu


@dataclass
class DivergenceMonitor:
    """Notices divergence: a loss that is not finite, or above ln V for DIVERGED_STEPS steps on end within a session."""

    limit: float
    above: int = field(default=0)

    def divergence_reason(self, step: int, loss: float) -> str:
        """Empty while all is well."""
        self.above = self.above + 1 if loss > self.limit else 0
        if not math.isfinite(loss):
            return f"loss is {loss} at step {step}"
        if self.above >= DIVERGED_STEPS:
            return f"loss {loss:.3f} above ln V = {self.limit:.3f} for {self.above} steps, at step {step}"
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
    """Says on stderr each minute that the block still waits for `what`, and ends the process with an exit code and one
    line after `seconds`: for a wait inside XLA, which no exception reaches and which would end in a stack trace."""
    over, start = threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(min(every, max(start + seconds - time.monotonic(), 0.0))):
            waited = time.monotonic() - start
            if waited >= seconds:
                print(f"error: waited {waited:.0f} s for {what}: start every one of them", file=sys.stderr, flush=True)
                os._exit(code)
            print(f"waiting for {what}: {waited:.0f} s so far, at most {seconds:.0f}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, name="patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def progress_bar(name: str, steps: int, quiet: bool) -> Iterator[Callable[[int, float, float], None]]:
    """A progress bar on a terminal, nothing elsewhere. Yields show(step, loss, tokens per second)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = quiet or not sys.stderr.isatty() or jax.process_index() != 0
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        task = progress.add_task(name, total=steps, loss=math.nan, rate=0.0)
        yield lambda step, loss, rate: progress.update(task, completed=step, loss=loss, rate=rate)
