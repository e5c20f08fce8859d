"""A sweep whose runs are trained by stand_in_trainer.py, for the tests of planning, running and status."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from scaling.files import read_json
from scaling.record.run_folder import RUNS
from sweeps.catalog import smoke
from sweeps.grids import Sweep
from sweeps.planning.plan import Plan, build_plan, freeze_plan
from sweeps.planning.wall_time import WallTimeModel
from sweeps.running.runner import Command

TRAINER = Path(__file__).with_name("stand_in_trainer.py")
WALL_TIME = WallTimeModel(per_run=1.0, per_step=0.0, per_token=0.0, flops_per_second=1e9, source="a test")


@dataclass(frozen=True)
class StandInCorpus:
    fingerprint: str = "f00d"
    tokens: int = 5_000

    def unique_tokens(self, tokens_trained: int, sequence_length: int) -> int:
        return min(tokens_trained, self.tokens)


def stand_in_sweep(*habits: str) -> Sweep:
    """One cell for each habit of stand_in_trainer.py, named c0:habit and so on."""
    base = smoke.sweep()
    cells = (
        dataclasses.replace(base.cells[0], seed=i, name=f"c{i}:{habit}" if habit else f"c{i}")
        for i, habit in enumerate(habits)
    )
    return dataclasses.replace(base, name="stand_in", cells=tuple(cells))


def stand_in_plan(folder: Path, *habits: str) -> Plan:
    return freeze_plan(folder, build_plan(stand_in_sweep(*habits), WALL_TIME, lambda config: StandInCorpus()))


def stand_in_command(step_seconds: float = 0.0) -> Command:
    return lambda *folders: [sys.executable, "-I", "-S", str(TRAINER), str(step_seconds), *map(str, folders)]


def read_result_rows(folder: Path) -> dict[str, dict]:
    """The results of a sweep by run_id, without seconds and speeds."""
    rows = {}
    for path in sorted((folder / RUNS).glob("*/result.json")):
        result = read_json(path)
        timed = ("seconds", "tokens_per_second")
        row = {name: value for name, value in result["row"].items() if name not in timed}
        rows[path.parent.name] = {"status": result["status"], "reason": result["reason"], **row} | {
            name: value for name, value in result["measurements"].items() if name not in timed
        }
    return rows


def count_starts(folder: Path) -> dict[str, int]:
    """{run_id: how often its process was started}."""
    return {p.parent.name: p.read_text().count("\n") for p in (folder / RUNS).glob("*/starts")}


def find_overlaps(folder: Path) -> list[Path]:
    """Marks of runs that two processes trained at the same time: there must be none."""
    return list((folder / RUNS).glob("*/overlap"))
