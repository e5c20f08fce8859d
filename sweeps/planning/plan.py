"""The plan of a sweep: every cell with its config, counts and estimated cost, frozen in plan.json before any training.

`scaling sweep plan` builds it; the runner, the fleet, status and the clusters read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import importlib
import importlib.util
import math
import pkgutil
import platform
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from rich.table import Table

from scaling.accounting.counts import count_params
from scaling.config.overrides import differing_fields
from scaling.config.run_config import RunConfig, from_dict, hashed_dict, load_config, to_dict
from scaling.errors import InputError, suggest_name
from scaling.files import read_json, write_json
from scaling.record.environment import package_version
from scaling.record.run_folder import CONFIG, PLAN, RUNS, result_row
from scaling.training import simulated_run
from sweeps import catalog
from sweeps.grids import Sweep, flatten, overlay
from sweeps.planning.wall_time import WallTimeModel
from sweeps.trunks import share_trunks

SCHEMA = 1
EDITABLE_COLUMNS = (
    *("width", "depth", "seed", "learning_rate", "batch_tokens", "budget_tokens", "unique_limit"),
    *("schedule", "parametrization", "optimizer", "weight_decay"),
)
"""Columns of a cell of plan.json that hold a field of its config."""
PACKAGES = ("scaling-laws", "jax", "flax", "optax", "numpy")


class CellEntry(TypedDict):
    """A cell of plan.json, beside its known columns and its name."""

    run_id: str
    config: dict[str, Any]
    estimated_seconds: float
    unique_tokens: int


class PlanFile(TypedDict):
    """The content of plan.json, beside its totals."""

    schema: Literal[1]
    sweep: str
    description: str
    why: str
    created_with: dict[str, str | None]
    cells: list[CellEntry]


class PreparedCorpus(Protocol):
    """The part of a prepared corpus that planning needs (scaling/data/shards.py, TokenShards)."""

    @property
    def fingerprint(self) -> str:
        """Identifies the content of the corpus; every cell's config gets it."""
        ...

    def unique_tokens(self, tokens_trained: int, sequence_length: int) -> int:
        """How many of the tokens that a run trains on are distinct: fewer than all when it repeats the corpus."""
        ...


@dataclass(frozen=True)
class Cell:
    """A planned run. estimated_seconds: wall time in one slot. unique_tokens: distinct tokens that it trains on."""

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
        """Devices that the run needs: mesh.data x mesh.fsdp x mesh.tensor.

        devices_per_run: devices of a run whose mesh leaves its data axis open, rounded up to a multiple of fsdp x
        tensor; that product itself when not given.
        """
        mesh = self.config.mesh
        group = mesh.fsdp * mesh.tensor
        return group * (mesh.data or math.ceil((devices_per_run or 1) / group))

    @property
    def known_columns(self) -> dict[str, Any]:
        """The columns of the results table whose values are known before the run: config, counts and FLOPs."""
        tokens = self.config.steps * self.config.data.batch_tokens
        return result_row(self.config, tokens=tokens, unique_tokens=self.unique_tokens)


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep. created_with: versions of Python and the packages, and how wall times were estimated."""

    sweep: str
    description: str
    why: str
    cells: tuple[Cell, ...]
    created_with: dict[str, str | None]


def find_sweep(name: str) -> Sweep:
    """The sweep of sweeps/catalog/<name>.py. Raises InputError with the nearest name when there is no such sweep."""
    if name.isidentifier() and importlib.util.find_spec(f"sweeps.catalog.{name}") is not None:
        module = importlib.import_module(f"sweeps.catalog.{name}")
        if hasattr(module, "sweep"):
            return module.sweep()
    raise InputError(f"unknown sweep {name}{suggest_name(name, sweep_names())}")


def sweep_names() -> Iterator[str]:
    """Names of the sweeps of the catalog: its modules that define a function `sweep`."""
    for module in pkgutil.iter_modules(catalog.__path__):
        if not module.ispkg and hasattr(importlib.import_module(f"sweeps.catalog.{module.name}"), "sweep"):
            yield module.name


def open_prepared_corpus(config: RunConfig) -> PreparedCorpus:
    """The corpus of a config: token shards on disk, or a simulated law. Raises InputError when it is not prepared."""
    if simulated_run.is_simulated(config):
        return simulated_run.true_law(config)
    from scaling.data.shards import open_shards

    return open_shards(config.data.directory, config.data.corpus, config.data.vocabulary)


def build_plan(
    sweep: Sweep, wall_time: WallTimeModel, open_corpus: Callable[[RunConfig], PreparedCorpus] = open_prepared_corpus
) -> Plan:
    """Plans a sweep: gives every config the sweep's name and its corpus's fingerprint, and shares trunks.

    open_corpus: opens the corpus of a config; called once for each corpus. Raises InputError when two cells are the
    same run, when there are no cells, or when a corpus is not prepared.
    """
    corpora: dict[tuple[str, str, str], PreparedCorpus] = {}

    def corpus(config: RunConfig) -> PreparedCorpus:
        key = (config.data.directory, config.data.corpus, config.data.vocabulary)
        if key not in corpora:
            corpora[key] = open_corpus(config)
        return corpora[key]

    def with_fingerprint(config: RunConfig) -> RunConfig:
        data = dataclasses.replace(config.data, fingerprint=corpus(config).fingerprint)
        return dataclasses.replace(config, data=data, sweep=sweep.name)

    cells = []
    for config in share_trunks([with_fingerprint(cell) for cell in sweep.cells]):
        distinct = corpus(config).unique_tokens(config.steps * config.data.batch_tokens, config.data.sequence_length)
        cells.append(Cell(config, round(wall_time.estimate_seconds(config), 1), distinct))
    if not cells:
        raise InputError(f"sweep {sweep.name}: has no cells; its sweep() must return at least one config")
    twice = [run_id for run_id, times in Counter(cell.run_id for cell in cells).items() if times > 1]
    if twice:
        names = ", ".join(cell.name for cell in cells if cell.run_id == twice[0])
        raise InputError(
            f"sweep {sweep.name}: cells {names} are the same run {twice[0]}: they must differ in a field that changes "
            "the result, such as seed; vary one, or drop a cell"
        )
    versions = {"python": platform.python_version(), "time": wall_time.source} | {
        p: package_version(p) for p in PACKAGES
    }
    return Plan(sweep.name, sweep.description, sweep.why, tuple(cells), versions)


def freeze_plan(folder: Path, plan: Plan) -> Plan:
    """Writes plan.json where there is none, and returns the plan that is then in the folder.

    A plan of the same runs stays. Where only fields differ that change no result (names, cadence, memory), the new plan
    replaces it. Raises InputError, with the difference, when the folder holds a plan of other runs.
    """
    if not (folder / PLAN).exists():
        write_json(folder / PLAN, plan_to_dict(plan))
        return plan
    frozen = load_plan(folder)
    if [cell.run_id for cell in frozen.cells] != [cell.run_id for cell in plan.cells]:
        why = describe_difference(frozen, plan)
        raise InputError(f"{folder / PLAN}: holds another plan: {why}; plan with --out elsewhere, or delete {folder}")
    if [cell.config for cell in frozen.cells] != [cell.config for cell in plan.cells]:
        write_json(folder / PLAN, plan_to_dict(plan))
        return plan
    return frozen


def describe_difference(frozen: Plan, plan: Plan) -> str:
    """How the cells of a new plan differ from those of the frozen one, in a few words."""
    old, new = {c.run_id: c for c in frozen.cells}, {c.run_id: c for c in plan.cells}
    gone = [cell for key, cell in old.items() if key not in new]
    added = [cell for key, cell in new.items() if key not in old]
    if not gone and not added:
        return "the same cells in another order"
    # A cell whose name stayed and whose id changed has other values in some fields: these are named.
    by_name = {cell.name: cell for cell in gone}
    changed = [(by_name[cell.name], cell) for cell in added if cell.name in by_name]
    if changed:
        before, after = (flatten(to_dict(cell.config)) for cell in changed[0])
        fields = [f"{key} {before[key]!r} -> {after[key]!r}" for key in after if before.get(key) != after[key]]
        return f"{len(changed)} cell(s) changed, {changed[0][1].name}: {', '.join(fields[:3])}"
    return f"{len(gone)} cell(s) gone ({_names(gone)}), {len(added)} new ({_names(added)})"


def _names(cells: Sequence[Cell]) -> str:
    """The names of the first three cells."""
    return ", ".join([cell.name for cell in cells[:3]] + (["..."] if len(cells) > 3 else [])) or "none"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The content of plan.json: a row of known columns for each cell, with its config, and their totals.

    FLOPs are those of the results table: `flops` as if every run trained alone, `flops_spent` with shared trunks.
    """
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
    """The plan of a sweep folder. Raises InputError when it is absent, torn or of another schema, or when its run_ids
    do not follow from its configs."""
    path = folder / PLAN
    if not path.exists():
        raise InputError(f"{path}: no plan; run `scaling sweep plan {shlex.quote(folder.name)}` first")
    remedy = f"rename it and run `scaling sweep plan {shlex.quote(folder.name)}` again, which writes the same plan anew"
    data = read_json(path, PlanFile, remedy=remedy)
    cells = []
    for number, entry in enumerate(data["cells"]):
        try:
            cells.append(Cell(from_dict(entry["config"]), entry["estimated_seconds"], entry["unique_tokens"]))
        except InputError as error:
            raise InputError(f"{path}: cells[{number}].config: {error}; {remedy}") from None
    check_stored_cells(folder, data, cells)
    return Plan(data["sweep"], data["description"], data["why"], tuple(cells), data["created_with"])


def check_stored_cells(folder: Path, data: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Raises InputError where the run_id or a count of parameters that plan.json stores of a cell does not follow from
    its config: somebody edited the plan, or this version of the code computes them in another way.

    data: the content of plan.json. cells: those that were read from it.
    """
    path, rows = folder / PLAN, data["cells"]
    wrong = [(row, cell) for row, cell in zip(rows, cells, strict=True) if row["run_id"] != cell.run_id]
    if wrong:
        row, cell = wrong[0]
        raise InputError(
            f"{path}: run_id = {row['run_id']!r} of {cell.name}, and its config gives {cell.run_id!r} "
            f"({len(wrong)} of {len(cells)} cells): {_why_another_run(folder, data, row, cell)}; restore it, or plan "
            "again with --out elsewhere"
        )
    for row, cell in zip(rows, cells, strict=True):
        params = count_params(cell.config.model)
        for name in ("total", "non_embedding", "matmul"):
            if row.get(f"params_{name}") not in (None, count := getattr(params, name)):
                raise InputError(
                    f"{path}: params_{name} = {row[f'params_{name}']} of {cell.name}, and its config gives {count}; "
                    f"rename {PLAN} and plan again"
                )


def _why_another_run(folder: Path, data: Mapping[str, Any], row: Mapping[str, Any], cell: Cell) -> str:
    """The field of a planned cell that was edited or that this version hashes as well, in words."""
    stored = flatten(row["config"])
    if added := [path for path in flatten(hashed_dict(cell.config)) if path not in stored]:
        return (
            f"this version also hashes {', '.join(added)}, which the plan does not have; make it a later_field "
            "(scaling/config/fields.py)"
        )
    # What the cell was before the edit: the config of its run, if it has begun, or of the sweep in the catalog.
    originals = []
    with contextlib.suppress(InputError):
        originals.append(load_config(folder / RUNS / row["run_id"] / CONFIG))
    with contextlib.suppress(InputError):
        originals += [
            overlay(c, {"data.fingerprint": cell.config.data.fingerprint}) for c in find_sweep(data["sweep"]).cells
        ]
    for original in originals:
        if original.run_id == row["run_id"]:
            return differing_fields(hashed_dict(original), hashed_dict(cell.config))
    columns = cell.known_columns
    edited = [
        f"{name} = {row[name]!r}, not {columns[name]!r}"
        for name in EDITABLE_COLUMNS
        if row.get(name, columns[name]) != columns[name]
    ]
    version = data["created_with"].get("scaling-laws")
    return ", ".join(edited) or f"a field was edited, or scaling-laws {version} hashed them in another way"


def plan_table(plan: Plan) -> Table:
    """A table of the cells with counts and cost, 80 columns wide. N is params_matmul."""
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


def summarize_plan(plan: Plan, at_once: int) -> str:
    """Total FLOPs and wall time with `at_once` runs at once, and the share that shared trunks save."""
    alone, spent = (sum(cell.known_columns[key] for cell in plan.cells) for key in ("flops", "flops_spent"))
    wall = makespan((cell.estimated_seconds for cell in plan.cells), at_once)
    source = plan.created_with.get("time")
    total = (
        f"{len(plan.cells)} runs, {spent:.2e} FLOPs, about {format_duration(wall)} with {at_once} at once ({source})"
    )
    branches = sum(bool(cell.config.branch_of) for cell in plan.cells)
    if not branches:
        return total
    saved = f"{1 - spent / alone:.0%} less than the {alone:.2e} of every run on its own"
    return f"{total}\n{branches} of them branch from the stable phase of a longer one: {saved}"


def makespan(seconds: Iterable[float], slots: int) -> float:
    """Wall seconds that runs of these lengths take in `slots` slots when the longest start first."""
    ends = [0.0] * slots  # a heap: the slot that is free first is ends[0]
    for run_seconds in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + run_seconds)
    return max(ends)


def format_duration(seconds: float) -> str:
    """Seconds as text in s, min or h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
