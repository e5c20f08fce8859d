"""Makes a plan's runs: claim, skip what is done, execute, record failures, go on.

Any number of runners may work on one sweep folder, on one machine or several that share it; any of them, and any run,
may be killed at any time. The same command again goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.live import Live

from scaling.errors import InputError
from scaling.files import write_json
from scaling.record.run_folder import PLAN
from sweeps.clusters.ray_cluster import Ray
from sweeps.clusters.slurm import Slurm
from sweeps.local.launch import Slot
from sweeps.local.processes import Local, device_capacity, join_slots, make_slots, start_process
from sweeps.planning.plan import Plan, find_sweep, format_duration, load_plan
from sweeps.running import fleet
from sweeps.running.attempt_log import DEFAULT_BUDGETS, RetryBudgets
from sweeps.running.board import describe_totals
from sweeps.running.fleet import train_command
from sweeps.running.outcomes import reopen_failed
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
    executor: Annotated[Executor, tyro.conf.arg(name="")] = LOCAL,
) -> int:
    """Makes the runs of the frozen plan <out>/<name>. Returns 0, 1 when a run failed, 75 when stopped by a signal.

    Again: goes on, or says that all is done. Raises InputError when there is no plan, or where the runs have no room.

    Args:
        name: the sweep, as in `scaling sweep plan NAME`.
        out: folder of the sweeps; on a cluster, one that all its machines share.
        jobs: runs, or populations, at once: by default one per GPU here, or else one per core; on a cluster, as many
            workers as there are runs that could start.
        json: also write where the sweep stands to this file.
        retry_failed: runs that failed before are tried again.
        members: runs of one shape that train together in one process, at most; by default as many as memory allows.
        devices: of each run whose mesh leaves its data axis open; by default fsdp x tensor.
        failures: attempts at a run that may end badly by its own fault, before it is recorded as failed.
        preemptions: attempts at a run that may be ended from outside.
        executor: where the runs go: local, slurm or ray; their own options come after the word.
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
    plan = load_plan(folder)
    if plan.sweep != name:
        raise InputError(f"{folder}: holds the plan of sweep {plan.sweep}; two sweeps cannot share a folder")
    began, budgets = time.monotonic(), RetryBudgets(failures, preemptions)
    if isinstance(executor, Local):
        code = run_locally(
            folder, jobs=jobs, retry_failed=retry_failed, members=members, devices_per_run=devices, budgets=budgets
        )
    else:
        workers = fleet.Fleet(folder, plan, executor.cluster(folder), budgets, jobs, members, devices)
        code = fleet.run_fleet(workers, plan.cells if retry_failed else ())
    now = read_sweep_progress(folder, plan)
    print(f"{name}: {describe_totals(now)}, in {format_duration(time.monotonic() - began)}")
    if json is not None:
        write_json(json, {"sweep": name, "exit_code": code, "cells": [asdict(one) for one in now]})
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
    """`run` on this machine, for a sweep folder and any command that keeps the trainer's contract: exit codes
    (scaling/exit_codes.py), result.json."""
    plan, console, room = load_plan(folder), Console(), make_slots(jobs)
    check_devices(plan, room, devices_per_run)
    try:
        if retry_failed:
            reopen_failed(folder, plan.cells)
        runner = Runner(
            folder,
            plan,
            plan.cells,
            command,
            room,
            console,
            start_process,
            members=members,
            devices_per_run=devices_per_run,
            jobs=jobs,
            budgets=budgets,
            total_slots=min(jobs or len(room), len(room)),
        )
        with runner.handling_signals():
            if not console.is_terminal:
                return runner()
            with Live(console=console, auto_refresh=False, transient=True) as runner.live:
                return runner()
    except OSError as error:
        raise InputError(f"{folder}: {error}; mend it, and the same command goes on") from None


def check_devices(plan: Plan, room: Sequence[Slot], devices_per_run: int | None) -> None:
    """Raises InputError, naming the first, where a cell needs more devices than this machine has."""
    for cell in plan.cells:
        if join_slots(room, need := cell.devices_needed(devices_per_run)) is None:
            have = sum({slot.gpu or slot.cores: device_capacity(slot) for slot in room}.values())
            raise InputError(
                f"cell {cell.name}: needs {need} devices, this machine has {have}; a smaller mesh or fewer --devices, "
                "or a cluster: `scaling sweep run NAME slurm` or `ray`"
            )
