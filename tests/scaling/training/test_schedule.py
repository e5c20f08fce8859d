from __future__ import annotations

import pytest

from scaling.config.run_config import DataConfig, OptimizerConfig, RunConfig, ScheduleConfig
from scaling.training.schedule import learning_rate, step_learning_rate

OPTIMIZER = OptimizerConfig(learning_rate=2.0)


@pytest.mark.parametrize(
    ("schedule", "tokens", "expected"),
    [
        (ScheduleConfig(warmup_tokens=100), 0, 0.0),
        (ScheduleConfig(warmup_tokens=100), 50, 1.0),
        (ScheduleConfig(warmup_tokens=100), 100, 2.0),
        (ScheduleConfig(warmup_tokens=100), 550, 1.0),
        (ScheduleConfig(warmup_tokens=100), 1000, 0.0),
        (ScheduleConfig(warmup_tokens=100, final_fraction=0.1), 1000, 0.2),
        (ScheduleConfig(warmup_tokens=100, final_fraction=0.1), 550, 1.1),
        (ScheduleConfig(kind="wsd", warmup_tokens=100), 800, 2.0),
        (ScheduleConfig(kind="wsd", warmup_tokens=100), 900, 1.0),
        (ScheduleConfig(kind="wsd", warmup_tokens=100), 1000, 0.0),
        (ScheduleConfig(kind="wsd", cooldown_fraction=1.0, warmup_tokens=100), 550, 1.0),
        (ScheduleConfig(kind="wsd", cooldown_fraction=0.0), 999, 2.0),
    ],
)
def test_schedule(schedule: ScheduleConfig, tokens: int, expected: float) -> None:
    assert learning_rate(tokens, OPTIMIZER, schedule, 1000) == pytest.approx(expected)


def test_no_step_is_spent_at_zero() -> None:
    config = RunConfig(
        data=DataConfig(batch_sequences=1, sequence_length=10),
        schedule=ScheduleConfig(warmup_tokens=20),
        tokens=109,
    )
    rates = [step_learning_rate(step, config) for step in range(config.steps)]
    assert len(rates) == 10
    assert min(rates) > 0
    assert rates[0] == pytest.approx(config.optimizer.learning_rate / 4)
