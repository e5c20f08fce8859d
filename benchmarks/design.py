"""Forecast error against what the runs cost: designed sweeps beside random, IsoFLOP and cheapest-first ones.

    python benchmarks/design.py --json benchmarks/design.json --figure docs/design.png

An arena is a table of runs whose top, above a third of the largest compute, is never trained: the forecast is scored
there. The rest are candidates. Every policy starts from the same few cheap cells, drawn by the seed, spends up to a
share of what all candidates cost, and is judged by the law fitted to what it bought. The designed ones fit, propose,
see the losses and fit again, three times. Public tables have the losses that were measured; simulated ones those of a
planted law with the noise of a run and the effect of its seed on top, and are scored against the planted law itself.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import design_report
import numpy as np
import pandas as pd
import tyro
from rich.console import Console
from rich.progress import track

from analysis.design.optimal_design import DRIFT, Policy, approximate_posterior, propose
from analysis.files import write_by_rename
from analysis.fitting.fit import compute_weights, fit_each_weighting, huber
from analysis.laws import Law, chinchilla, get_law
from analysis.tables import public

HELD = 3.0  # runs above the largest compute over this are the target
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
ROUNDS = (0.25, 0.5, 1.0)  # of a budget, spent before each new fit
PUBLIC_SEEDS = 4
POWER = 1.0  # of compute, in the weights of a fit to a public table
SEEDING = 0.005  # of the table's cost, within which the first cells are drawn
NOISE, SEED_EFFECT, SEEDS_TRAINED = 0.003, 0.0015, 3
BASELINES = ("random", "isoflop", "cheapest")
DESIGNED: Mapping[str, tuple[Policy, float]] = {
    "v": ("v", DRIFT),
    "v-cost": ("v-cost", DRIFT),
    "v-cost, no drift": ("v-cost", 0.0),
}
"""Each designed policy's ranking, and the drift that it supposes."""
POLICIES = (*BASELINES, *DESIGNED)
TRUTHS: Mapping[str, tuple[str, dict[str, float], str]] = {
    "chinchilla": ("chinchilla", {"E": 1.7, "A": 420, "B": 1800, "alpha": 0.35, "beta": 0.37}, "chinchilla"),
    "hoffmann": ("chinchilla", {"E": 1.69, "A": 406, "B": 411, "alpha": 0.339, "beta": 0.285}, "chinchilla"),
    "interaction": (
        "interaction",
        {"E": 1.55, "A": 340, "B": 35, "alpha": 0.31, "beta": 0.26, "gamma": 0.09},
        "interaction",
    ),
    "wrong law": (
        "interaction",
        {"E": 1.55, "A": 340, "B": 35, "alpha": 0.31, "beta": 0.26, "gamma": 0.09},
        "chinchilla",
    ),
}
"""Planted law, its values, and the law that is fitted."""


@dataclass(frozen=True)
class Arena:
    """candidates, held_out: columns params, tokens, flops, loss. law, power: the estimator and its weights."""

    name: str
    candidates: pd.DataFrame
    held_out: pd.DataFrame
    law: Law
    power: float

    @property
    def cost(self) -> np.ndarray:
        return self.candidates["flops"].to_numpy(float)

    def fit(self, is_trained: np.ndarray) -> np.ndarray:
        """Values fitted to the cells of each row of `is_trained` [rows, candidates]: [rows, parameters]."""
        weights = np.zeros(is_trained.shape)
        for weights_of_fit, mask in zip(weights, is_trained, strict=True):
            weights_of_fit[mask] = compute_weights(self.cost[mask], self.power)
        return fit_each_weighting(self.law, self.candidates, self.candidates["loss"].to_numpy(float), huber(), weights)[
            0
        ]

    def errors(self, values: np.ndarray) -> np.ndarray:
        """Mean over the held-out runs of |predicted / measured - 1|, [rows]."""
        named = {name: values[:, [i]] for i, name in enumerate(self.law.parameters)}
        return np.mean(np.abs(self.law(named, self.held_out) / self.held_out["loss"].to_numpy(float) - 1), 1)


def split(name: str, table: pd.DataFrame, law: Law, power: float) -> Arena:
    table = table[["params", "tokens", "flops", "loss"]].astype(float)
    top = table["flops"] > table["flops"].max() / HELD
    return Arena(name, table[~top].reset_index(drop=True), table[top].reset_index(drop=True), law, power)


def simulated(truth: str, seed: int) -> Arena:
    """A grid of 9 sizes and 9 horizons, each cell trained with one of three seeds. Held-out losses have no noise."""
    planted, values, fitted = TRUTHS[truth]
    axes = np.meshgrid(np.geomspace(1e7, 1e9, 9), np.geomspace(2e8, 2e10, 9))
    table = pd.DataFrame(dict(zip(("params", "tokens"), (axis.ravel() for axis in axes), strict=True)))
    table = table.assign(flops=6 * table["params"] * table["tokens"])
    generator = np.random.default_rng([1, seed])
    effects = generator.normal(0, SEED_EFFECT, SEEDS_TRAINED)[generator.integers(SEEDS_TRAINED, size=len(table))]
    noise = np.where(
        table["flops"] > table["flops"].max() / HELD, 0.0, effects + generator.normal(0, NOISE, len(table))
    )
    table["loss"] = get_law(planted)(values, table) * np.exp(noise)
    return split(truth, table, get_law(fitted), 0.0)


def study(arena: Arena, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One record a policy, share and seed; and one of all candidates (policy `all`, share 1)."""
    cost = arena.cost
    rows, started = [], []
    for seed in seeds:
        start = first_cells(arena, seed)
        for policy in POLICIES:
            for share in SHARES:
                if cost[start].sum() <= share * cost.sum():
                    rows.append((policy, share, seed))
                    started.append(np.isin(np.arange(len(cost)), start))
    bought = np.stack([*started, np.ones(len(cost), bool)])
    for index, (policy, share, seed) in enumerate(rows):
        if policy in BASELINES:
            bought[index] |= baseline(arena, policy, bought[index], share * cost.sum(), seed)
    designed = [index for index, (policy, _, _) in enumerate(rows) if policy in DESIGNED]
    for part in ROUNDS if designed else ():
        for index, values in zip(designed, arena.fit(bought[designed]), strict=True):
            policy, share, seed = rows[index]
            bought[index, next_cells(arena, values, bought[index], part * share * cost.sum(), policy, seed)] = True
    errors = arena.errors(arena.fit(bought))
    for (policy, share, seed), mask, error in zip([*rows, ("all", 1.0, seeds[0])], bought, errors, strict=True):
        spent = float(cost[mask].sum() / cost.sum())
        assert spent <= share * (1 + 1e-9), f"{arena.name} {policy} {share}: spent {spent}"
        yield {"policy": policy, "share": share, "seed": seed, "error": float(error), "cells": int(mask.sum())}


def first_cells(arena: Arena, seed: int) -> np.ndarray:
    """Two more cells than parameters, at random among the cheapest that cost half a percent of all together."""
    order = np.argsort(arena.cost, kind="stable")
    count = len(arena.law.parameters) + 2
    within = int(np.searchsorted(np.cumsum(arena.cost[order]), SEEDING * arena.cost.sum()))
    return np.random.default_rng([2, seed]).choice(order[: np.clip(within, count, 3 * count)], count, replace=False)


def next_cells(
    arena: Arena, values: np.ndarray, is_bought: np.ndarray, budget: float, policy: str, seed: int
) -> np.ndarray:
    """Rows of the candidates that a designed policy buys with the rest of a budget; there may be none."""
    budget_left, open_ = budget - arena.cost[is_bought].sum(), np.flatnonzero(~is_bought)
    if not np.isfinite(values).all() or not len(open_) or arena.cost[open_].min() > budget_left:
        return open_[:0]
    ranking, drift = DESIGNED[policy]
    posterior = approximate_posterior(
        arena.law, values, arena.candidates[is_bought], arena.held_out, drift=drift, seed=seed
    )
    return open_[propose(posterior, arena.candidates.iloc[open_], budget_left, policy=ranking).cells]


def baseline(arena: Arena, policy: str, is_bought: np.ndarray, budget: float, seed: int) -> np.ndarray:
    """Which further candidates a policy without a fit buys."""
    cost, budget_left = arena.cost, budget - arena.cost[is_bought].sum()
    if policy == "isoflop":
        return isoflop(arena, budget_left)
    order = np.argsort(cost, kind="stable")
    if policy == "random":
        order = np.random.default_rng([3, seed]).permutation(len(cost))
    chosen = np.zeros(len(cost), bool)
    for cell in order[~is_bought[order]]:
        if cost[cell] <= budget_left:
            chosen[cell] = True
            budget_left -= cost[cell]
    return chosen


def isoflop(arena: Arena, budget: float) -> np.ndarray:
    """The cells nearest to four budgets, 3x apart, of five sizes each over a span of 16x around 20 tokens a parameter:
    the largest such grid that is affordable, perhaps none."""
    params, tokens = np.log(arena.candidates[["params", "tokens"]].to_numpy(float)).T
    compute = np.log(6) + params + tokens
    for top in np.unique(compute)[::-1]:
        chosen = np.zeros(len(compute), bool)
        for line in top - np.log(3.0) * np.arange(4):
            for size in (line - np.log(120)) / 2 + np.log(16.0) * np.linspace(-0.5, 0.5, 5):
                chosen[np.argmin((params - size) ** 2 + (compute - line) ** 2)] = True
        if arena.cost[chosen].sum() <= budget:
            return chosen
    return np.zeros(len(compute), bool)


def least(truth: str) -> dict[str, float]:
    """Standard error of the forecast of the best set found at each share, over that of all candidates, were the truth
    known and the law exact: what no policy can be expected to beat."""
    arena, (planted, values, _) = simulated(truth, 0), TRUTHS[truth]
    law = get_law(planted)
    vector = np.array([values[name] for name in law.parameters])
    cheapest = arena.candidates.iloc[[int(np.argmin(arena.cost))]]
    posterior = approximate_posterior(law, vector, cheapest, arena.held_out, drift=0.0, draws=1)
    whole = arena.cost.sum()
    error = {
        share: propose(posterior, arena.candidates, share * whole, policy="v-cost").standard_errors[-1]
        for share in (*SHARES, 1.0)
    }
    return {str(share): float(error[share] / error[1.0]) for share in SHARES}


def arenas(data: Path, sims: int) -> Iterator[tuple[str, Arena, Sequence[int]]]:
    """Every arena of every group, with the seeds of its policies."""
    for truth in TRUTHS:
        for seed in range(sims):
            yield f"simulated, {truth}", simulated(truth, seed), [seed]
    for law in (chinchilla, get_law("interaction")):
        for name, table in public.read_all(data):
            yield f"public, {law.name}", split(name, table, law, POWER), range(PUBLIC_SEEDS)


def main(
    data: Path = public.DATA_FOLDER,
    sims: int = 16,
    records: Path = Path("out/design.csv"),
    json_: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    figure_: Annotated[Path | None, tyro.conf.arg(name="figure")] = None,
) -> None:
    """Run the study, print its summary, and write it. Takes about half an hour on two cores; a second call continues.

    Args:
      data: Folder of public tables.
      sims: Simulated tables of each truth.
      records: CSV of every forecast; arenas that it contains are not run again.
      json_: File for the facts.
      figure_: File for the figure, .png or .svg.
    """
    table = (
        pd.read_csv(records) if records.exists() else pd.DataFrame({name: [] for name in ("group", "table", "seed")})
    )
    finished = set(zip(table["group"], table["table"], table["seed"], strict=True))
    for group, arena, seeds in track(list(arenas(data, sims)), "arenas", console=Console(stderr=True)):
        if (group, arena.name, seeds[0]) not in finished:
            rows = [{"group": group, "table": arena.name} | record for record in study(arena, seeds)]
            table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
            write_by_rename(records, lambda path, table=table: table.to_csv(path, index=False))
    facts = {
        "date": datetime.date.today().isoformat(),
        "jax": version("jax"),
        "shares": SHARES,
        "simulated_tables": sims,
        "public_seeds": PUBLIC_SEEDS,
        "noise": NOISE,
        "seed_effect": SEED_EFFECT,
        "least": {truth: least(truth) for truth in TRUTHS if TRUTHS[truth][0] == TRUTHS[truth][2]},
        "summary": design_report.summary(table),
        "tables": design_report.tables(table),
    }
    with pd.option_context("display.width", 200, "display.max_rows", 999):
        print(pd.DataFrame(facts["summary"]).round(4).to_string())
    if json_:
        json_.write_text(json.dumps(design_report.short(facts), indent=1) + "\n")
    if figure_:
        design_report.figure(facts).savefig(figure_, dpi=200)


if __name__ == "__main__":
    tyro.cli(main)
