"""`scaling sweep plan`: prints the runs of a sweep and their cost, and freezes the plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scaling.files import write_json
from scaling.record.run_folder import PLAN
from scaling.terminal import make_console
from sweeps.local.processes import make_slots
from sweeps.planning.plan import Plan, build_plan, find_sweep, freeze_plan, plan_table, plan_to_dict, summarize_plan
from sweeps.planning.wall_time import TpuCost, estimate_tpu_cost, wall_time_model


def plan(name: str, out: Path = Path("out"), json: Path | None = None, topology: str | None = None) -> Plan:
    """Shows every run of a sweep with its counts, FLOPs and estimated time, and freezes the plan.

    The plan goes to <out>/<name>/plan.json. The same plan again changes nothing; a folder that holds a plan of other
    runs is an error.

    Args:
        name: the sweep: a module of sweeps/catalog, as `smoke`.
        out: folder of the sweeps; the plan goes to <out>/<name>.
        json: also write the plan, and the cost on --topology, to this file.
        topology: also estimate the cost on this TPU slice, as v5e:4x4; compiles each distinct train step on this CPU,
            and needs the extra `tpu-aot`.
    """
    slots = make_slots()
    folder = out / name
    frozen = freeze_plan(folder, build_plan(find_sweep(name), wall_time_model(slots[0])))
    console = make_console()
    console.print(plan_table(frozen))
    console.print(f"{summarize_plan(frozen, len(slots))}\nfrozen in {folder / PLAN}", soft_wrap=True, highlight=False)
    cost = cost_on_topology(frozen, topology) if topology else None
    if cost:
        console.print(str(cost), soft_wrap=True, highlight=False)
    if json is not None:
        write_json(json, plan_to_dict(frozen) | ({"price": dataclasses.asdict(cost)} if cost else {}))
    return frozen


def cost_on_topology(plan: Plan, topology: str) -> TpuCost:
    """The cost of a plan on a TPU slice such as v5e:4x4. Raises InputError on an unknown slice or a run too large."""
    from scaling.accounting import chips
    from scaling.performance import compile_ahead

    return estimate_tpu_cost(
        (cell.config for cell in plan.cells), chips.parse_topology(topology), compile_ahead.estimate_step
    )
