"""`scaling sweep status`: shows what is done, running, waiting and failed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from scaling.errors import InputError
from scaling.files import write_json
from scaling.record.run_folder import PLAN, RUNS
from sweeps.planning.plan import Plan, load_plan
from sweeps.running.board import (
    FLAGS_SHARE,
    REFRESH_SECONDS,
    describe_outlook,
    describe_totals,
    progress_board,
    progress_line,
)
from sweeps.running.progress import CellProgress, FinishedCell, read_sweep_progress


def status(name: str, out: Path = Path("out"), json: Path | None = None) -> None:
    """Prints where the sweep <out>/<name> stands: live in a terminal until nothing runs, once elsewhere.

    Cells that ended are flagged as `scaling sweep collect` flags them. Raises InputError when there is no plan, or that
    of another sweep.
    """
    folder, console = out / name, Console()
    plan = load_plan(folder)
    if plan.sweep != name:
        raise InputError(f"{folder / PLAN}: holds the plan of sweep {plan.sweep}, not of {name}")
    now: tuple[CellProgress, ...] = ()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for now in watch_progress(folder, plan):
                live.update(progress_board(plan, now), refresh=True)
    else:
        known: dict[str, FinishedCell] = {}
        now = read_sweep_progress(folder, plan, known)
        now = with_flags(now, read_flags(folder, known))
        for one in now:
            console.print(progress_line(one), soft_wrap=True, highlight=False, markup=False)
        console.print(describe_totals(now) + describe_outlook(plan, now), soft_wrap=True, highlight=False)
    if strays := _count_unplanned(folder, plan):
        console.print(f"{strays} run folder(s) there are of no cell of this plan", soft_wrap=True, highlight=False)
    if json is not None:
        write_json(json, {"sweep": plan.sweep, "cells": [asdict(one) for one in now]})


def watch_progress(folder: Path, plan: Plan) -> Iterator[tuple[CellProgress, ...]]:
    """Every cell, again and again until nothing runs; the last time with the flags of all that ended."""
    known: dict[str, FinishedCell] = {}
    found: dict[str, tuple[str, str]] = {}
    judged, due = [], 0.0
    while True:
        began = time.monotonic()
        now = read_sweep_progress(folder, plan, known)
        read = time.monotonic() - began
        over = not any(one.state == "running" for one in now)
        yield with_flags(now, found)
        stamps = [ended.stamp for ended in known.values()]
        if stamps != judged and (over or time.monotonic() > due):
            began = time.monotonic()
            judged, found = stamps, read_flags(folder, known)
            due = time.monotonic() + (time.monotonic() - began) / FLAGS_SHARE
            yield with_flags(now, found)
        if over:
            return
        time.sleep(max(REFRESH_SECONDS, 4 * read))


def read_flags(folder: Path, ended: Mapping[str, FinishedCell]) -> dict[str, tuple[str, str]]:
    """run_id -> (flags, their reasons), of cells that ended and have any.

    Imports analysis here, as scaling/cli.py does: planning and running a sweep need no laws, and start without them.
    """
    if not ended:
        return {}
    from analysis.tables import flags

    rows = [{**one.row, "run_id": run_id, "status": one.progress.state} for run_id, one in ended.items()]
    found = flags.flag_runs(rows, folder / RUNS)
    return {run: (flags.join_names(one), "; ".join(flag.reason for flag in one)) for run, one in found.items() if one}


def with_flags(now: Sequence[CellProgress], found: Mapping[str, tuple[str, str]]) -> tuple[CellProgress, ...]:
    """The cells with their flags."""
    told = ((one, *found.get(one.run_id, ("", ""))) for one in now)
    return tuple(
        replace(one, flags=flags, reason=one.reason or reason) if flags else one for one, flags, reason in told
    )


def _count_unplanned(folder: Path, plan: Plan) -> int:
    """Run folders that another plan left there."""
    runs = folder / RUNS
    return len({run.name for run in runs.iterdir()} - {cell.run_id for cell in plan.cells}) if runs.is_dir() else 0
