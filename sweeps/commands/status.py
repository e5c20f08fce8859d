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
from sweeps.planning.plan import PLAN, RUNS, Plan, load
from sweeps.running.board import FLAGS_SHARE, REFRESH_SECONDS, line, outlook, table, totals
from sweeps.running.progress import Ended, Progress, snapshot


def status(name: str, out: Path = Path("out"), json: Path | None = None) -> None:
    """Prints where the sweep <out>/<name> stands: live in a terminal until nothing runs, once elsewhere.

    Cells that ended are flagged as `scaling sweep collect` flags them. Raises InputError when there is no plan, or that
    of another sweep.
    """
    folder, console = out / name, Console()
    plan = load(folder)
    if plan.sweep != name:
        raise InputError(f"{folder / PLAN}: holds the plan of sweep {plan.sweep}, not of {name}")
    now: tuple[Progress, ...] = ()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for now in watch(folder, plan):
                live.update(table(plan, now), refresh=True)
    else:
        known: dict[str, Ended] = {}
        now = snapshot(folder, plan, known)
        now = flagged(now, flags_of(folder, known))
        for one in now:
            console.print(line(one), soft_wrap=True, highlight=False, markup=False)
        console.print(totals(now) + outlook(plan, now), soft_wrap=True, highlight=False)
    if strays := _strays(folder, plan):
        console.print(f"{strays} run folder(s) there are of no cell of this plan", soft_wrap=True, highlight=False)
    if json is not None:
        write_json(json, {"sweep": plan.sweep, "cells": [asdict(one) for one in now]})


def watch(folder: Path, plan: Plan) -> Iterator[tuple[Progress, ...]]:
    """Every cell, again and again until nothing runs; the last time with the flags of all that ended."""
    known: dict[str, Ended] = {}
    found: dict[str, tuple[str, str]] = {}
    judged, due = [], 0.0
    while True:
        began = time.monotonic()
        now = snapshot(folder, plan, known)
        read = time.monotonic() - began
        over = not any(one.state == "running" for one in now)
        yield flagged(now, found)
        stamps = [ended.stamp for ended in known.values()]
        if stamps != judged and (over or time.monotonic() > due):
            began = time.monotonic()
            judged, found = stamps, flags_of(folder, known)
            due = time.monotonic() + (time.monotonic() - began) / FLAGS_SHARE
            yield flagged(now, found)
        if over:
            return
        time.sleep(max(REFRESH_SECONDS, 4 * read))


def flags_of(folder: Path, ended: Mapping[str, Ended]) -> dict[str, tuple[str, str]]:
    """run_id -> (flags, their reasons), of cells that ended and have any.

    Imports analysis here, as scaling/cli.py does: planning and running a sweep need no laws, and start without them.
    """
    if not ended:
        return {}
    from analysis.tables import flags

    rows = [{**one.row, "run_id": run_id, "status": one.progress.state} for run_id, one in ended.items()]
    found = flags.flag_runs(rows, folder / RUNS)
    return {run: (flags.join_names(one), "; ".join(flag.reason for flag in one)) for run, one in found.items() if one}


def flagged(now: Sequence[Progress], found: Mapping[str, tuple[str, str]]) -> tuple[Progress, ...]:
    """The cells with their flags."""
    told = ((one, *found.get(one.run_id, ("", ""))) for one in now)
    return tuple(
        replace(one, flags=flags, reason=one.reason or reason) if flags else one for one, flags, reason in told
    )


def _strays(folder: Path, plan: Plan) -> int:
    """Run folders that another plan left there."""
    runs = folder / RUNS
    return len({run.name for run in runs.iterdir()} - {cell.run_id for cell in plan.cells}) if runs.is_dir() else 0
