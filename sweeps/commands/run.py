"""`scaling sweep run`: trains the cells of a plan on this machine or on a cluster.

Any number of these commands may work on one sweep folder at the same time, on one machine or on several that share it.
Any of them, and any run, may be killed at any time; the same command again goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.live import Live

from scaling.errors import InputError
from scaling.files import write_json
from scaling.record.run_folder import PLAN
from scaling.terminal import make_console, printable
from sweeps.clusters.ray_cluster import Ray
from sweeps.clusters.slurm import Slurm
from sweeps.local.launch import Slot
from sweeps.local.processes import Local, device_capacity, join_slots, make_slots, start_process
from sweeps.planning.plan import Plan, find_sweep, format_duration, load_plan
from sweeps.running import fleet
from sweeps.running.attempt_log import DEFAULT_BUDGETS, RetryBudgets
from sweeps.running.board import describe_totals
from sweeps.running.fleet import train_command
from sweeps.running.outcomes import check_run_folders, reopen_failed
from sweeps.running.progress import read_sweep_progress
from sweeps.running.runner import Command, Runner

LOCAL = Local()
Executor = (
    Annotated[Local, tyro.conf.subcommand("local", description="Processes on this machine (the default).")]
    | Annotated[Slurm, tyro.conf.subcommand("slurm", description="Jobs of a SLURM cluster.")]
    | Annotated[Ray, tyro.conf.subcommand("ray", description="Actors of a Ray cluster.")]
)


def run(
    name: str,
    out: Path = Path("out"),
    jobs: int | None = None,
    json: Path | None = None,
    retry_failed: bool = True,
    members: int | None = None,
    devices: int | None = None,
    failures: int = 2,
    preemptions: int = 100,
    progress_timeout: float = DEFAULT_BUDGETS.progress_timeout,
    executor: Annotated[Executor, tyro.conf.arg(name="")] = LOCAL,
) -> int:
    """Trains the runs of the frozen plan <out>/<name> that are not done.

    The same command again goes on where an interruption left off, or says that all is done. Exit codes: 0; 1 when a run
    failed; 75 when a signal stopped it, with the state of every run saved.

    Args:
        name: the sweep, as in `scaling sweep plan NAME`.
        out: folder of the sweeps; on a cluster, one that all its machines share.
        jobs: most processes at once, each with a run or a population; by default one per GPU here, else one per core;
            on a cluster as many workers as there are runs that could start.
        json: also write the exit code and the progress of every run to this file.
        retry_failed: also train the runs again that failed before.
        members: most runs of one shape that train together in one process (a population); by default as many as memory
            allows; 1 for a process each.
        devices: devices of each run whose mesh leaves its data axis open (mesh.data = None); by default fsdp x tensor.
        failures: how many attempts at a run may fail by an error of its own before the run is recorded as failed.
        preemptions: how many attempts at a run may be ended from outside before the run is recorded as failed.
        progress_timeout: how many seconds a process may go on without a step or any other change in its run folder
            before it is killed, which counts as a failed attempt; more where 50 steps or an evaluation take longer.
        executor: where the runs go: local, slurm or ray; the options of each come after the word.
    """
    folder = out / name
    if not (folder / PLAN).exists():
        find_sweep(name)
    for field, value in (("jobs", jobs), ("members", members), ("devices", devices)):
        if value is not None and value < 1:
            raise InputError(f"{field} = {value}: must be 1 or more")
    for field, value in (("failures", failures), ("preemptions", preemptions)):
        if value < 1:
            raise InputError(f"{field} = {value}: must be 1 or more")
    if not progress_timeout > 0:
        raise InputError(f"progress_timeout = {progress_timeout}: must be above 0 seconds; inf for no limit")
    plan = load_plan(folder)
    if plan.sweep != name:
        raise InputError(
            f"{folder / PLAN}: sweep = {plan.sweep!r}: must be {name!r}, for two sweeps cannot share a folder; plan "
            "with --out elsewhere"
        )
    check_run_folders(folder, plan.cells)
    started, budgets = time.monotonic(), RetryBudgets(failures, preemptions, progress_timeout)
    if isinstance(executor, Local):
        code = run_locally(
            folder, jobs=jobs, retry_failed=retry_failed, members=members, devices_per_run=devices, budgets=budgets
        )
    else:
        workers = fleet.Fleet(folder, plan, executor.cluster(folder), budgets, jobs, members, devices)
        code = fleet.run_fleet(workers, plan.cells if retry_failed else ())
    now = read_sweep_progress(folder, plan)
    print(printable(f"{name}: {describe_totals(now)}, in {format_duration(time.monotonic() - started)}"))
    if json is not None:
        write_json(json, {"sweep": name, "exit_code": code, "cells": [asdict(cell) for cell in now]})
    return code


def run_locally(
    folder: Path,
    *,
    jobs: int | None = None,
    retry_failed: bool = True,
    command: Command = train_command,
    members: int | None = 1,
    devices_per_run: int | None = None,
    budgets: RetryBudgets = DEFAULT_BUDGETS,
) -> int:
    """Trains the cells of a plan on this machine: see `run` for the parameters.

    command: the program that trains; it must end with the codes of scaling/exit_codes.py and write result.json.
    """
    plan, console, slots = load_plan(folder), make_console(), make_slots(jobs)
    check_devices(plan, slots, devices_per_run)
    try:
        if retry_failed:
            reopen_failed(folder, plan.cells)
        runner = Runner(
            folder,
            plan,
            plan.cells,
            command,
            slots,
            console,
            start_process,
            members=members,
            devices_per_run=devices_per_run,
            jobs=jobs,
            budgets=budgets,
            total_slots=min(jobs or len(slots), len(slots)),
        )
        with runner.handling_signals():
            if not console.is_terminal:
                return runner()
            with Live(console=console, auto_refresh=False, transient=True) as runner.live:
                return runner()
    except OSError as error:
        raise InputError(f"{folder}: {error}; fix this and run the same command again") from None


def check_devices(plan: Plan, slots: Sequence[Slot], devices_per_run: int | None) -> None:
    """Raises InputError that names the first cell which needs more devices than this machine has."""
    for cell in plan.cells:
        if join_slots(slots, need := cell.devices_needed(devices_per_run)) is None:
            # Slots that share a GPU count it once.
            have = sum({slot.gpu or slot.cores: device_capacity(slot) for slot in slots}.values())
            raise InputError(
                f"cell {cell.name}: needs {need} devices, this machine has {have}; plan a smaller mesh, lower "
                "--devices, or use a cluster: `scaling sweep run NAME slurm` or `ray`"
            )
