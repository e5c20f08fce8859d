"""`scaling sweep plan`: prints what a sweep costs and freezes its plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from scaling.files import write_json
from scaling.record.run_folder import PLAN
from sweeps.local.processes import make_slots
from sweeps.planning.plan import Plan, build_plan, find_sweep, freeze_plan, plan_table, plan_to_dict, summarize_plan
from sweeps.planning.wall_time import TpuCost, estimate_tpu_cost, wall_time_model


def plan(name: str, out: Path = Path("out"), json: Path | None = None, topology: str | None = None) -> Plan:
    """Freezes the sweep `name` in <out>/<name>/plan.json; prints every cell with its counts, FLOPs and estimated time.

    topology: also what it would cost on TPUs that are not there, as v5e:4x4; each distinct train step is compiled.

    The same cells again change nothing. Raises InputError on an unknown sweep, a corpus that is not prepared, two equal
    cells, or a folder that holds another plan.
    """
    room = make_slots()
    folder = out / name
    held = freeze_plan(folder, build_plan(find_sweep(name), wall_time_model(room[0])))
    console = Console()
    console.print(plan_table(held))
    console.print(f"{summarize_plan(held, len(room))}\nfrozen in {folder / PLAN}", soft_wrap=True, highlight=False)
    priced = cost_on_topology(held, topology) if topology else None
    if priced:
        console.print(str(priced), soft_wrap=True, highlight=False)
    if json is not None:
        write_json(json, plan_to_dict(held) | ({"price": dataclasses.asdict(priced)} if priced else {}))
    return held


def cost_on_topology(plan: Plan, topology: str) -> TpuCost:
    """The plan's price on a topology, as v5e:4x4. Raises InputError where there is no such one, or a run fails it."""
    from scaling.accounting import chips
    from scaling.performance import compile_ahead

    return estimate_tpu_cost(
        (cell.config for cell in plan.cells), chips.parse_topology(topology), compile_ahead.estimate_step
    )
