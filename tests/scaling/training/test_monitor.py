from __future__ import annotations

import math
import os
import re
import signal
import time

import jax
import pytest

from scaling.accounting import counts
from scaling.config.run_config import PrecisionConfig, RunConfig
from scaling.training.monitor import (
    DIVERGED_STEPS,
    STOP_SIGNALS,
    Clock,
    DivergenceMonitor,
    stop_signals,
    timeout_with_notice,
)


def test_a_loss_that_is_not_finite_is_divergence_at_once() -> None:
    assert re.search(r"\bnan\b.*\b7\b", DivergenceMonitor(5.0).divergence_reason(7, math.nan))
    assert re.search(r"\binf\b.*\b7\b", DivergenceMonitor(5.0).divergence_reason(7, math.inf))


def test_a_loss_above_ln_v_is_divergence_only_when_it_lasts() -> None:
    watch = DivergenceMonitor(5.0)
    for step in range(DIVERGED_STEPS - 1):
        assert watch.divergence_reason(step, 5.1) == ""
    assert watch.divergence_reason(0, 4.9) == "", "one good step starts the count again"
    for step in range(DIVERGED_STEPS - 1):
        assert watch.divergence_reason(step, 5.1) == ""
    assert re.search(rf"\b5\.1.*\b5\.0.*\b{DIVERGED_STEPS}\b.*\b99\b", watch.divergence_reason(99, 5.1))


def test_throughput_leaves_out_the_first_step_and_pauses() -> None:
    clock = Clock(RunConfig())
    time.sleep(0.2)
    clock.tick()
    with clock.paused():
        time.sleep(0.2)
    time.sleep(0.02)
    clock.tick()
    assert 0.02 <= clock.seconds < 0.15
    assert clock.tokens_per_second == RunConfig().data.batch_tokens / clock.seconds


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_reported_and_the_old_handler_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop()
    assert signal.getsignal(number) is before


def test_an_ignored_ctrl_c_stays_ignored_and_an_ignored_sigusr1_is_handled() -> None:
    """A run started by nohup or `&` ignores ctrl-C; sweeps/local/child.py has a run ignore SIGUSR1 until it trains."""
    earlier = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert not stop()
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
            assert stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def test_a_second_ctrl_c_interrupts() -> None:
    with stop_signals(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def test_a_long_wait_is_printed_and_a_short_one_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with timeout_with_notice("the other half", seconds=60, code=74, every=0.05):
        time.sleep(0.13)
    said = capfd.readouterr().err.splitlines()
    assert 1 <= len(said) <= (time.monotonic() - began) / 0.05, said
    assert all("the other half" in line for line in said)
    with timeout_with_notice("the other half", seconds=60, code=74):
        pass
    assert capfd.readouterr().err == ""


def test_mfu_is_exact_causal_flops_over_the_published_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chip:
        device_kind = "NVIDIA H100 80GB HBM3"

    config = RunConfig(precision=PrecisionConfig(compute="bfloat16"))
    clock = Clock(config, steps=10, seconds=2.0)
    assert "mfu" not in clock.throughput(), "a CPU has no published peak"
    monkeypatch.setattr(jax, "devices", lambda: [Chip(), Chip()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    flops = counts.train_flops(config.model, 128, 10 * config.data.batch_tokens, "exact_causal")
    assert clock.throughput()["mfu"] == pytest.approx(flops / 2.0 / (2 * 989e12))
