"""A sweep becomes a plan: every cell with its counts and its cost, seen before anything is spent, frozen on disk."""

from __future__ import annotations

import dataclasses
import heapq
import importlib
import importlib.util
import pkgutil
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from scaling.config.run_config import RunConfig, from_dict, to_dict
from scaling.errors import InputError, suggest_name
from scaling.files import read_json, write_json
from scaling.record.environment import package_version
from scaling.record.run_folder import PLAN, result_row
from scaling.training import simulated_run
from sweeps import catalog
from sweeps.grids import Sweep, flatten
from sweeps.planning.wall_time import WallTimeModel
from sweeps.trunks import share_trunks

SCHEMA = 1
PACKAGES = ("scaling-laws", "jax", "flax", "optax", "numpy")


class PreparedCorpus(Protocol):
    """What a plan asks of a prepared corpus (scaling/data/shards.py, TokenSet)."""

    @property
    def fingerprint(self) -> str: ...

    def unique_tokens(self, tokens_trained: int, sequence_length: int) -> int: ...


@dataclass(frozen=True)
class Cell:
    """One run to make. seconds: estimated wall time in one slot. unique_tokens: distinct ones of those trained on."""

    config: RunConfig
    estimated_seconds: float
    unique_tokens: int

    @property
    def run_id(self) -> str:
        return self.config.run_id

    @property
    def name(self) -> str:
        return self.config.name or self.run_id

    def devices_needed(self, devices_per_run: int | None = None) -> int:
        """Devices that the run needs. asked: how many where the mesh leaves its data axis open, rounded up to whole
        groups of fsdp x tensor; one such group when not given."""
        mesh = self.config.mesh
        group = mesh.fsdp * mesh.tensor
        return group * (mesh.data or -(-(devices_per_run or 1) // group))

    @property
    def known_columns(self) -> dict[str, Any]:
        """The columns of the results table that are known before the run."""
        tokens = self.config.steps * self.config.data.batch_tokens
        return result_row(self.config, tokens=tokens, unique_tokens=self.unique_tokens)


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, frozen. created_with: versions of what made it."""

    sweep: str
    description: str
    why: str
    cells: tuple[Cell, ...]
    created_with: dict[str, str | None]


def find_sweep(name: str) -> Sweep:
    """The sweep that sweeps/catalog/<name>.py defines. Raises InputError with the nearest name when there is none."""
    if name.isidentifier() and importlib.util.find_spec(f"sweeps.catalog.{name}") is not None:
        module = importlib.import_module(f"sweeps.catalog.{name}")
        if hasattr(module, "sweep"):
            return module.sweep()
    raise InputError(f"unknown sweep {name}{suggest_name(name, sweep_names())}")


def sweep_names() -> Iterator[str]:
    """Names of the sweeps in this package."""
    for found in pkgutil.iter_modules(catalog.__path__):
        if not found.ispkg and hasattr(importlib.import_module(f"sweeps.catalog.{found.name}"), "sweep"):
            yield found.name


def open_prepared_corpus(config: RunConfig) -> PreparedCorpus:
    """The corpus of a config. Raises InputError when it is not prepared."""
    if simulated_run.is_simulated(config):
        return simulated_run.true_law(config)
    from scaling.data.shards import open_shards

    return open_shards(config.data.directory, config.data.corpus, config.data.vocabulary)


def build_plan(
    sweep: Sweep, pace: WallTimeModel, open_corpus: Callable[[RunConfig], PreparedCorpus] = open_prepared_corpus
) -> Plan:
    """Cells stamped with the sweep's name and their corpus's fingerprint, trunks shared. Raises InputError on two equal
    cells."""
    corpora: dict[tuple[str, str, str], PreparedCorpus] = {}

    def corpus(config: RunConfig) -> PreparedCorpus:
        key = (config.data.directory, config.data.corpus, config.data.vocabulary)
        found = corpora[key] = corpora.get(key) or open_corpus(config)
        return found

    def stamped(config: RunConfig) -> RunConfig:
        data = dataclasses.replace(config.data, fingerprint=corpus(config).fingerprint)
        return dataclasses.replace(config, data=data, sweep=sweep.name)

    cells = []
    for config in share_trunks([stamped(cell) for cell in sweep.cells]):
        distinct = corpus(config).unique_tokens(config.steps * config.data.batch_tokens, config.data.sequence_length)
        cells.append(Cell(config, round(pace.estimate_seconds(config), 1), distinct))
    if not cells:
        raise InputError(f"sweep {sweep.name}: has no cells")
    twice = [run_id for run_id, times in Counter(cell.run_id for cell in cells).items() if times > 1]
    if twice:
        names = ", ".join(cell.name for cell in cells if cell.run_id == twice[0])
        raise InputError(f"sweep {sweep.name}: cells {names} are the same run {twice[0]}; vary something, or drop one")
    versions = {"python": platform.python_version(), "time": pace.source} | {p: package_version(p) for p in PACKAGES}
    return Plan(sweep.name, sweep.description, sweep.why, tuple(cells), versions)


def freeze_plan(folder: Path, made: Plan) -> Plan:
    """Writes plan.json, or finds the same cells there and keeps it. Raises InputError when it holds others.

    Fields that do not change a result (names, cadence, memory) may differ: then the new plan replaces the old.
    """
    if not (folder / PLAN).exists():
        write_json(folder / PLAN, plan_to_dict(made))
        return made
    held = load_plan(folder)
    if [cell.run_id for cell in held.cells] != [cell.run_id for cell in made.cells]:
        why = describe_difference(held, made)
        raise InputError(f"{folder / PLAN}: holds another plan: {why}; plan with --out elsewhere, or delete {folder}")
    if [cell.config for cell in held.cells] != [cell.config for cell in made.cells]:
        write_json(folder / PLAN, plan_to_dict(made))
        return made
    return held


def describe_difference(held: Plan, made: Plan) -> str:
    """In a few words, what made's cells have that held's have not."""
    old, new = {c.run_id: c for c in held.cells}, {c.run_id: c for c in made.cells}
    gone = [cell for key, cell in old.items() if key not in new]
    come = [cell for key, cell in new.items() if key not in old]
    if not gone and not come:
        return "the same cells in another order"
    by_name = {cell.name: cell for cell in gone}
    changed = [(by_name[cell.name], cell) for cell in come if cell.name in by_name]
    if changed:
        before, after = (flatten(to_dict(cell.config)) for cell in changed[0])
        fields = [f"{key} {before[key]!r} -> {after[key]!r}" for key in after if before.get(key) != after[key]]
        return f"{len(changed)} cell(s) changed, {changed[0][1].name}: {', '.join(fields[:3])}"
    return f"{len(gone)} cell(s) gone ({_names(gone)}), {len(come)} new ({_names(come)})"


def _names(cells: Sequence[Cell]) -> str:
    return ", ".join([cell.name for cell in cells[:3]] + (["..."] if len(cells) > 3 else [])) or "none"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plan.json holds it. seconds are estimates; FLOPs as in scaling/record/run_folder.py: `flops` as if
    every run
    trained alone, `flops_spent` with trunks shared."""
    cells = [
        cell.known_columns
        | {"name": cell.name, "estimated_seconds": cell.estimated_seconds, "config": to_dict(cell.config)}
        for cell in plan.cells
    ]
    summed = ("tokens", "flops", "flops_6nd", "flops_spent", "estimated_seconds")
    return {
        "schema": SCHEMA,
        "sweep": plan.sweep,
        "description": plan.description,
        "why": plan.why,
        "created_with": plan.created_with,
        "totals": {"cells": len(cells)} | {key: sum(cell[key] for cell in cells) for key in summed},
        "cells": cells,
    }


def load_plan(folder: Path) -> Plan:
    """The plan of a sweep folder. Raises InputError when there is none, or when it is torn or of another version."""
    path = folder / PLAN
    if not path.exists():
        raise InputError(f"{path}: no plan; run `scaling sweep plan {folder.name}` first")
    data = read_json(path)
    try:
        if data["schema"] != SCHEMA:
            raise InputError(f"{path}: schema = {data['schema']!r}: this version reads {SCHEMA}")
        cells = tuple(
            Cell(from_dict(cell["config"]), cell["estimated_seconds"], cell["unique_tokens"]) for cell in data["cells"]
        )
        return Plan(data["sweep"], data["description"], data["why"], cells, data["created_with"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a plan ({error!r}); delete it and plan again") from None


def plan_table(plan: Plan) -> Table:
    """Every cell, with counts and cost, in 80 columns. N is params_matmul."""
    title = f"{plan.sweep}: {plan.description}"
    out = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for heading in ("run", "name", "N", "tokens", "FLOPs", "to spend", "about"):
        out.add_column(heading, justify="left" if heading in ("run", "name") else "right", no_wrap=True)
    for cell in plan.cells:
        row = cell.known_columns
        numbers = [f"{row[key]:,}" for key in ("params_matmul", "tokens")]
        spent = [f"{row[key]:.2e}" for key in ("flops", "flops_spent")]
        out.add_row(cell.run_id, cell.name, *numbers, *spent, format_duration(cell.estimated_seconds))
    return out


def summarize_plan(plan: Plan, room: int) -> str:
    """Totals, and what shared trunks save of them; room: runs at once."""
    alone, spent = (sum(cell.known_columns[key] for cell in plan.cells) for key in ("flops", "flops_spent"))
    wall = makespan((cell.estimated_seconds for cell in plan.cells), room)
    source = plan.created_with.get("time")
    total = f"{len(plan.cells)} runs, {spent:.2e} FLOPs, about {format_duration(wall)} with {room} at once ({source})"
    branches = sum(bool(cell.config.branch_of) for cell in plan.cells)
    if not branches:
        return total
    saved = f"{1 - spent / alone:.0%} less than the {alone:.2e} of every run on its own"
    return f"{total}\n{branches} of them branch from the stable phase of a longer one: {saved}"


def makespan(seconds: Iterable[float], room: int) -> float:
    """Wall seconds of runs taken longest first, `room` at once."""
    ends = [0.0] * room
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def format_duration(seconds: float) -> str:
    """Seconds for the eye."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
