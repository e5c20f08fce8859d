"""`scaling design`: proposes the runs to train next, so that a forecast becomes more certain within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from analysis import api, files
from analysis.commands.printing import make_console, print_table, print_warnings
from analysis.design.next_runs import Design, design_cells
from analysis.design.optimal_design import DRIFT, Policy
from analysis.errors import TableError
from analysis.tables import results
from analysis.terminal import labelled


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
    """Propose the runs to train next: those that lower the standard error of a forecast most within a budget.

    Train them, collect the table, and run this again. Three rounds or more, each of at most as much compute as all
    before it, are better than one, because the first fits are poor.

    Args:
      table: A sweep folder, or a CSV, Parquet or JSONL file, with the runs trained so far.
      budget: Training FLOPs for all proposed runs together; required.
      target_params: Parameters of the run to forecast; goes with --target-tokens. Default: the compute-optimal run of
        10x the largest compute in the table.
      target_tokens: Training tokens of the run to forecast; goes with --target-params.
      policy: v chooses, one by one, the cell that lowers the error most; v-cost the one that lowers it most for its
        FLOPs.
      law: Name of a law of loss in params and tokens, such as chinchilla or interaction.
      candidates: A table of the cells to choose from, with columns params, tokens and perhaps flops. Default: a grid of
        --sizes and --horizons.
      sizes: Number of model sizes in the grid of candidates, from the smallest to 4x the largest in the table; cells of
        more compute than the target are left out.
      horizons: Number of token counts in the grid of candidates, likewise.
      cells: The most cells to propose.
      columns: Names of columns in a table made elsewhere, as in params=N,tokens=D,loss=L. Default: as they are.
      where: Rows to use, as in "corpus==c4". Default: all rows.
      params_column: The count of parameters to use. Default: params if the table has it, else params_matmul.
      weight_power: Points of the fit are weighted by training FLOPs to this power.
      drift: Error of the law itself that is assumed, in log loss per e-fold of compute away from the target; 0 trusts
        the law everywhere.
      seed: Seed of the draws of plausible parameter values.
      json: Also write what is printed to this file, as JSON. Default: no file.
    """
    if budget is None:
        raise TableError("--budget is missing: the training FLOPs of all proposed runs together, as in --budget 1e17")
    if (target_params is None) != (target_tokens is None):
        raise TableError("--target-params and --target-tokens go together: one run has both")
    if not weight_power >= 0:
        raise TableError(f"--weight-power {weight_power}: must be zero or more")
    proposal = design_cells(
        api.load(table, columns=results.parse_columns(columns), where=where),
        budget,
        api.find_law(law),
        target=None if target_params is None or target_tokens is None else (target_params, target_tokens),
        candidates=None if candidates is None else results.read_table(candidates),
        grid=(sizes, horizons),
        policy=policy,
        cells=cells,
        params=params_column,
        weight_power=weight_power,
        drift=drift,
        seed=seed,
    )
    facts = proposal.facts()
    _print(proposal, facts)
    if json:
        files.write_json(json, facts)
    return facts


def _print(proposal: Design, facts: Mapping[str, Any]) -> None:
    console = make_console()
    goal = facts["target"]
    console.print(labelled(facts["law"], "bold", f"  N = {proposal.params_column}, from {facts['points']} runs"))
    console.print(
        f"target: N = {goal['params']:,.0f}, D = {goal['tokens']:,.0f}, {goal['flops']:.3g} FLOPs; forecast "
        f"{facts['predicted']:.4f} nats/token, standard error {facts['standard_error_before']:.2%}"
    )
    rows = Table("", "params", "tokens", "FLOPs", "spent so far", "standard error after", box=None, pad_edge=False)
    spent = np.cumsum(proposal.cells["flops"])
    for place, (cell, total) in enumerate(zip(facts["cells"], spent, strict=True), 1):
        counts = (f"{cell['params']:,.0f}", f"{cell['tokens']:,.0f}", f"{cell['flops']:.3g}")
        rows.add_row(str(place), *counts, f"{total / facts['budget']:.0%}", f"{cell['standard_error']:.2%}")
    print_table(rows, console)
    console.print(
        f"{len(proposal.cells)} of {facts['candidates']} candidate cells, {facts['cost']:.3g} of {facts['budget']:.3g} "
        f"FLOPs; standard error {facts['standard_error_before']:.2%} -> {facts['standard_error_after']:.2%}"
    )
    console.print(
        f"assumed: {facts['flops_per_params_token']:.3g} FLOPs a parameter and token; noise of a run "
        f"{facts['noise']:.2%}; the law off by {facts['drift']:.2%} an e-fold of compute away from the target; "
        f"points weighted by C^{facts['weight_power']:g}"
    )
    print_warnings(facts["warnings"], console)
