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


def make_recipe_table(
    name: str, shift: float, seed: int | None = None, steep: float = 1.0, questions: int = 4000
) -> pd.DataFrame:
    """Runs of one recipe: `shift` bits per byte below the others, and rising `steep` times as fast with scale."""

    def truth(n, d):
        return CHANCE + (1 - CHANCE) / (1 + np.exp(4 * (steep * (true_bits_per_byte(n, d) - 2.0) + 2.0 - shift - 1.8)))

    rows = make_task_table({"t": truth}, seed, questions=questions, cells=CELLS)
    return rows.assign(recipe=f"{name}(size=1)", run_id=f"{name}-" + rows["run_id"], loss=rows["loss"] - shift)


def test_decisions_find_the_known_order_of_recipes() -> None:
    rows = pd.concat(
        [
            make_recipe_table(name, shift, seed)
            for seed, (name, shift) in enumerate([("a", 0.0), ("b", 0.2), ("c", 0.4)])
        ]
    )
    result = decision_accuracy(rows, "recipe", "t")
    assert result.recipes == ("a", "b", "c")
    assert result.pairs == 3
    assert result.target["params"] == pytest.approx(220_000)
    assert len(result.levels) == len(CELLS[0]) - 1
    assert result.levels["ranking"].iloc[-6:].mean() > 0.95
    assert result.levels["laws"].iloc[-6:].mean() > 0.95
    losses = decision_accuracy(rows, "recipe")
    assert losses.levels["ranking"].mean() > 0.95
    assert losses.levels["laws"].iloc[-6:].mean() > 0.95


def test_decisions_are_random_if_noise_exceeds_the_differences() -> None:
    rows = pd.concat([make_recipe_table(name, 0.001 * i, i, questions=100) for i, name in enumerate("abcde")])
    assert decision_accuracy(rows, "recipe", "t").levels["ranking"].mean() == pytest.approx(0.5, abs=0.15)


def test_laws_predict_a_crossing_that_ranking_misses() -> None:
    """One recipe is better when small, the other rises faster: at first the ranking of runs is wrong."""
    rows = pd.concat([make_recipe_table("slow", 0.1, steep=0.8), make_recipe_table("fast", 0.0, steep=1.4)])
    result = decision_accuracy(rows, "recipe", "t").levels
    early = result[result["ranking"] == 0]
    assert len(early) > 2
    assert early["laws"].iloc[-1] == 1


def test_agreement_is_the_share_of_pairs_in_the_same_order() -> None:
    final = np.array([0.1, 0.2, 0.3, 0.3])
    assert agreement(final, final) == 1
    assert agreement(-final, final) == 0
    assert agreement(np.zeros(4), final) == 0.5
    assert agreement(np.array([1.0, 2.0, 3.0, 0.0]), final) == pytest.approx(3 / 5)
    assert np.isnan(agreement(final, np.zeros(4)))


def test_only_cells_that_all_recipes_have_are_compared() -> None:
    one, other = make_recipe_table("a", 0.0), make_recipe_table("b", 0.2)
    other = other[other["params_matmul"] < 2e5].assign(tokens=other["tokens"] * 1.002)
    result = decision_accuracy(pd.concat([one, other]), "recipe", "t")
    assert result.target["params"] < 2e5
    assert len(result.levels) == 14
    assert decision_accuracy(pd.concat([one, other]), "recipe", "t", target="1e11").target["flops"] < 2e11


def test_wrong_input_is_an_error_that_names_it() -> None:
    rows = pd.concat([make_recipe_table("a", 0.0), make_recipe_table("b", 0.2)])
    with pytest.raises(TableError, match="--by corpus"):
        decision_accuracy(rows, "corpus", "t")
    with pytest.raises(TableError, match=r"--by recipe.*\(a\)"):
        decision_accuracy(make_recipe_table("a", 0.0), "recipe", "t")
    disjoint = pd.concat(
        [make_recipe_table("a", 0.0), make_recipe_table("b", 0.0).assign(tokens=lambda t: t["tokens"] * 3.3)]
    )
    with pytest.raises(TableError, match=r"--by recipe.*\b0\b.*\ba, b\b"):
        decision_accuracy(disjoint, "recipe", "t")
    with pytest.raises(TableError, match=r"--by recipe.*\bdone\b"):
        decision_accuracy(rows.assign(status="failed"), "recipe", "t")
    incomplete = rows.assign(**{"t/accuracy": rows["t/accuracy"].where(rows["recipe"] == "a(size=1)")})
    with pytest.raises(TableError, match=r"--by recipe.*\bb\b.*\bt\b.*\bdone\b"):
        decision_accuracy(incomplete, "recipe", "t")
    with pytest.raises(TableError, match="target soon"):
        decision_accuracy(rows, "recipe", "t", target="soon")


def test_decisions_on_104_public_models(shared_data: Path) -> None:
    """Gadre et al. 2024. Models of 79 million parameters and more order training sets by HellaSwag better than chance,
    those of 11 million worse than these."""
    public = pd.read_csv(shared_data / "gadre_overtrain" / "gadre_104_models.csv")
    right = 1 - public["err_hellaswag"]
    rows = pd.DataFrame({"params": public["N"], "tokens": public["D"], "flops": public["flops"]}).assign(
        corpus=public["dataset_name"],
        loss=public["loss_c4_val"],
        **{"hellaswag/accuracy": right, "hellaswag/chance": 0.25},
    )
    result = decision_accuracy(rows, "corpus", "hellaswag")
    assert result.recipes == ("c4_original", "rpj", "rw_original")
    assert result.target["params"] == pytest.approx(6.9e9, rel=0.01)
    above = result.levels[result.levels["params"] > 7e7]
    below = result.levels[result.levels["params"] < 7e7]
    assert above["ranking"].mean() > max(0.65, below["ranking"].mean())
    assert decisions.recipe_points(rows, "corpus", "loss", None)["score"].max() < 0
