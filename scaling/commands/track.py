"""`scaling track`: mirrors run folders into TensorBoard or Weights & Biases, beside the files, never instead of them.

A process of its own reads what runs wrote, so that a tracker that fails, or has no network, cannot harm a run, and any
run can be mirrored at any time: while it trains, after it ended, or never.

    <run>/metrics.jsonl, result.json       what is mirrored; only read here
    <run>/tensorboard/<name>/              event files: `tensorboard --logdir <sweep>/runs`
    <run>/wandb/                           what W&B keeps: WANDB_MODE=offline, then `wandb sync`, or online at once
    <run>/tracked.<tracker>.json           how far it was mirrored, so that the same command again goes on from there

Not in the design's list of modules: trackers are extras that nothing else knows of.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from scaling.config.run_config import load_config
from scaling.errors import InputError
from scaling.files import lock_file, read_json, write_json
from scaling.record.run_folder import CONFIG, METRICS, PLAN, RESULT, RUNS, read_result
from scaling.record.trackers import OpenTrackedRun, TrackedRun, TrackerName, load_tracker


@dataclass(frozen=True)
class MirrorState:
    """How far a run was mirrored. offset: bytes of metrics.jsonl; step: the last one sent, and the names sent of it;
    ended: mtime (ns) of the result.json that was sent."""

    offset: int = 0
    step: int = -1
    names: tuple[str, ...] = ()
    ended: int = 0


def track(
    path: Path,
    tracker: tyro.conf.Positional[TrackerName] = "tensorboard",
    follow: bool = False,
    every: float = 10.0,
    project: str = "",
) -> None:
    """Mirror a sweep's runs, or one run, into TensorBoard or W&B. The same command again sends what is new.

    Args:
        path: a sweep folder or a run folder.
        tracker: tensorboard, or wandb, which keeps to WANDB_MODE (offline, then `wandb sync`), WANDB_DIR and others.
        follow: go on until all runs have ended.
        every: seconds between looks, with --follow.
        project: of W&B; WANDB_PROJECT or the sweep's name when not given.
    """
    if every <= 0:
        raise InputError(f"every = {every}: must be more than 0 seconds")
    find_run_folders(path)
    make = load_tracker(tracker, project)
    try:
        with exclusive_mirror(path, tracker):
            sent, runs = _until_all_is_sent(path, tracker, make, every if follow else None)
    except OSError as error:
        raise InputError(f"{path}: {error}; mend it, and the same command goes on") from None
    ended = sum((run / RESULT).exists() for run in runs)
    inside = path if path in runs else path / RUNS
    look = f"tensorboard --logdir {inside}" if tracker == "tensorboard" else "W&B has it"
    if tracker == "wandb" and os.environ.get("WANDB_MODE") == "offline":
        look = f"wandb sync {inside / 'wandb' if path in runs else inside / '*' / 'wandb'}/offline-run-* sends it"
    print(f"{sent} new steps of {len(runs)} runs, {ended} of them ended: {look}")


def _until_all_is_sent(
    path: Path, tracker: TrackerName, make: OpenTrackedRun, every: float | None
) -> tuple[int, list[Path]]:
    """Lines sent, and the run folders; every: seconds between looks until all runs have ended, or one look alone."""
    sinks: dict[Path, TrackedRun] = {}
    sent = 0
    try:
        while True:
            runs = find_run_folders(path)
            sent += sum(mirror(run, tracker, make, sinks, every is not None) for run in runs)
            if every is None or sum((run / RESULT).exists() for run in runs) == count_planned_runs(path, runs):
                return sent, runs
            time.sleep(every)
    finally:
        for sink in sinks.values():
            sink.close(failed=False)


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
    """How many runs there will be: as many as the plan beside them has cells."""
    return len(read_json(path / PLAN)["cells"]) if (path / PLAN).exists() else len(runs)


def mirror(run: Path, tracker: TrackerName, make: OpenTrackedRun, sinks: dict[Path, TrackedRun], follow: bool) -> int:
    """Sends what is new of a run; returns the number of lines. sinks: those open; a run that may go on stays there."""
    state = run / f"tracked.{tracker}.json"
    before = read_state(state)
    lines, now = new_lines(run, before)
    result = read_result(run)
    stamp = (run / RESULT).stat().st_mtime_ns if result is not None else 0
    news = result is not None and stamp != before.ended
    if not lines and not news:
        return 0
    sink = sinks.pop(run, None) or make(run, load_config(run / CONFIG))
    for step, values in lines:
        sink.log(step, values)
    if news:
        sink.log_result(max(now.step, 0), result)
        now = replace(now, ended=stamp)
    sink.flush()
    write_json(state, asdict(now))
    if follow and result is None:
        sinks[run] = sink
    else:
        sink.close(failed=result is not None and result["status"] == "failed")
    return len(lines)


def read_state(state: Path) -> MirrorState:
    """How far a run was mirrored; from the start when nothing tells."""
    try:
        found = json.loads(state.read_text())
        return MirrorState(found["offset"], found["step"], tuple(found["names"]), found["ended"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return MirrorState()


def new_lines(run: Path, before: MirrorState) -> tuple[list[tuple[int, dict[str, float]]], MirrorState]:
    """The whole lines that are new, as (step, numbers), and how far they reach.

    A run that goes on from a checkpoint logs steps again, equal to the bit: those sent before are left out, but for
    numbers that such a step did not have yet. Torn lines are passed over; a file that was begun anew is read anew.
    """
    try:
        with (run / METRICS).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            offset = file.seek(before.offset if before.offset <= size else 0)
            text = file.read()
    except FileNotFoundError:
        return [], before
    whole = text.rfind(b"\n") + 1
    found, last, names = [], before.step, set(before.names)
    for one in text[:whole].splitlines():
        step, values = _numbers(one)
        if step < last:
            continue
        names = names if step == last else set()
        new = {name: value for name, value in values.items() if name not in names}
        last, names = step, names | set(values)
        if new:
            found.append((step, new))
    return found, MirrorState(offset + whole, last, tuple(sorted(names)), before.ended)


def _numbers(text: bytes) -> tuple[int, dict[str, float]]:
    """A line's step, and its numbers; step -2 of a torn line, or one without a step."""
    try:
        line = json.loads(text)
        step = line.pop("step")
        if type(step) is int:
            return step, {name: v for name, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return -2, {}


@contextlib.contextmanager
def exclusive_mirror(path: Path, tracker: TrackerName) -> Iterator[None]:
    """Keeps a second process from mirroring the same folder into the same tracker, which would send lines twice."""
    with lock_file(path / f".tracked.{tracker}.lock", wait=False) as is_ours:
        if not is_ours:
            raise InputError(f"{path}: another process mirrors it into {tracker} already")
        yield
