"""Sweeps of tiny runs on a cluster, and what can be seen of them from outside: folders and processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from scaling.config.run_config import RunConfig
from scaling.record.run_folder import read_metrics
from sweeps.grids import Sweep
from sweeps.planning.plan import Plan, build_plan, freeze_plan
from sweeps.running import attempt_log
from tests.conftest import scaling
from tests.support.stand_in_sweep import WALL_TIME

CLOCKS = ["seconds", "tokens_per_second"]
PLAIN = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def unsaved(tiny: RunConfig) -> RunConfig:
    """The same run, which saves at its end alone, for sweeps that nothing strikes: saving costs as much as training."""
    return dataclasses.replace(tiny, measure=dataclasses.replace(tiny.measure, checkpoint_every_tokens=2**40))


def frozen(folder: Path, tiny: RunConfig, *steps: int) -> Plan:
    """A plan of one tiny run for each number of steps; the seeds differ, too."""
    batch = tiny.data.batch_tokens
    cells = tuple(
        dataclasses.replace(tiny, seed=seed, tokens=many * batch, name=f"{many}-{seed}")
        for seed, many in enumerate(steps)
    )
    return freeze_plan(folder, build_plan(Sweep(folder.name, cells, "short runs"), WALL_TIME))


def collected(folder: Path) -> pd.DataFrame:
    """The results table of a sweep, less what a clock gave."""
    done = scaling("sweep", "collect", folder.name, "--out", folder.parent)
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(folder / "results.parquet").drop(columns=CLOCKS)


def steps(run: Path) -> list[int]:
    """Of the logged lines, in the order in which they were written."""
    return [line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


def reached(run: Path) -> int:
    """The last step that a run logged."""
    return (read_metrics(run) or [{"step": 0}])[-1]["step"]


def kinds(run: Path) -> list[str]:
    """How the attempts at a run ended, first to last."""
    return [line["kind"] for line in attempt_log.read_attempts(run) if line["event"] == "ended"]


def workers_found(folder: Path, runs: int) -> list[int]:
    """How many workers of an earlier command each command that found some says that it did, ahead of its first run."""
    heads = [[int(n) for n in re.findall(r"\d+", line)] for line in (folder / "command.txt").read_text().splitlines()]
    return [head[1] for head in heads if len(head) == 2 and head[0] == runs]


def until(true: Callable[[], object], what: str, patience: float = 300.0) -> None:
    """Waits, at most so many seconds."""
    late = time.monotonic() + patience
    while not true():
        assert time.monotonic() < late, f"not within {patience:.0f} s: {what}"
        time.sleep(0.1)


def processes(*words: str) -> list[int]:
    """Processes in whose argv all words are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if set(words) <= set(path.read_text().split("\0")):
                found.append(int(path.parent.name))
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def variable(pid: int, name: str) -> str:
    """Of a process's environment; empty when it has none such."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            if entry.startswith(f"{name}="):
                return entry.partition("=")[2]
    return ""
