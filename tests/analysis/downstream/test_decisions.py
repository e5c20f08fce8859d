from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.downstream import decisions
from analysis.downstream.decisions import agreement, decision_accuracy
from analysis.errors import TableError
from tests.support.task_tables import CHANCE, grid_of_cells, make_task_table, true_bits_per_byte

CELLS = grid_of_cells(4, 5)


def recipe(name: str, shift: float, seed: int | None = None, steep: float = 1.0, questions: int = 4000) -> pd.DataFrame:
    """A recipe whose runs need `shift` bits per byte less than those of another, and rise `steep` times as fast."""

    def truth(n, d):
        return CHANCE + (1 - CHANCE) / (1 + np.exp(4 * (steep * (true_bits_per_byte(n, d) - 2.0) + 2.0 - shift - 1.8)))

    rows = make_task_table({"t": truth}, seed, questions=questions, cells=CELLS)
    return rows.assign(recipe=f"{name}(size=1)", run_id=f"{name}-" + rows["run_id"], loss=rows["loss"] - shift)


def test_recipes_of_a_known_order_are_told_apart() -> None:
    rows = pd.concat(
        [recipe(name, shift, seed) for seed, (name, shift) in enumerate([("a", 0.0), ("b", 0.2), ("c", 0.4)])]
    )
    found = decision_accuracy(rows, "recipe", "t")
    assert found.recipes == ("a", "b", "c")
    assert found.pairs == 3
    assert found.target["params"] == pytest.approx(220_000)
    assert len(found.levels) == len(CELLS[0]) - 1
    assert found.levels["ranking"].iloc[-6:].mean() > 0.95
    assert found.levels["laws"].iloc[-6:].mean() > 0.95
    losses = decision_accuracy(rows, "recipe")
    assert losses.levels["ranking"].mean() > 0.95
    assert losses.levels["laws"].iloc[-6:].mean() > 0.95


def test_noise_makes_small_runs_toss_a_coin() -> None:
    rows = pd.concat([recipe(name, 0.001 * i, i, questions=100) for i, name in enumerate("abcde")])
    assert decision_accuracy(rows, "recipe", "t").levels["ranking"].mean() == pytest.approx(0.5, abs=0.15)


def test_laws_see_a_crossing_that_ranking_cannot() -> None:
    """One recipe is better when small, the other rises faster: at first the ranking of runs is wrong."""
    rows = pd.concat([recipe("slow", 0.1, steep=0.8), recipe("fast", 0.0, steep=1.4)])
    found = decision_accuracy(rows, "recipe", "t").levels
    early = found[found["ranking"] == 0]
    assert len(early) > 2
    assert early["laws"].iloc[-1] == 1


def test_agreement() -> None:
    final = np.array([0.1, 0.2, 0.3, 0.3])
    assert agreement(final, final) == 1
    assert agreement(-final, final) == 0
    assert agreement(np.zeros(4), final) == 0.5
    assert agreement(np.array([1.0, 2.0, 3.0, 0.0]), final) == pytest.approx(3 / 5)
    assert np.isnan(agreement(final, np.zeros(4)))


def test_only_cells_that_all_recipes_have_are_compared() -> None:
    one, other = recipe("a", 0.0), recipe("b", 0.2)
    other = other[other["params_matmul"] < 2e5].assign(tokens=other["tokens"] * 1.002)
    found = decision_accuracy(pd.concat([one, other]), "recipe", "t")
    assert found.target["params"] < 2e5
    assert len(found.levels) == 14
    assert decision_accuracy(pd.concat([one, other]), "recipe", "t", target="1e11").target["flops"] < 2e11


def test_bad_input_is_one_line() -> None:
    rows = pd.concat([recipe("a", 0.0), recipe("b", 0.2)])
    with pytest.raises(TableError, match="--by corpus"):
        decision_accuracy(rows, "corpus", "t")
    with pytest.raises(TableError, match=r"--by recipe.*\(a\)"):
        decision_accuracy(recipe("a", 0.0), "recipe", "t")
    apart = pd.concat([recipe("a", 0.0), recipe("b", 0.0).assign(tokens=lambda t: t["tokens"] * 3.3)])
    with pytest.raises(TableError, match=r"--by recipe.*\b0\b.*\ba, b\b"):
        decision_accuracy(apart, "recipe", "t")
    with pytest.raises(TableError, match=r"--by recipe.*\bdone\b"):
        decision_accuracy(rows.assign(status="failed"), "recipe", "t")
    lacking = rows.assign(**{"t/accuracy": rows["t/accuracy"].where(rows["recipe"] == "a(size=1)")})
    with pytest.raises(TableError, match=r"--by recipe.*\bb\b.*\bt\b.*\bdone\b"):
        decision_accuracy(lacking, "recipe", "t")
    with pytest.raises(TableError, match="target soon"):
        decision_accuracy(rows, "recipe", "t", target="soon")


def test_three_training_sets_of_104_public_models(shared_data: Path) -> None:
    """Gadre et al. 2024. Models of 79 million parameters and more order training sets by HellaSwag better than chance,
    those of 11 million worse than these."""
    public = pd.read_csv(shared_data / "gadre_overtrain" / "gadre_104_models.csv")
    right = 1 - public["err_hellaswag"]
    rows = pd.DataFrame({"params": public["N"], "tokens": public["D"], "flops": public["flops"]}).assign(
        corpus=public["dataset_name"],
        loss=public["loss_c4_val"],
        **{"hellaswag/accuracy": right, "hellaswag/chance": 0.25},
    )
    found = decision_accuracy(rows, "corpus", "hellaswag")
    assert found.recipes == ("c4_original", "rpj", "rw_original")
    assert found.target["params"] == pytest.approx(6.9e9, rel=0.01)
    above = found.levels[found.levels["params"] > 7e7]
    below = found.levels[found.levels["params"] < 7e7]
    assert above["ranking"].mean() > max(0.65, below["ranking"].mean())
    assert decisions.recipe_points(rows, "corpus", "loss", None)["score"].max() < 0
