"""Counts what shared trunks save: plans of one size at many horizons, and the formula for endless ladders.

    python benchmarks/trunks.py          # writes trunks.json; then python benchmarks/tables.py

FLOPs are exact_causal (scaling/accounting/counts.py), counted from the configs that a plan holds (sweeps/trunks.py).
Nothing is
trained: a branch is equal to its run alone bit for bit (tests/scaling/training/test_branching.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scaling.config.run_config import RunConfig, ScheduleConfig
from scaling.record.run_folder import result_row
from sweeps.catalog import stdlib_cpu
from sweeps.grids import apply, axis
from sweeps.trunks import share_trunks

RATIOS = {"2": 2.0, "sqrt 2": math.sqrt(2)}
COOLDOWNS = (0.1, 0.2, 0.3, 0.5)
HORIZONS = (4, 7, 20)
LONGEST_STEPS = 2**20


def flops_alone_and_shared(configs: tuple[RunConfig, ...]) -> tuple[float, float]:
    """FLOPs of runs that each train alone, and of the same with trunks shared."""
    rows = [
        result_row(config, tokens=config.steps * config.data.batch_tokens, unique_tokens=None)
        for config in share_trunks(configs)
    ]
    return sum(row["flops"] for row in rows), sum(row["flops_spent"] for row in rows)


def row(name: str, ratio: float, cooldown: float) -> dict[str, Any]:
    """One ladder of horizons: share of the FLOPs that is saved, at several numbers of them and by the formula."""
    schedule = ScheduleConfig(kind="wsd", warmup_tokens=2_048, cooldown_fraction=cooldown)
    base = RunConfig(schedule=schedule)
    saved = {}
    for count in HORIZONS:
        tokens = [round(LONGEST_STEPS / ratio**i) * base.data.batch_tokens for i in range(count)]
        unshared, shared = flops_alone_and_shared(apply(base, axis("tokens", *tokens)))
        saved[str(count)] = 1 - shared / unshared
    endless = ratio / (ratio - 1)
    formula = 1 - (1 - cooldown + cooldown * endless) / endless
    return {"ratio": name, "cooldown": cooldown, "saved": saved, "formula": formula}


def main() -> None:
    unshared, shared = flops_alone_and_shared(stdlib_cpu.sweep().cells)
    results = {
        "rows": [row(name, ratio, cooldown) for name, ratio in RATIOS.items() for cooldown in COOLDOWNS],
        "stdlib_cpu": {"runs": len(stdlib_cpu.sweep().cells), "alone": unshared, "shared": shared},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    for ladder in results["rows"]:
        print(ladder)


if __name__ == "__main__":
    main()
