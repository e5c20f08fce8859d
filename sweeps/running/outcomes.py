"""The part of a run folder that the runner writes and reads: the config before an attempt, the verdict after it."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from scaling.config.run_config import RunConfig, load_config
from scaling.errors import InputError
from scaling.exit_codes import BAD_INPUT, FOLDER_BUSY, OUT_OF_MEMORY, PROCESS_LOST, STOPPED
from scaling.files import read_json, repair_json_lines, set_aside, warn_once
from scaling.record.run_folder import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    RESULT,
    RUNS,
    MetricsLine,
    check_folder,
    holds_config,
    read_config,
    read_metrics,
    read_result,
    result_row,
    write_config,
    write_result,
)
from scaling.training import branching, simulated_run
from scaling.training.out_of_memory import sequences_per_device, with_smaller_microbatch
from sweeps.local.processes import last_output_line, last_traceback
from sweeps.planning.plan import Cell
from sweeps.running import attempt_log
from sweeps.running.claims import claim_run

CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)
"""Signals that a program causes by its own fault; any other comes from outside, as when a machine is taken away."""


class RecordedDevices(TypedDict):
    """The part of environment.json that is read here: the kind of each device."""

    devices: list[str]


def check_run_folders(folder: Path, cells: Sequence[Cell]) -> None:
    """Raises InputError, with the field, where the run folder of a cell holds another run: its config.json was edited,
    or another run was trained there. A torn config.json is no other run: `prepare_run` writes it again."""
    for cell in cells:
        run = folder / RUNS / cell.run_id
        if run.is_dir():
            check_run_folder(run, cell)


def check_run_folder(folder: Path, cell: Cell) -> None:
    """As `check_run_folders`, for one cell."""
    if holds_config(folder, cell.config) or not is_config_torn(folder):
        check_folder(folder, cell.config)


def prepare_run(folder: Path, cell: Cell, devices_per_run: int | None = None) -> RunConfig:
    """Writes the config of the next attempt into a claimed run folder, and returns it. Sets aside a result that is
    damaged or failed, and metrics with damaged lines.

    devices_per_run: devices of a run whose mesh leaves its data axis open; None for the smallest mesh. Raises
    InputError when the folder holds another run.
    """
    check_run_folder(folder, cell)
    if (folder / RESULT).exists():
        set_result_aside(folder)
    repair_json_lines(folder / METRICS, MetricsLine)
    config = attempt_config(folder, cell, devices_per_run)
    write_config(folder, config, durable=not simulated_run.is_simulated(config))
    return config


def attempt_config(folder: Path, cell: Cell, devices_per_run: int | None = None) -> RunConfig:
    """The planned config of a run with what the next attempt must change, none of it hashed: `branch_of` and the
    microbatch.

    A branch whose trunk ended without saving the state to branch from (it failed, or was trained for another plan), or
    whose trunk has a damaged config.json or result.json, trains from its own first step. A run that has a checkpoint
    keeps the `branch_of` that it began with. A run that ran out of memory gets a smaller microbatch after each such
    attempt.
    """
    config = cell.config
    if (branch_of := branching.begun_branch_of(folder)) is not None:
        config = dataclasses.replace(config, branch_of=branch_of)
    elif config.branch_of and not _can_branch(folder, config):
        config = dataclasses.replace(config, branch_of="")
    sequences, devices = attempt_log.fewest_excessive_sequences(folder), count_devices(folder, cell, devices_per_run)
    return with_fitting_microbatch(config, sequences, devices) or config


def _can_branch(folder: Path, config: RunConfig) -> bool:
    """Whether the trunk of a run has what `scaling train` needs to start the run from it."""
    trunk = branching.trunk_folder(folder, config)
    try:
        read_config(trunk)
        return branching.has_branch_state(folder, config) or branching.trunk_diverged_before(folder, config)
    except InputError as error:
        warn_once(f"{folder.name} trains from its own first step, without its trunk: {error}")
        return False


def _config_in_folder(folder: Path) -> RunConfig | None:
    """The config in a run folder; None when it is absent or torn."""
    try:
        return load_config(folder / CONFIG)
    except InputError:
        return None


def is_config_torn(folder: Path) -> bool:
    """Whether a run folder has a config.json that cannot be read."""
    return (folder / CONFIG).exists() and _config_in_folder(folder) is None


def with_fitting_microbatch(config: RunConfig, excessive: int | None, devices: int) -> RunConfig | None:
    """The config with the largest microbatch that gives each of `devices` fewer than `excessive` sequences at once.

    The config itself when `excessive` is None; None when no microbatch is small enough.
    """
    fitting: RunConfig | None = config
    while fitting is not None and excessive is not None and sequences_per_device(fitting, devices) >= excessive:
        fitting = with_smaller_microbatch(fitting, devices)
    return fitting


def count_devices(folder: Path, cell: Cell, devices_per_run: int | None) -> int:
    """Devices of a run: as its mesh or the user fixes them, else as many as its last session recorded."""
    needed = cell.devices_needed(devices_per_run)
    if devices_per_run or cell.config.mesh.data or not (folder / ENVIRONMENT).exists():
        return needed
    try:
        return max(needed, len(read_json(folder / ENVIRONMENT, RecordedDevices)["devices"]))
    except InputError:
        return needed


def set_result_aside(folder: Path) -> None:
    """Renames result.json to result.json.old, so that the run is trained again and the old result stays readable."""
    set_aside(folder / RESULT)


def reopen_failed(folder: Path, cells: Sequence[Cell]) -> int:
    """Sets the failed results of a sweep folder aside and restarts their count of attempts. Returns how many."""
    reopened = 0
    for cell in cells:
        run = folder / RUNS / cell.run_id
        if result_status(run) != "failed" or (claim := claim_run(run)) is None:
            continue
        # Look again under the claim: another runner may have reopened and trained the run in the meantime.
        if result_status(run) == "failed":
            attempt_log.record_reopening(run)
            set_result_aside(run)
            reopened += 1
        claim.release()
    return reopened


def result_status(folder: Path) -> str | None:
    """The status in a run folder's result.json: done, diverged or failed; None when it is absent or damaged."""
    try:
        result = read_result(folder)
    except InputError:
        return None
    return result["status"] if result is not None else None


def record_failure(folder: Path, cell: Cell, reason: str) -> None:
    """Writes the result of a failed run: its row, with the tokens it had trained on, the reason and the traceback."""
    config = _config_in_folder(folder) or cell.config
    if config.run_id != cell.run_id:
        config = cell.config
    tokens = max((line.get("tokens", 0) for line in read_metrics(folder)), default=0)
    row = result_row(config, tokens=tokens, unique_tokens=min(tokens, cell.unique_tokens))
    row |= {"status": "failed"}
    write_result(folder, status="failed", row=row, measurements={}, reason=reason, traceback=last_traceback(folder))


def classify_exit(code: int, log_folder: Path) -> tuple[attempt_log.AttemptOutcome, str]:
    """The outcome of an attempt that left no result, and the reason in words.

    code: exit code of its process (scaling/exit_codes.py), negative for a signal. log_folder: the run folder whose
    log.txt has the output of the process; of a population that of its first member.
    """
    if code < 0:
        known = -code in set(signal.Signals)
        name = signal.Signals(-code).name if known else f"signal {-code}"
        return ("failed" if -code in CRASH_SIGNALS or not known else "preempted"), f"was killed by {name}"
    if code == STOPPED:
        return "preempted", "was stopped"
    error = last_output_line(log_folder)
    if code == FOLDER_BUSY:
        return "stopped", error
    if code == PROCESS_LOST:
        return "lost", error or "lost another process of its own"
    if code == OUT_OF_MEMORY:
        # A process that the kernel killed for memory has printed nothing.
        return "memory", f"ran out of memory: {error}" if error else "ran out of memory"
    return "failed", (error or f"exit code {code}") if code else "ended without a result"


def exhausted_budget(
    folder: Path,
    cell: Cell,
    kind: attempt_log.AttemptOutcome,
    budgets: attempt_log.RetryBudgets,
    devices_per_run: int | None,
) -> str:
    """Why a run gets no further attempt, in words; empty when it gets one. devices_per_run: as in `prepare_run`."""
    if kind == "memory":
        fits = with_fitting_microbatch(
            cell.config, attempt_log.fewest_excessive_sequences(folder), count_devices(folder, cell, devices_per_run)
        )
        return "" if fits else "no microbatch is smaller"
    return budgets.exhausted_reason(attempt_log.count_outcomes(folder))


def last_sequences_per_device(folder: Path, cell: Cell, devices_per_run: int | None) -> int:
    """Sequences that each device held at once in a run's last attempt, by the config in its folder."""
    return sequences_per_device(_config_in_folder(folder) or cell.config, count_devices(folder, cell, devices_per_run))


def is_final(code: int) -> bool:
    """Whether the next attempt would end with the same error, because the config or the data are wrong."""
    return code == BAD_INPUT
