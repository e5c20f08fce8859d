"""`scaling design`: proposes the next runs for a forecast and a budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from analysis import files
from analysis.design.next_runs import Design, design_cells
from analysis.design.optimal_design import DRIFT, Policy
from analysis.errors import TableError
from analysis.tables import results
from analysis.tables import where as clauses


def design(
    table: Path,
    budget: float | None = None,
    target_params: float | None = None,
    target_tokens: float | None = None,
    policy: Policy = "v",
    law: str = "chinchilla",
    candidates: Path | None = None,
    sizes: int = 8,
    horizons: int = 8,
    cells: int = 10,
    columns: str = "",
    where: str = "",
    params_column: str | None = None,
    weight_power: float = 1.0,
    drift: float = DRIFT,
    seed: int = 0,
    json: Path | None = None,
) -> dict[str, Any]:
    """Propose the runs to train next: those that lower the standard error of a forecast most for a budget.

    Train them, collect the table, and ask again: three rounds or more, each of at most as much as all before it, since
    the first fits are poor.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file: the runs at hand.
      budget: Training FLOPs for all proposed runs together. Needed.
      target_params: Parameters of the run to forecast; 10x the largest compute, compute-optimal, unless given.
      target_tokens: Its training tokens; goes with --target-params.
      policy: v: the cells that lower the error most, one by one; v-cost: also by what they cost.
      law: A law of loss in params and tokens: chinchilla, interaction, ...
      candidates: A table of the cells to choose from, with columns params and tokens and perhaps flops.
      sizes: Sizes of the grid of candidates where no table is given: from the smallest to 4x the largest at hand, all
        of less compute than the target.
      horizons: Its horizons, alike.
      cells: Proposed cells at most.
      columns: Names in a table made elsewhere, as in params=N,tokens=D,loss=L.
      where: Rows to use, as in "corpus==c4".
      params_column: Which count of parameters to use.
      weight_power: Weight points of the fit by training FLOPs to this power.
      drift: How far off the law may be, in log loss an e-fold of compute away from the target; 0 trusts it everywhere.
      seed: Seed of the plausible parameter values.
      json: Also write the same facts to this file.
    """
    from analysis import api

    if budget is None:
        raise TableError("--budget is needed: training FLOPs for all proposed runs together, as in --budget 1e17")
    if (target_params is None) != (target_tokens is None):
        raise TableError("--target-params and --target-tokens go together: one run has both")
    if not weight_power >= 0:
        raise TableError(f"--weight-power {weight_power}: must be zero or more")
    found = design_cells(
        clauses.filter_rows(results.read_table(table, results.parse_columns(columns)), where),
        budget,
        api.find_law(law),
        target=None if target_params is None or target_tokens is None else (target_params, target_tokens),
        candidates=None if candidates is None else results.read_table(candidates),
        grid=(sizes, horizons),
        policy=policy,
        cells=cells,
        params=params_column,
        power=weight_power,
        drift=drift,
        seed=seed,
    )
    facts = found.facts()
    _print(found, facts)
    if json:
        files.write_json(json, facts)
    return facts


def _print(found: Design, facts: Mapping[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    goal = facts["target"]
    console.print(f"[bold]{facts['law']}[/]   N = {found.params_column}, from {facts['points']} runs")
    console.print(
        f"target: N = {goal['params']:,.0f}, D = {goal['tokens']:,.0f}, {goal['flops']:.3g} FLOPs; forecast "
        f"{facts['predicted']:.4f} nats/token, standard error {facts['standard_error_before']:.2%}"
    )
    rows = Table("", "params", "tokens", "FLOPs", "spent so far", "standard error after", box=None, pad_edge=False)
    spent = np.cumsum(found.cells["flops"])
    for place, (cell, total) in enumerate(zip(facts["cells"], spent, strict=True), 1):
        counts = (f"{cell['params']:,.0f}", f"{cell['tokens']:,.0f}", f"{cell['flops']:.3g}")
        rows.add_row(str(place), *counts, f"{total / facts['budget']:.0%}", f"{cell['standard_error']:.2%}")
    console.print(rows)
    console.print(
        f"{len(found.cells)} of {facts['candidates']} candidate cells, {facts['cost']:.3g} of {facts['budget']:.3g} "
        f"FLOPs; standard error {facts['standard_error_before']:.2%} -> {facts['standard_error_after']:.2%}"
    )
    console.print(
        f"assumed: {facts['flops_per_params_token']:.3g} FLOPs a parameter and token; noise of a run "
        f"{facts['noise']:.2%}; the law off by {facts['drift']:.2%} an e-fold of compute away from the target; "
        f"points weighted by C^{facts['weight_power']:g}"
    )
    for note in facts["warnings"]:
        console.print(f"[yellow]warning:[/] {note}", markup=True)
