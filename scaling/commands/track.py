"""The verb `scaling track`: copies the metrics of run folders to TensorBoard or Weights & Biases.

It reads what runs wrote, in a process of its own, so that a tracker that fails or has no network cannot harm a run, and
so that a run can be copied at any time, while it trains or after it ended.

    <run>/metrics.jsonl, result.json       read only
    <run>/tensorboard/<name>/              event files: `tensorboard --logdir <sweep>/runs`
    <run>/wandb/                           files of W&B: with WANDB_MODE=offline for `wandb sync`, or sent at once
    <run>/tracked.<tracker>.json           how much was sent, so that the same command continues from there
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import tyro

from scaling.errors import InputError
from scaling.files import lock_file, parse_json, read_json, warn_once, write_json
from scaling.record.run_folder import CONFIG, METRICS, PLAN, RESULT, RUNS, MetricsLine, read_config, read_result
from scaling.record.trackers import OpenTrackedRun, TrackedRun, TrackerName, load_tracker
from scaling.terminal import printable
from scaling.type_checks import find_misfit


@dataclass(frozen=True)
class MirrorState:
    """How much of a run was sent.

    Attributes:
        offset: bytes of metrics.jsonl.
        step: the last step that was sent; -1 for none.
        names: the metrics that were sent of that step.
        ended: modification time of the result.json that was sent, in ns; 0 for none.
    """

    offset: int = 0
    step: int = -1
    names: tuple[str, ...] = ()
    ended: int = 0


class StateFile(TypedDict):
    """The file that holds a MirrorState."""

    offset: int
    step: int
    names: list[str]
    ended: int


class PlannedCells(TypedDict):
    """The part of a plan.json that is read here."""

    cells: list[Any]


def track(
    path: Path,
    tracker: tyro.conf.Positional[TrackerName] = "tensorboard",
    follow: bool = False,
    every: float = 10.0,
    project: str = "",
) -> None:
    """Copy the metrics of a sweep's runs, or of one run, to TensorBoard or W&B. The same command again sends what is
    new.

    Args:
        path: a sweep folder or a run folder.
        tracker: tensorboard, or wandb, which obeys WANDB_MODE (offline, then `wandb sync`), WANDB_DIR and the others.
        follow: continue until all runs have ended.
        every: seconds between two looks at the files, with --follow.
        project: project on W&B; WANDB_PROJECT or the sweep's name when not given.
    """
    if every <= 0:
        raise InputError(f"every = {every}: must be more than 0 seconds")
    find_run_folders(path)
    make = load_tracker(tracker, project)
    try:
        with exclusive_mirror(path, tracker):
            sent, runs = _send_all(path, tracker, make, every if follow else None)
    except OSError as error:
        raise InputError(f"{path}: {error}; repair it, and run the same command again") from None
    ended = sum((run / RESULT).exists() for run in runs)
    logdir = path if path in runs else path / RUNS
    look = f"tensorboard --logdir {logdir}" if tracker == "tensorboard" else "W&B has it"
    if tracker == "wandb" and os.environ.get("WANDB_MODE") == "offline":
        look = f"wandb sync {logdir / 'wandb' if path in runs else logdir / '*' / 'wandb'}/offline-run-* sends it"
    print(printable(f"{sent} new steps of {len(runs)} runs, {ended} of them ended: {look}"))


def _send_all(path: Path, tracker: TrackerName, make: OpenTrackedRun, every: float | None) -> tuple[int, list[Path]]:
    """Sends what is new, once or, with `every`, again after so many seconds until all runs have ended. Returns the
    number of lines sent and the run folders."""
    tracked: dict[Path, TrackedRun] = {}
    sent = 0
    try:
        while True:
            runs = find_run_folders(path)
            sent += sum(mirror(run, tracker, make, tracked, every is not None) for run in runs)
            if every is None or sum((run / RESULT).exists() for run in runs) == count_planned_runs(path, runs):
                return sent, runs
            time.sleep(every)
    finally:
        for tracked_run in tracked.values():
            tracked_run.close(failed=False)


def find_run_folders(path: Path) -> list[Path]:
    """The run folders of a sweep, or a run folder itself. Raises InputError where it is neither."""
    if (path / CONFIG).exists():
        return [path]
    if not (path / RUNS).is_dir():
        raise InputError(
            f"{path}: {'neither a run folder nor a sweep with runs/' if path.is_dir() else 'no such folder'}"
        )
    return sorted(run for run in (path / RUNS).iterdir() if (run / CONFIG).exists())


def count_planned_runs(path: Path, runs: list[Path]) -> int:
    """How many runs there will be: the cells of the plan beside them, or else the folders that are there."""
    return len(read_json(path / PLAN, PlannedCells)["cells"]) if (path / PLAN).exists() else len(runs)


def mirror(run: Path, tracker: TrackerName, make: OpenTrackedRun, tracked: dict[Path, TrackedRun], follow: bool) -> int:
    """Sends what is new of a run and returns the number of lines. tracked: the runs that are open; with `follow`, a run
    that has not ended stays open."""
    state = run / f"tracked.{tracker}.json"
    before = read_state(state)
    lines, now = new_lines(run, before)
    try:
        result = read_result(run)
        stamp = (run / RESULT).stat().st_mtime_ns if result is not None else 0
        result_is_new = result is not None and stamp != before.ended
        if not lines and not result_is_new:
            return 0
        config = read_config(run)
    except InputError as error:
        warn_once(f"{run.name} is left out: {error}")
        return 0
    tracked_run = tracked.pop(run, None) or make(run, config)
    for step, values in lines:
        tracked_run.log(step, values)
    if result_is_new:
        tracked_run.log_result(max(now.step, 0), result)
        now = replace(now, ended=stamp)
    tracked_run.flush()
    write_json(state, asdict(now))
    if follow and result is None:
        tracked[run] = tracked_run
    else:
        tracked_run.close(failed=result is not None and result["status"] == "failed")
    return len(lines)


def read_state(state: Path) -> MirrorState:
    """How much of a run was sent; nothing where the file is absent or not readable."""
    try:
        content = read_json(state, StateFile)
    except InputError:
        return MirrorState()
    return MirrorState(content["offset"], content["step"], tuple(content["names"]), content["ended"])


def new_lines(run: Path, before: MirrorState) -> tuple[list[tuple[int, dict[str, float]]], MirrorState]:
    """The new whole lines of metrics.jsonl as (step, numbers), and how much is sent after them.

    A run that resumes from a checkpoint logs some steps again, with equal numbers: of those, only numbers that were not
    sent before are kept. Torn lines are skipped. A file that became shorter was written anew and is read from the
    start.
    """
    try:
        with (run / METRICS).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            offset = file.seek(before.offset if 0 <= before.offset <= size else 0)
            text = file.read()
    except FileNotFoundError:
        return [], before
    whole = text.rfind(b"\n") + 1
    new, last, names = [], before.step, set(before.names)
    for line in text[:whole].splitlines():
        step, values = _numbers(line)
        if step < last:
            continue
        names = names if step == last else set()
        unsent = {name: value for name, value in values.items() if name not in names}
        last, names = step, names | set(values)
        if unsent:
            new.append((step, unsent))
    return new, MirrorState(offset + whole, last, tuple(sorted(names)), before.ended)


def _numbers(text: bytes) -> tuple[int, dict[str, float]]:
    """The step of a line and its numbers; step -2 for a torn line or one without a step."""
    try:
        line = parse_json(text)
    except ValueError:
        return -2, {}
    if find_misfit(line, MetricsLine):
        return -2, {}
    return line.pop("step"), {name: value for name, value in line.items() if not find_misfit(value, float)}


@contextlib.contextmanager
def exclusive_mirror(path: Path, tracker: TrackerName) -> Iterator[None]:
    """Keeps a second process from sending the same folder to the same tracker, which would send lines twice."""
    with lock_file(path / f".tracked.{tracker}.lock", wait=False) as is_ours:
        if not is_ours:
            raise InputError(f"{path}: another process sends it to {tracker} already; wait for it, or stop it")
        yield
