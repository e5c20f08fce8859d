"""`scaling sweep status`: shows which cells are done, running, waiting or failed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.live import Live

from scaling.errors import InputError
from scaling.files import write_json
from scaling.record.run_folder import PLAN, RUNS
from scaling.terminal import make_console
from sweeps.planning.plan import Plan, load_plan
from sweeps.running.board import (
    FLAGS_SHARE,
    REFRESH_SECONDS,
    describe_outlook,
    describe_totals,
    progress_board,
    progress_line,
)
from sweeps.running.outcomes import check_run_folders
from sweeps.running.progress import CellProgress, FinishedCell, read_sweep_progress


def status(name: str, out: Path = Path("out"), json: Path | None = None) -> None:
    """Shows which runs of the sweep <out>/<name> are done, running, waiting or failed.

    In a terminal the table is live until nothing runs; elsewhere it is printed once. Runs that ended are flagged as
    `scaling sweep collect` flags them.

    Args:
        name: the sweep, as in `scaling sweep plan NAME`.
        out: folder of the sweeps.
        json: also write the progress of every run to this file.
    """
    folder, console = out / name, make_console()
    plan = load_plan(folder)
    if plan.sweep != name:
        raise InputError(
            f"{folder / PLAN}: sweep = {plan.sweep!r}: must be {name!r}; give the folder of {name} with --out"
        )
    check_run_folders(folder, plan.cells)
    now: tuple[CellProgress, ...] = ()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for now in watch_progress(folder, plan):
                live.update(progress_board(plan, now), refresh=True)
    else:
        known: dict[str, FinishedCell] = {}
        now = read_sweep_progress(folder, plan, known)
        now = with_flags(now, read_flags(folder, known))
        for cell in now:
            console.print(progress_line(cell), soft_wrap=True, highlight=False, markup=False)
        console.print(describe_totals(now) + describe_outlook(plan, now), soft_wrap=True, highlight=False)
    if unplanned := _count_unplanned(folder, plan):
        text = f"{unplanned} run folder(s) belong to no cell of this plan"
        console.print(text, soft_wrap=True, highlight=False)
    if json is not None:
        write_json(json, {"sweep": plan.sweep, "cells": [asdict(cell) for cell in now]})


def watch_progress(folder: Path, plan: Plan) -> Iterator[tuple[CellProgress, ...]]:
    """Yields the progress of every cell again and again until nothing runs; at the end with flags of all that ended."""
    known: dict[str, FinishedCell] = {}
    flags: dict[str, tuple[str, str]] = {}
    flagged_stamps: list[tuple[int, int]] = []
    flags_due = 0.0
    while True:
        started = time.monotonic()
        now = read_sweep_progress(folder, plan, known)
        read_seconds = time.monotonic() - started
        is_last = not any(cell.state == "running" for cell in now)
        yield with_flags(now, flags)
        # Flags compare all runs that ended, so they are found again when a result is new, but spend FLAGS_SHARE of the
        # time at most; the last time they are always found.
        stamps = [ended.stamp for ended in known.values()]
        if stamps != flagged_stamps and (is_last or time.monotonic() > flags_due):
            started = time.monotonic()
            flagged_stamps, flags = stamps, read_flags(folder, known)
            flags_due = time.monotonic() + (time.monotonic() - started) / FLAGS_SHARE
            yield with_flags(now, flags)
        if is_last:
            return
        # A fifth of the time at most goes into reading the folder.
        time.sleep(max(REFRESH_SECONDS, 4 * read_seconds))


def read_flags(folder: Path, ended: Mapping[str, FinishedCell]) -> dict[str, tuple[str, str]]:
    """{run_id: (names of flags, their reasons)} of the ended cells that have any.

    Imports `analysis` here, so that planning and running a sweep start without pandas.
    """
    if not ended:
        return {}
    from analysis.tables import flags

    rows = [{**cell.row, "run_id": run_id, "status": cell.progress.state} for run_id, cell in ended.items()]
    by_run = flags.flag_runs(rows, folder / RUNS)
    return {
        run_id: (flags.join_names(of_run), "; ".join(flag.reason for flag in of_run))
        for run_id, of_run in by_run.items()
        if of_run
    }


def with_flags(now: Sequence[CellProgress], flags_of: Mapping[str, tuple[str, str]]) -> tuple[CellProgress, ...]:
    """The cells with their flags. A cell without a reason of its own gets the reasons of its flags."""
    pairs = ((cell, *flags_of.get(cell.run_id, ("", ""))) for cell in now)
    return tuple(
        replace(cell, flags=flags, reason=cell.reason or reason) if flags else cell for cell, flags, reason in pairs
    )


def _count_unplanned(folder: Path, plan: Plan) -> int:
    """How many run folders belong to no cell of the plan; an earlier plan left them."""
    runs = folder / RUNS
    return len({run.name for run in runs.iterdir()} - {cell.run_id for cell in plan.cells}) if runs.is_dir() else 0
