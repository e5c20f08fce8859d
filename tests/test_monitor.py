from __future__ import annotations

import math
import os
import signal
import time

from scaling.config import RunConfig
from scaling.monitor import DIVERGED_STEPS, Clock, Watch, sigterm


def test_a_loss_that_is_not_finite_is_divergence_at_once() -> None:
    assert Watch(5.0).reason(7, math.nan) == "loss is nan at step 7"
    assert "inf" in Watch(5.0).reason(7, math.inf)


def test_a_loss_above_ln_v_is_divergence_only_when_it_lasts() -> None:
    watch = Watch(5.0)
    for step in range(DIVERGED_STEPS - 1):
        assert watch.reason(step, 5.1) == ""
    assert watch.reason(0, 4.9) == "", "one good step starts the count again"
    for step in range(DIVERGED_STEPS - 1):
        assert watch.reason(step, 5.1) == ""
    assert "above ln V" in watch.reason(99, 5.1)


def test_rates_leave_out_the_first_step_and_pauses() -> None:
    clock = Clock(RunConfig())
    time.sleep(0.2)
    clock.tick()
    with clock.paused():
        time.sleep(0.2)
    time.sleep(0.02)
    clock.tick()
    assert 0.02 <= clock.seconds < 0.15
    assert clock.tokens_per_second == RunConfig().data.batch_tokens / clock.seconds


def test_sigterm_is_told_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before
