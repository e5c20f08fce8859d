"""Designs: what a variance means, which cells are taken, and that a forecast is the better for it."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.commands import design
from analysis.design.optimal_design import (
    PRIOR_NOISE,
    PRIOR_NOISE_WEIGHT,
    Policy,
    Posterior,
    approximate_posterior,
    propose,
)
from analysis.errors import TableError
from analysis.fitting.fit import fit_law, huber, mse_log, refit
from analysis.laws import chinchilla, get_law
from analysis.tables.results import select_points
from tests.conftest import PLANTED, in_process, simulated

VALUES = np.array([PLANTED[name] for name in chinchilla.parameters])
TARGET = pd.DataFrame({"params": [3e9], "tokens": [6e10], "flops": [6.2 * 3e9 * 6e10]})


def table(noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    return select_points(simulated(noise, seed)).table


@pytest.fixture(scope="module")
def cheap() -> pd.DataFrame:
    return table(3e-3, seed=1).nsmallest(10, "flops").reset_index(drop=True)


@pytest.fixture(scope="module")
def offered() -> pd.DataFrame:
    return table().nlargest(20, "flops").reset_index(drop=True)


@pytest.fixture(scope="module")
def posterior(cheap: pd.DataFrame) -> Posterior:
    return approximate_posterior(chinchilla, VALUES, cheap, TARGET)


def test_the_standard_error_is_the_spread_of_refits() -> None:
    points, noise = table(), 2e-3
    fit = fit_law(chinchilla, points, points["loss"], mse_log)
    losses = points["loss"].to_numpy() * np.exp(np.random.default_rng(0).normal(0, noise, (400, len(points))))
    draws = refit(fit, points, losses)
    forecasts = np.log(chinchilla({n: draws[:, [i]] for i, n in enumerate(chinchilla.parameters)}, TARGET))
    posterior = approximate_posterior(chinchilla, fit.vector(), points, TARGET, drift=0.0, draws=1)
    scale = noise / posterior.noise
    assert float(np.std(forecasts)) == pytest.approx(posterior.standard_error * scale, rel=0.1)


def test_noise_is_that_of_the_residuals_and_a_guess() -> None:
    at = {
        noise: approximate_posterior(chinchilla, VALUES, table(noise, 2), TARGET, drift=0.0).noise
        for noise in (0.0, 3e-3, 1e-2)
    }
    assert at[0.0] < at[3e-3] < at[1e-2]
    assert at[3e-3] == pytest.approx(3e-3, rel=0.3)
    assert at[1e-2] == pytest.approx(1e-2, rel=0.3)
    assert at[0.0] > 5e-4, "a perfect fit to a few points is no proof of no noise"
    points = table()
    points["loss"] *= np.exp(np.tile([0.01, -0.01], len(points) // 2))
    expected = (PRIOR_NOISE_WEIGHT * PRIOR_NOISE**2 + len(points) * 0.01**2) / (
        PRIOR_NOISE_WEIGHT + len(points) - len(VALUES)
    )
    assert approximate_posterior(chinchilla, VALUES, points, TARGET, drift=0.0).noise ** 2 == pytest.approx(
        expected, rel=1e-6
    )


def test_the_first_cell_is_the_best_of_all(posterior: Posterior, offered: pd.DataFrame) -> None:
    errors = [
        replace(posterior, precision=posterior.precision_with(offered.iloc[[i]])).standard_error
        for i in range(len(offered))
    ]
    proposal = propose(posterior, offered, 1e30, policy="v", max_cells=1)
    assert proposal.cells.tolist() == [int(np.argmin(errors))]
    assert proposal.standard_errors == pytest.approx([posterior.standard_error, min(errors)], rel=1e-6)
    assert min(errors) < 0.9 * posterior.standard_error


@pytest.mark.parametrize("budget", [6e20, 3e20])
def test_greedy_is_near_the_best_of_every_set(posterior: Posterior, offered: pd.DataFrame, budget: float) -> None:
    few = offered.iloc[::3].reset_index(drop=True)
    cost = few["flops"].to_numpy()
    sets = [
        list(s) for n in (1, 2, 3) for s in itertools.combinations(range(len(few)), n) if cost[list(s)].sum() <= budget
    ]
    errors = [replace(posterior, precision=posterior.precision_with(few.iloc[s])).standard_error for s in sets]
    proposal = propose(posterior, few, budget, policy="v-cost", max_cells=3)
    assert proposal.standard_errors[-1] == pytest.approx(min(errors), rel=0.05)
    assert proposal.standard_errors[-1] < np.median(errors)


@pytest.mark.parametrize("policy", ["v", "v-cost"])
@pytest.mark.parametrize("budget", [1e19, 7e19, 1e21, 1e30])
def test_no_budget_is_exceeded_and_every_cell_lowers_the_error(
    posterior: Posterior, offered: pd.DataFrame, policy: Policy, budget: float
) -> None:
    proposal = propose(posterior, offered, budget, policy=policy)
    assert proposal.cost == pytest.approx(offered["flops"].iloc[proposal.cells].sum())
    assert proposal.cost <= budget
    assert len(set(proposal.cells.tolist())) == len(proposal.cells) > 0
    assert len(proposal.standard_errors) == len(proposal.cells) + 1
    assert (np.diff(proposal.standard_errors) < 0).all()
    left = np.delete(offered["flops"].to_numpy(), proposal.cells)
    assert not (left <= budget - proposal.cost).any(), "every affordable cell is chosen"
    after = replace(posterior, precision=posterior.precision_with(offered.iloc[proposal.cells]))
    assert proposal.standard_errors[-1] == pytest.approx(after.standard_error, rel=1e-6)


def test_v_cost_prefers_cheaper_cells(posterior: Posterior, offered: pd.DataFrame) -> None:
    by_cell, by_cost = (propose(posterior, offered, 4e20, policy=policy) for policy in ("v", "v-cost"))
    assert by_cost.standard_errors[-1] < by_cell.standard_errors[-1]
    assert len(by_cost.cells) > len(by_cell.cells)


def test_drift_moves_cells_towards_the_target(cheap: pd.DataFrame, offered: pd.DataFrame) -> None:
    mean = {}
    for drift in (0.0, 0.05):
        posterior = approximate_posterior(chinchilla, VALUES, cheap, TARGET, drift=drift)
        variance = posterior.run_variance(np.array([1e17, 1e19, float(TARGET["flops"].iloc[0]), 1e25]))
        assert variance[-1] == pytest.approx(posterior.noise**2)
        assert (np.diff(variance) <= 0).all()
        assert (variance[0] > variance[2]) == (drift > 0)
        proposal = propose(posterior, offered, 6e20, max_cells=4)
        mean[drift] = np.log(offered["flops"].iloc[proposal.cells]).mean()
    assert mean[0.05] > mean[0.0]


def test_designed_cells_forecast_better_than_the_cheapest() -> None:
    """In two rounds from the same eight cells, at the same cost, over the noise of forty sweeps."""
    exact = table()
    cost, loss = exact["flops"].to_numpy(), exact["loss"].to_numpy()
    order, budget = np.argsort(cost), 0.08 * cost.sum()
    noisy = loss * np.exp(np.random.default_rng(3).normal(0, 3e-3, (40, len(loss))))
    chosen = order[:8]
    for part in (0.5, 1.0):
        seen, rest = exact.assign(loss=noisy[0]).iloc[chosen], np.setdiff1d(order, chosen)
        fitted = fit_law(chinchilla, seen, seen["loss"], huber())
        posterior = approximate_posterior(chinchilla, fitted.vector(), seen, TARGET, drift=0.0)
        left = part * budget - cost[chosen].sum()
        chosen = np.concatenate([chosen, rest[propose(posterior, exact.iloc[rest], left, policy="v-cost").cells]])
    whole, truth = fit_law(chinchilla, exact, loss, huber()), chinchilla(PLANTED, TARGET)
    errors = []
    for cells in (chosen, order[np.cumsum(cost[order]) <= budget]):
        assert cost[cells].sum() <= budget
        mask = np.isin(np.arange(len(cost)), cells).astype(float)
        values = refit(whole, exact, noisy, np.tile(mask, (len(noisy), 1)))
        forecasts = chinchilla({n: values[:, [i]] for i, n in enumerate(chinchilla.parameters)}, TARGET)
        errors.append(np.mean(np.abs(forecasts / truth - 1)))
    assert errors[0] < 0.8 * errors[1]


def test_the_same_seed_gives_the_same_design(cheap: pd.DataFrame, posterior: Posterior) -> None:
    repeated, other = (
        approximate_posterior(chinchilla, VALUES, cheap, TARGET),
        approximate_posterior(chinchilla, VALUES, cheap, TARGET, seed=1),
    )
    assert np.array_equal(repeated.thetas, posterior.thetas)
    assert not np.array_equal(other.thetas[1:], posterior.thetas[1:])
    assert np.array_equal(other.thetas[0], posterior.thetas[0]), "the first is the fit"


def test_wrong_arguments_are_errors_that_name_them(
    cheap: pd.DataFrame, posterior: Posterior, offered: pd.DataFrame
) -> None:
    with pytest.raises(TableError, match=r"kaplan_like.*params.*tokens"):
        approximate_posterior(replace(get_law("m2"), name="kaplan_like"), VALUES, cheap, TARGET)
    with pytest.raises(TableError, match=r"drift -0\.1"):
        approximate_posterior(chinchilla, VALUES, cheap, TARGET, drift=-0.1)
    with pytest.raises(TableError, match=r"budget 1e\+10\b.*\b20\b"):
        propose(posterior, offered, 1e10)
    with pytest.raises(TableError, match=r"budget 1e\+30"):
        propose(posterior, offered.iloc[:0], 1e30)


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return simulated(3e-3, seed=1).nsmallest(14, "flops")


def test_the_verb_states_cells_errors_and_assumptions(
    runs: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.to_csv(tmp_path / "runs.csv", index=False)
    facts = design.design(tmp_path / "runs.csv", 2e19, cells=4, json=tmp_path / "d.json")
    output = capsys.readouterr().out
    assert json.loads((tmp_path / "d.json").read_text()) == facts
    goal, cells = facts["target"], facts["cells"]
    assert goal["flops"] == pytest.approx(10 * runs["flops"].max())
    assert facts["flops_per_params_token"] == pytest.approx(6.2)
    assert 1 <= len(cells) <= 4
    assert sum(cell["flops"] for cell in cells) == pytest.approx(facts["cost"])
    assert facts["cost"] <= 2e19
    assert all(cell["flops"] < goal["flops"] for cell in cells)
    errors = [facts["standard_error_before"], *(cell["standard_error"] for cell in cells)]
    assert (np.diff(errors) < 0).all()
    assert errors[-1] == facts["standard_error_after"]
    for cell in cells:
        (line,) = [
            line
            for line in output.splitlines()
            if f"{cell['params']:,.0f}  " in line and f"{cell['tokens']:,.0f}" in line
        ]
        assert f"{cell['standard_error']:.2%}" in line
    assumed = ("6.2", f"{facts['noise']:.2%}", f"{facts['drift']:.2%}", f"C^{facts['weight_power']:g}")
    assert (facts["drift"], facts["weight_power"]) == (0.01, 1.0)
    assert any(all(number in line for number in assumed) for line in output.splitlines())


def test_a_notebook_names_its_own_target_and_cells(runs: pd.DataFrame) -> None:
    offered = pd.DataFrame({"params": [1e8, 3e8, 1e9], "tokens": [1e10, 1e10, 1e10]})
    proposal = api.design(runs, 1e20, target=(2e9, 4e10), candidates=offered)
    assert proposal.target.iloc[0].tolist() == pytest.approx([2e9, 4e10, 6.2 * 8e19])
    assert set(proposal.cells["params"]) <= {1e8, 3e8, 1e9}
    assert proposal.cells["flops"].sum() <= 1e20
    assert repr(proposal).startswith(f"Design({len(proposal.cells)} ")
    assert json.loads(proposal.to_json()) == json.loads(json.dumps(proposal.facts()))
    dear = api.design(runs, 1e20, target=(2e9, 4e10), candidates=offered.assign(flops=[9e19, 1e30, 1e30]))
    assert dear.cells["params"].tolist() == [1e8], "given costs are used"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--budget"),
        (["--budget", "-1"], r"budget -1\.0"),
        (["--budget", "1e19", "--target-params", "1e9"], "--target-params.*--target-tokens"),
        (["--budget", "1e19", "--cells", "0"], r"cells 0\b"),
        (["--budget", "1e19", "--sizes", "1"], r"sizes 1\b"),
        (["--budget", "1e19", "--weight-power", "-1"], r"--weight-power -1\.0"),
        (["--budget", "1e19", "--law", "chinchila"], r"chinchila\b.*chinchilla"),
        (["--budget", "1e19", "--candidates", "cells.csv"], "candidates.*tokens"),
        (
            ["--budget", "1e19", "--candidates", "odd.csv"],
            r"candidates.*\b2\b.*tokens",
        ),
    ],
)
def test_the_verb_names_what_is_wrong(runs: pd.DataFrame, tmp_path: Path, flags: list[str], words: str) -> None:
    runs.to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "cells.csv").write_text("params\n1e8\n")
    (tmp_path / "odd.csv").write_text("params,tokens\n1e8,1e9\n1e8,-3\n")
    done = in_process("design", "runs.csv", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(words, " ".join(done.stderr.split()))
