"""A damaged file of one run is named and costs that run alone: run, status, collect and eval go on with the others."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from scaling.config.run_config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from scaling.record.run_folder import (
    ATTEMPTS,
    CONFIG,
    ENVIRONMENT,
    EVALUATIONS,
    LEASE,
    METRICS,
    PLAN,
    RESULT,
    RUNS,
    read_metrics,
)
from sweeps.commands.run import run_locally
from sweeps.grids import Sweep
from sweeps.planning.plan import build_plan, freeze_plan, load_plan
from tests.conftest import in_process
from tests.support.stand_in_sweep import WALL_TIME, read_result_rows

DEEP = b"[" * 100_000
CELL = {"run_id": "0" * 12, "config": {}, "estimated_seconds": 1, "unique_tokens": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished sweep `simple`: two sizes, of which each trains for two budgets from one trunk."""
    folder = tmp_path_factory.mktemp("finished")
    base = RunConfig(
        data=DataConfig(corpus="simulated", sequence_length=32, batch_sequences=8),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(kind="wsd"),
    )
    models = [ModelConfig(width=width, depth=1, heads=1) for width in (8, 16)]
    cells = tuple(
        dataclasses.replace(base, model=model, tokens=tokens) for model in models for tokens in (64 * 256, 128 * 256)
    )
    freeze_plan(folder / "simple", build_plan(Sweep("simple", cells, "two sizes"), WALL_TIME))
    assert run_locally(folder / "simple") == 0
    return folder


@pytest.fixture
def sweep(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "simple", tmp_path / "simple"))


def roles(sweep: Path) -> tuple[Path, Path]:
    """The run folders of a branch, and of its trunk."""
    branch = next(cell for cell in load_plan(sweep).cells if cell.config.branch_of)
    return sweep / RUNS / branch.run_id, sweep / RUNS / branch.config.branch_of


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *((RESULT, content) for content in (b"", b"null", b"[]", b"\xff", DEEP, b'{"schema": 1, "status": "ok"}')),
        *((CONFIG, content) for content in (b"null", DEEP, b'{"model": []}', b'{"tokens": 1e999}', b"\xff\xfe")),
        *((ATTEMPTS, content) for content in (b"[1]\n", b'{"event": 3}\n', b'{"event": "ended"}\n', b"\xff}\n")),
        *((ENVIRONMENT, content) for content in (b"null", b'{"devices": 3}', DEEP)),
        *((EVALUATIONS, content) for content in (b"null\n", b'{"schema": 1, "step": "x"}\n')),
        *((METRICS, content) for content in (b'{"st\xffep": 1}\n', b'{"step": "1"}\n', DEEP + b"]\n", b"null\n")),
        *((LEASE, content) for content in (b"null", b'{"nonce": 3}', DEEP)),
    ],
)
@pytest.mark.parametrize("role", ["branch", "trunk"])
def test_every_verb_goes_on(sweep: Path, capfd: pytest.CaptureFixture[str], file: str, content: bytes, role: str):
    branch, trunk = roles(sweep)
    rows, damaged = read_result_rows(sweep), (branch if role == "branch" else trunk) / file
    damaged.write_bytes(content)
    verbs = [in_process("sweep", verb, "simple", "--out", sweep.parent, cwd=sweep) for verb in ("status", "collect")]
    assert [verb.returncode for verb in verbs] == [0, 0], [verb.stderr for verb in verbs]
    if file == RESULT:
        assert all(str(damaged) in verb.stdout + verb.stderr for verb in verbs)
        assert "3 done" in verbs[1].stdout
    again = in_process("sweep", "run", "simple", "--out", sweep.parent, cwd=sweep)
    assert again.returncode == 0, again.stderr
    assert read_result_rows(sweep) == rows
    if file == RESULT:
        assert (damaged.parent / f"{RESULT}.old").read_bytes() == content, "set aside, not deleted"


@pytest.mark.parametrize("file", [METRICS, CONFIG, ATTEMPTS, RESULT])
@pytest.mark.parametrize("content", [b'{"st\xffep": 1}\n', b"null\n"])
def test_a_branch_trains_whatever_is_damaged_of_its_trunk(sweep: Path, file: str, content: bytes):
    branch, trunk = roles(sweep)
    rows = read_result_rows(sweep)
    (branch / RESULT).unlink()
    damaged = trunk / file
    lines = (trunk / METRICS).read_bytes() if file == METRICS else b""
    damaged.write_bytes(content + lines)
    again = in_process("sweep", "run", "simple", "--out", sweep.parent, cwd=sweep)
    assert again.returncode == 0, again.stderr
    if file == CONFIG:
        # Without the trunk's config it trains from its own first step, to the same loss.
        assert str(damaged) in again.stderr
        of_one_trained_alone = {"branch_of": "", "flops_spent": rows[branch.name]["flops"]}
        rows[branch.name] |= of_one_trained_alone
    assert read_result_rows(sweep) == rows


def test_damaged_metrics_are_set_aside_when_the_run_starts_again(sweep: Path):
    branch, _ = roles(sweep)
    (branch / RESULT).unlink()
    lines = b'{"step": 1, "tokens": 8}\n{"step": []}\n{"step": 2, "tok'
    (branch / METRICS).write_bytes(lines)
    again = in_process("sweep", "run", "simple", "--out", sweep.parent, cwd=sweep)
    assert again.returncode == 0
    assert re.search(rf"{METRICS}\W*line 2\b.*\bstep = \[\]", again.stderr)
    assert (branch / f"{METRICS}.old").read_bytes() == lines
    assert all(line["tokens"] for line in read_metrics(branch))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cells": None}, "cells"),
        ({"cells": [3]}, r"cells\[0\]"),
        ({"cells": [CELL | {"estimated_seconds": "1"}]}, r"cells\[0\]\.estimated_seconds"),
        ({"cells": [CELL | {"config": []}]}, r"cells\[0\]\.config"),
        ({"cells": [CELL | {"config": {"model": {"width": "wide"}}}]}, r"cells\[0\]\.config\b.*\bwidth"),
        ({"created_with": {"time": 3}}, r"created_with\.time"),
        ({"schema": True}, "schema"),
    ],
)
def test_a_damaged_plan_is_named(sweep: Path, change: dict[str, object], named: str):
    path = sweep / PLAN
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for verb in ("status", "run"):
        done = in_process("sweep", verb, "simple", "--out", sweep.parent, cwd=sweep)
        assert done.returncode == 2
        assert re.search(rf"{re.escape(str(path))}: {named}(?!\w)", done.stderr.replace("\n", " "))
