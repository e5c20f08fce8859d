"""A process that makes no progress is said, ended and tried again; a slow one is left alone."""

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.record.run_folder import METRICS, RUNS
from sweeps.commands.run import run_locally
from sweeps.running import attempt_log, progress_watch, running_attempts
from sweeps.running.attempt_log import RetryBudgets
from sweeps.running.claims import Claim
from sweeps.running.progress_watch import ProgressWatch, allowed_silence
from sweeps.running.running_attempts import Attempt
from tests.support.stand_in_sweep import count_starts, read_result_rows, stand_in_command, stand_in_plan


class Asleep:
    """A process that neither ends nor writes."""

    def poll(self) -> None:
        return None

    def terminate(self) -> None:
        pass

    def kill(self) -> None:
        pass


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    (cell,) = stand_in_plan(tmp_path, "").cells
    claim = Claim(tmp_path / RUNS / cell.run_id, None)
    claim.folder.mkdir(parents=True)
    return Attempt({cell.run_id: claim}, (cell,), Asleep(), ())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """time.monotonic() as the test sets it."""
    now = {"seconds": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["seconds"])
    return now


def watch_for(watch: ProgressWatch, attempt: Attempt, clock: dict[str, float], seconds: float) -> list[float]:
    """Looks every 10 seconds; returns the silences that were yielded, rounded."""
    yielded = []
    for _ in range(int(seconds / 10)):
        clock["seconds"] += 10
        yielded += [round(silence) for _, silence, _ in watch.look([attempt])]
    return yielded


def test_silence_is_said_ever_less_often_and_counted_until_the_timeout(attempt, clock):
    watch = ProgressWatch(600.0, looked_at=0.0)
    assert watch_for(watch, attempt, clock, 640) == [60, 120, 240, 480, 600, 610, 620, 630]


@pytest.mark.parametrize("sign", [METRICS, "log.txt", "checkpoints/4.orbax-checkpoint-tmp/default/d"])
def test_any_file_of_the_process_is_progress_and_those_of_the_runner_are_not(attempt, clock, sign):
    (folder,) = (claim.folder for claim in attempt.claims.values())
    watch = ProgressWatch(600.0, looked_at=0.0)
    assert watch_for(watch, attempt, clock, 60) == []
    (folder / "lease.json").write_text("{}")
    attempt_log.record_begin(folder)
    assert watch_for(watch, attempt, clock, 10) == [60]
    (folder / sign).parent.mkdir(parents=True, exist_ok=True)
    (folder / sign).write_text("1")
    assert watch_for(watch, attempt, clock, 60) == []
    stat = (folder / sign).stat()
    os.utime(folder / sign, ns=(stat.st_atime_ns, stat.st_mtime_ns + 5 * 10**9))
    assert watch_for(watch, attempt, clock, 60) == []


def test_time_in_which_the_runner_itself_slept_is_no_silence(attempt, clock):
    watch = ProgressWatch(600.0, looked_at=0.0)
    watch_for(watch, attempt, clock, 20)
    clock["seconds"] += 10_000
    assert list(watch.look([attempt])) == []


def test_slow_steps_and_large_evaluations_may_take_longer(tmp_path, attempt):
    (cell,), (folder,) = attempt.cells, (claim.folder for claim in attempt.claims.values())
    config = cell.config
    assert allowed_silence(cell, folder, 600.0) == 600.0
    (folder / "lease.json").write_text("{}")
    speed = config.data.batch_tokens / 100  # a step takes 100 s
    (folder / METRICS).write_text(f'{{"step": 1, "tokens": 1, "tokens_per_second": {speed}}}\n')
    measure = dataclasses.replace(config.measure, validation_tokens=100 * config.data.batch_tokens)
    small = dataclasses.replace(measure, validation_tokens=config.data.batch_tokens)
    for chosen, seconds in ((small, 5_000.0), (measure, 10_000.0)):
        slow = dataclasses.replace(cell, config=dataclasses.replace(config, measure=chosen))
        assert allowed_silence(slow, folder, 600.0) == pytest.approx(seconds)


def test_a_stuck_process_is_killed_and_its_run_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running_attempts, "STUCK_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(progress_watch, "SILENT_STEPS", 1)
    plan = stand_in_plan(tmp_path, "stuck_once", "stuck")
    budgets = RetryBudgets(progress_timeout=3.0)
    assert run_locally(tmp_path, jobs=2, command=stand_in_command(), budgets=budgets) == 1
    once, always = (tmp_path / RUNS / cell.run_id for cell in plan.cells)
    rows = read_result_rows(tmp_path)
    assert [rows[run.name]["status"] for run in (once, always)] == ["done", "failed"]
    assert dict(attempt_log.count_outcomes(once)) == {"failed": 1, "done": 1}
    assert dict(attempt_log.count_outcomes(always)) == {"failed": 2}
    assert "no progress" in attempt_log.last_reason(always)
    assert "no progress" in rows[always.name]["reason"]
    assert count_starts(tmp_path) == {once.name: 2, always.name: 2}
    assert re.search(rf"{once.name}.*no progress.*--progress-timeout", capsys.readouterr().out)
