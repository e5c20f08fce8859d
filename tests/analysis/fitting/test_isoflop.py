"""Approaches 1 and 2 and Akima's argmin: planted surfaces, known biases, public optima."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.commands import isoflop as isoflop_
from analysis.errors import TableError
from analysis.fitting import isoflop

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
EXPONENT = BETA / (ALPHA + BETA)


def best_params(flops: np.ndarray | float) -> np.ndarray:
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (np.asarray(flops) / 6) ** EXPONENT


def surface(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return E + A / params**ALPHA + B / tokens**BETA


def grid(span: float, sizes: int = 15, budgets: int = 5, off: float = 0.0) -> pd.DataFrame:
    """Noise-free budgets, sizes in equal ratios around the true optimum times e^off."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    offsets = np.tile(np.linspace(-np.log(span), np.log(span), sizes), budgets)
    params = best_params(flops) * np.exp(offsets + off)
    tokens = flops / (6 * params)
    return pd.DataFrame({"params": params, "tokens": tokens, "flops": flops, "loss": surface(params, tokens)})


@pytest.mark.parametrize(("span", "published"), [(2, -0.33), (4, -1.30), (8, -2.90), (16, -5.10)])
def test_parabola_bias_is_the_published_one(span: float, published: float) -> None:
    """Against the closed form, and against approach 2 run on the surface itself and extrapolated to 1e24 FLOPs."""
    bias = isoflop.symmetric_bias(span)
    assert round(100 * bias.tokens, 2) == published
    found = isoflop.approach_2(grid(span))
    forecast = found.tokens_law(1e24) / (1e24 / 6 / best_params(1e24)) - 1
    assert forecast == pytest.approx(bias.tokens, rel=1e-6)
    assert found.params_law.exponent == pytest.approx(EXPONENT, abs=1e-8)
    assert found.bias.tokens == pytest.approx(bias.tokens, rel=1e-6)


def test_bias_printed_with_a_result_is_what_that_grid_did() -> None:
    """Budgets of unequal and lopsided grids: the error made is the error that the result prints."""
    table = pd.concat([grid(4, off=0.3).query("flops < 1e19"), grid(16, sizes=9, off=-0.5).query("flops >= 1e19")])
    found = isoflop.approach_2(table)
    error = found.params_law(1e24) / best_params(1e24) - 1
    assert error > 0.1
    assert found.bias.params == pytest.approx(error, rel=1e-6)
    assert f"{found.bias.params:+.2%}" in repr(found)


def test_akima_is_less_biased_than_a_parabola() -> None:
    table = grid(16)
    errors = [abs(f(table).params_law(1e24) / best_params(1e24) - 1) for f in (isoflop.akima, isoflop.approach_2)]
    assert errors[0] < 0.2 * errors[1]


def test_noise_sets_weights_and_skips_budgets() -> None:
    """A budget whose optimum is at its edge is skipped; a loss so flat that noise decides has a larger std."""
    table = grid(8, sizes=9)
    edge = table["flops"] == table["flops"].max()
    table = table[~edge | (table["params"] < best_params(1e21) / 1.5)]
    found = isoflop.akima(table, noise=1e-3, draws=300)
    assert found.skipped == (pytest.approx(1e21),)
    assert len(found.log_std) == len(found.params) == 4
    louder = isoflop.akima(table, noise=3e-2, draws=300)
    assert np.mean(louder.log_std) > 1.5 * np.mean(found.log_std)
    assert isoflop.akima(table, noise=3e-2, draws=300) == louder
    assert isoflop.akima(table, noise=3e-2, draws=300, seed=1) != louder


def test_a_budget_whose_optimum_is_lost_in_noise_is_skipped() -> None:
    """Three sizes of nearly one loss: noise puts the lowest at an end in most draws."""
    table = grid(8, sizes=3)
    flat = table["flops"] > 9e20
    table.loc[flat, "loss"] = [2.0001, 2.0, 2.0001]
    assert isoflop.akima(table).skipped == ()
    assert isoflop.akima(table, noise=1e-2, draws=300).skipped == (pytest.approx(1e21),)


def test_envelope_of_training_curves() -> None:
    """On dense curves approach 1 is nearly exact; on few sizes it is not, and says about how much."""
    params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e11, 41), np.geomspace(1e8, 1e13, 101)))
    table = pd.DataFrame({"params": params, "tokens": tokens, "loss": surface(params, tokens)})
    dense = isoflop.approach_1(table)
    assert dense.params_law.exponent == pytest.approx(EXPONENT, abs=1e-3)
    assert dense.params_law(1e24) == pytest.approx(best_params(1e24), rel=0.01)
    assert params.min() < min(dense.params)
    assert max(dense.params) < params.max()
    few = isoflop.approach_1(table[table["params"].isin(np.unique(params)[::10])])
    error = few.params_law(1e24) / best_params(1e24) - 1
    assert abs(error) > 0.02
    assert few.bias.params == pytest.approx(error, rel=0.5)


def test_one_size_has_no_envelope() -> None:
    table = grid(4)
    with pytest.raises(TableError, match=r"\b1\b.*\b2\b"):
        isoflop.approach_1(table.assign(params=1e8, tokens=table["flops"] / 6e8))


def test_no_optimum_between_the_sizes_is_an_error() -> None:
    small = grid(4)
    small = small[small["params"] < best_params(small["flops"].to_numpy()) / 1.2]
    with pytest.raises(TableError, match=r"\b0\b.*\b5\b"):
        isoflop.approach_2(small)


def test_bad_table_is_named() -> None:
    with pytest.raises(TableError, match="loss"):
        isoflop.approach_2(grid(4).drop(columns="loss"))
    bad = grid(4)
    bad.loc[3, "loss"] = -1.0
    with pytest.raises(TableError, match=r"\b4\b.*loss"):
        isoflop.akima(bad)


def test_results_print_themselves_and_become_json() -> None:
    found = isoflop.approach_2(grid(8))
    for number in (f"{found.params_law.exponent:.4f}", f"{found.tokens_law.exponent:.4f}", "-2.90%"):
        assert number in repr(found)
    read = json.loads(found.to_json())
    assert read["params_law"]["exponent"] == found.params_law.exponent
    assert read["bias"]["tokens"] == found.bias.tokens
    assert len(read["flops"]) == 5


def test_chinchilla_points(shared_data: Path) -> None:
    """Approaches 1 and 2 on the digitised points come near Hoffmann's a = .50 and .49 (table 2)."""
    table = pd.read_csv(shared_data / "chinchilla_epoch" / "chinchilla_nd_loss.csv")
    table = table.rename(columns={"N": "params", "D": "tokens", "C": "flops"})
    assert isoflop.approach_1(table).params_law.exponent == pytest.approx(0.50, abs=0.02)
    assert isoflop.approach_2(table).params_law.exponent == pytest.approx(0.49, abs=0.03)


def test_the_verb_prints_each_approach_with_the_bias_of_its_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets, spans = np.meshgrid(np.geomspace(1e18, 1e20, 5), np.geomspace(1 / 8, 8, 9), indexing="ij")
    params = np.sqrt(budgets / 120) * spans
    table = pd.DataFrame({"params": params.ravel(), "tokens": (budgets / 6 / params).ravel()})
    table["loss"] = 1.7 + 400 / table["params"] ** 0.34 + 410 / table["tokens"] ** 0.28
    table.to_csv(tmp_path / "t.csv", index=False)
    facts = isoflop_.isoflop(tmp_path / "t.csv", json=tmp_path / "f.json")
    assert set(facts) == {"approach_1", "approach_2", "akima"}
    assert facts["approach_2"]["params_law"]["exponent"] == pytest.approx(0.28 / 0.62, abs=0.02)
    said = " ".join(capsys.readouterr().out.split())
    biases = [found["bias"] for found in facts.values() if found["bias"]]
    assert len(biases) >= 2
    assert all(f"{bias['params']:+.2%}" in said and f"{bias['tokens']:+.2%}" in said for bias in biases)
    assert json.loads((tmp_path / "f.json").read_text())["akima"]["flops"]


def test_a_column_of_budgets_beside_6nd_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that miss their budget by some percent fall into more groups by 6ND than there are budgets."""
    table = grid(4, sizes=5).rename(columns={"flops": "budget"})
    table["tokens"] *= np.exp(np.random.default_rng(0).normal(0, 0.2, len(table)))
    assert "--columns flops=budget" in " ".join(isoflop.budget_warnings(table))
    assert isoflop.budget_warnings(table.rename(columns={"budget": "flops"})) == []
    assert isoflop.budget_warnings(table.assign(budget=table["budget"] * 1e6)) == [], "another unit or quantity"
    exact = grid(4, sizes=5)
    assert isoflop.budget_warnings(exact.assign(budget=exact["flops"])) == [], "the same budgets"
    table.to_csv(tmp_path / "t.csv", index=False)
    facts = isoflop_.isoflop(tmp_path / "t.csv")
    assert "budget" in facts["warnings"][0]
    assert facts["warnings"][0] in capsys.readouterr().out
    assert len(isoflop_.isoflop(tmp_path / "t.csv", columns="flops=budget")["akima"]["flops"]) == 5
