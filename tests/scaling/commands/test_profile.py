"""The verb on a real run on this machine's CPU. What it makes of given traces: test_trace.py."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from scaling import cli
from scaling.accounting import counts
from scaling.commands.profile import Profile, profile_run
from scaling.config.run_config import RunConfig, to_dict
from scaling.errors import InputError
from scaling.files import write_json
from scaling.performance.trace import WAITING_FOR_HOST

STEPS = 8


@pytest.fixture(scope="module")
def usual(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return profile_run(tiny, tmp_path_factory.mktemp("trace"), STEPS, warmup=2)


def test_its_numbers_agree_with_each_other(usual: Profile) -> None:
    a = usual.activity
    assert 0 < a.least_busy <= a.busy <= 1 + 1e-6
    assert a.op_time >= a.busy * a.wall * (1 - 1e-6), "operations that overlap count each, busy time once"
    assert sum(op.milliseconds for op in a.ops) == pytest.approx(a.op_time)
    assert sum(op.share for op in a.ops) == pytest.approx(1)
    assert sum(a.kinds.values()) == pytest.approx(1)
    assert set(a.kinds) <= {"product", "attention", "elementwise", "copy"}, "one device has no collective"
    assert min(a.kinds["product"], a.kinds["attention"], a.kinds["elementwise"]) > 0.02
    assert all(op.calls == round(op.calls) >= 1 for op in a.ops), "every step runs the same program"
    assert a.gap is not None
    assert 0 <= a.gap <= a.wall
    assert usual.tokens_per_second == pytest.approx(usual.batch_tokens / usual.wall * 1e3)


def test_a_host_that_is_slow_is_seen(tiny: RunConfig, usual: Profile, tmp_path: Path) -> None:
    """A device that waits three steps' time for every step."""
    pause = max(3 * usual.activity.wall, 20.0)
    slow = profile_run(tiny, tmp_path, STEPS, warmup=2, host=lambda: time.sleep(pause / 1e3))
    a = slow.activity
    assert a.wall > pause
    assert a.busy < min(0.5, usual.activity.busy)
    assert a.gap is not None
    assert a.gap > pause / 2
    assert a.verdict.startswith(WAITING_FOR_HOST)


def test_the_verb_prints_a_table_writes_the_same_and_keeps_the_trace(
    tiny: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers rolled: the loop holds its body and is no operation itself."""
    monkeypatch.chdir(tmp_path)
    write_json(Path("c.json"), to_dict(tiny))
    flags = ["--model.unroll", "1", "--steps", "3", "--warmup", "1", "--out", "here", "--json", "p.json"]
    with pytest.raises(SystemExit) as end:
        cli.main(["profile", "--file", "c.json", *flags])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    found = json.loads(Path("p.json").read_text())
    assert found["verdict"] in " ".join(shown.split())
    assert found["activity"]["ops"][0]["name"] in shown
    assert f"{counts.count_params(tiny.model).total:,} " in shown
    assert found["steps"] == 3
    assert found["kernel"]
    assert math.isfinite(found["wall"])
    assert not any(op["name"].startswith("while") for op in found["activity"]["ops"])
    assert max(op["calls"] for op in found["activity"]["ops"]) >= 2, "what a loop runs is run once a layer"
    assert list(Path("here").rglob("*.xplane.pb"))
    assert not Path("out").exists()


def test_too_few_steps_are_refused(tiny: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"steps\b.{1,5}\b1\b.*warmup\b.{1,5}\b1\b"):
        profile_run(tiny, tmp_path, steps=1, warmup=1)
    assert list(tmp_path.iterdir()) == []
