"""What the runner writes into a run folder and reads from it; the run writes the rest.

Not in the design's list of modules: run.py would pass 300 lines.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path

from scaling.config.run_config import RunConfig, load_config
from scaling.errors import InputError
from scaling.exit_codes import BAD_INPUT, FOLDER_BUSY, OUT_OF_MEMORY, PROCESS_LOST, STOPPED
from scaling.files import read_json
from scaling.record.run_folder import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    RESULT,
    read_metrics,
    read_result,
    result_row,
    write_config,
    write_result,
)
from scaling.training import branching, simulated_run
from scaling.training.out_of_memory import sequences_per_device, with_smaller_microbatch
from sweeps.local.processes import last_output_line, last_traceback
from sweeps.planning.plan import RUNS, Cell
from sweeps.running import attempt_log
from sweeps.running.claims import claim_run

CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)
"""Signals that a program brings upon itself."""


def prepare_run(folder: Path, cell: Cell, devices_per_run: int | None = None) -> RunConfig:
    """Puts the config of the next attempt in a claimed run folder, and returns it; a torn or failed result is set
    aside. devices_per_run: devices of a run whose mesh leaves its data axis open."""
    if (folder / RESULT).exists():
        set_result_aside(folder)
    config = attempt_config(folder, cell, devices_per_run)
    write_config(folder, config, durable=not simulated_run.is_simulated(config))
    return config


def attempt_config(folder: Path, cell: Cell, devices_per_run: int | None = None) -> RunConfig:
    """The planned config of a run with what the next attempt must change, none of it hashed: `branch_of` and the
    microbatch.

    A branch whose trunk ended without saving the state to branch from (it failed, or was trained for another plan)
    trains from its own first step; a run that has a checkpoint keeps the `branch_of` that it began with. A run that
    ran out of memory gets a smaller microbatch after each such attempt.
    """
    config, begun = cell.config, _config_in_folder(folder)
    if begun is not None and (folder / CHECKPOINTS).is_dir() and any(map(_is_step, (folder / CHECKPOINTS).iterdir())):
        config = dataclasses.replace(config, branch_of=begun.branch_of)
    elif (
        config.branch_of
        and not branching.has_branch_state(folder, config)
        and not branching.trunk_diverged_before(folder, config)
    ):
        config = dataclasses.replace(config, branch_of="")
    sequences, devices = attempt_log.fewest_excessive_sequences(folder), count_devices(folder, cell, devices_per_run)
    return with_fitting_microbatch(config, sequences, devices) or config


def _config_in_folder(folder: Path) -> RunConfig | None:
    """The config in a run folder; None when there is none, or a torn one."""
    try:
        return load_config(folder / CONFIG)
    except InputError:
        return None


def _is_step(path: Path) -> bool:
    return path.name.isdigit()


def with_fitting_microbatch(config: RunConfig, too_many: int | None, devices: int) -> RunConfig | None:
    """The config with the largest microbatch that leaves each of `devices` fewer than `too_many` sequences at once;
    None when there is none."""
    fitting: RunConfig | None = config
    while fitting is not None and too_many is not None and sequences_per_device(fitting, devices) >= too_many:
        fitting = with_smaller_microbatch(fitting, devices)
    return fitting


def count_devices(folder: Path, cell: Cell, devices_per_run: int | None) -> int:
    """Devices of a run: what its mesh says or the user asked for; else those that its last session saw."""
    demand = cell.devices_needed(devices_per_run)
    if devices_per_run or cell.config.mesh.data or not (folder / ENVIRONMENT).exists():
        return demand
    try:
        return max(demand, len(read_json(folder / ENVIRONMENT)["devices"]))
    except (InputError, KeyError, TypeError):
        return demand


def set_result_aside(folder: Path) -> None:
    """A result that is to be made again stays beside the new one."""
    (folder / RESULT).replace(folder / f"{RESULT}.old")


def reopen_failed(folder: Path, cells: Sequence[Cell]) -> int:
    """Sets aside the failed results of a sweep folder, and starts their count of attempts anew; returns how many."""
    reopened = 0
    for cell in cells:
        run = folder / RUNS / cell.run_id
        if result_status(run) != "failed" or (held := claim_run(run)) is None:
            continue
        if result_status(run) == "failed":
            attempt_log.record_reopening(run)
            set_result_aside(run)
            reopened += 1
        held.release()
    return reopened


def result_status(folder: Path) -> str | None:
    """Status of a run folder's result; None when there is none, or a torn one."""
    try:
        return (read_result(folder) or {}).get("status")
    except (InputError, AttributeError):
        return None


def record_failure(folder: Path, cell: Cell, reason: str) -> None:
    """A failed run keeps its row, who it was and what it had spent, and its traceback."""
    config = _config_in_folder(folder) or cell.config
    tokens = max((line.get("tokens", 0) for line in read_metrics(folder)), default=0)
    row = result_row(config, tokens=tokens, unique_tokens=min(tokens, cell.unique_tokens))
    row |= {"status": "failed"}
    write_result(folder, status="failed", row=row, measurements={}, reason=reason, traceback=last_traceback(folder))


def classify_exit(code: int, folder: Path) -> tuple[attempt_log.AttemptOutcome, str]:
    """What kind of end an attempt without a result came to, from its exit code, and why, in words."""
    if code < 0:
        known = -code in set(signal.Signals)
        name = signal.Signals(-code).name if known else f"signal {-code}"
        return ("failed" if -code in CRASH_SIGNALS or not known else "preempted"), f"was killed by {name}"
    if code == STOPPED:
        return "preempted", "was stopped"
    if code == FOLDER_BUSY:
        return "stopped", last_output_line(folder)
    if code == PROCESS_LOST:
        return "lost", last_output_line(folder) or "lost another process of its own"
    if code == OUT_OF_MEMORY:
        return "memory", f"ran out of memory: {last_output_line(folder)}"
    return "failed", (last_output_line(folder) or f"exit code {code}") if code else "ended without a result"


def exhausted_budget(
    folder: Path,
    cell: Cell,
    kind: attempt_log.AttemptOutcome,
    budgets: attempt_log.RetryBudgets,
    devices_per_run: int | None,
) -> str:
    """Why a run gets no further attempt, in words; empty where it gets one. devices_per_run: as in `prepare_run`."""
    if kind == "memory":
        fits = with_fitting_microbatch(
            cell.config, attempt_log.fewest_excessive_sequences(folder), count_devices(folder, cell, devices_per_run)
        )
        return "" if fits else "no microbatch is smaller"
    return budgets.exhausted_reason(attempt_log.count_outcomes(folder))


def last_sequences_per_device(folder: Path, cell: Cell, devices_per_run: int | None) -> int:
    """Sequences that each device had at once in a run's last attempt."""
    return sequences_per_device(_config_in_folder(folder) or cell.config, count_devices(folder, cell, devices_per_run))


def is_final(code: int) -> bool:
    """Whether the same attempt would end the same way."""
    return code == BAD_INPUT
