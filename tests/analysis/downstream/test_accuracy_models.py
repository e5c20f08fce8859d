"""Each road finds the values it was planted with, from runs without noise, and forecasts what lies far beyond them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from analysis.downstream import accuracy_models
from analysis.downstream.accuracy_models import BITS, COMPUTE, FREE_BITS, LOSS, SURFACE, Road
from analysis.downstream.task_table import task_points
from tests.support.task_tables import CHANCE, bits, grid, table

FAR = pd.DataFrame({"params": [1e6], "tokens": [2e7], "flops": [1.2e14], "chance": [CHANCE], "ceiling": [1.0]})
PLANTED = {
    COMPUTE: lambda n, d: CHANCE + (1 - CHANCE) * np.exp(-((6 * n * d / 2e12) ** -0.4)),
    SURFACE: lambda n, d: CHANCE + (1 - CHANCE) * np.exp(-((n / 5e4) ** -0.5) - (d / 1e6) ** -0.7),
    BITS: lambda n, d: CHANCE + (1 - CHANCE) / (1 + np.exp(4 * (bits(n, d) - 1.8))),
    FREE_BITS: lambda n, d: 0.2 + 0.5 / (1 + np.exp(6 * (bits(n, d) - 1.9))),
    LOSS: lambda n, d: 1 - (0.75 - 2.0 * np.exp(-1.5 * 0.7 * bits(n, d))),
}
EVERY = pytest.mark.parametrize("road", PLANTED, ids=lambda road: road.name)


@EVERY
def test_a_planted_law_is_found(road: Road) -> None:
    points, _, _ = task_points(table({"t": PLANTED[road]}), "t", None)
    values = accuracy_models.fit(road, points, np.ones((1, len(points))))
    truth = PLANTED[road](FAR["params"].to_numpy(), FAR["tokens"].to_numpy())
    np.testing.assert_allclose(accuracy_models.predict(road, values, FAR)[0], truth, atol=2e-4)


def test_runs_at_and_below_chance_are_evidence_too() -> None:
    """What a line through ln(-ln accuracy) drops: a quarter of these runs measured no better than chance."""
    rows = table({"t": lambda n, d: CHANCE + (1 - CHANCE) * np.exp(-((6 * n * d / 6e12) ** -0.9))}, 0, questions=400)
    points, _, _ = task_points(rows, "t", None)
    assert np.mean(points["accuracy"] <= CHANCE) > 0.15
    (values,) = accuracy_models.fit(COMPUTE, points, np.ones((1, len(points))))
    assert values[0, 1] == pytest.approx(0.9, rel=0.2)


def test_a_run_with_weight_nought_is_not_seen() -> None:
    points, _, _ = task_points(table({"t": PLANTED[COMPUTE]}), "t", None)
    spoilt = points.assign(accuracy=np.where(np.arange(len(points)) == 7, 0.99, points["accuracy"]))
    kept = np.ones((2, len(points)))
    kept[1, 7] = 0
    with_it, without = accuracy_models.predict(COMPUTE, accuracy_models.fit(COMPUTE, spoilt, kept), FAR)[:, 0]
    truth = PLANTED[COMPUTE](FAR["params"].to_numpy(), FAR["tokens"].to_numpy())[0]
    assert without == pytest.approx(truth, abs=2e-4)
    assert abs(with_it - truth) > 10 * abs(without - truth)


def test_exact_measurements_count_for_more() -> None:
    rows = table({"t": PLANTED[COMPUTE]})
    rough = np.arange(len(rows)) % 2 == 0
    rows["t/accuracy"] += np.where(rough, 0.05, 0.0)
    even = accuracy_models.fit(COMPUTE, task_points(rows, "t", None)[0], np.ones((1, len(rows))))
    rows["t/accuracy_stderr"] = np.where(rough, 0.2, 0.004)
    weighted = accuracy_models.fit(COMPUTE, task_points(rows, "t", None)[0], np.ones((1, len(rows))))
    truth = PLANTED[COMPUTE](FAR["params"].to_numpy(), FAR["tokens"].to_numpy())[0]
    off = [abs(accuracy_models.predict(COMPUTE, values, FAR)[0, 0] - truth) for values in (even, weighted)]
    assert off[1] < 0.2 * off[0]


def test_predictions_end_at_the_ceiling() -> None:
    points, _, _ = task_points(table({"t": PLANTED[LOSS]}), "t", None)
    values = (np.array([[0.1, 1.0, 1.0, 0.5, 0.5]]), np.array([[0.7, 50.0, 1.0]]))
    assert accuracy_models.predict(LOSS, values, FAR.assign(ceiling=0.9))[0, 0] == 0.9
    assert np.isfinite(accuracy_models.predict(LOSS, values, points)).all()


def test_roads_need_their_columns_and_more_cells_than_parameters() -> None:
    points, _, _ = task_points(table({"t": PLANTED[BITS]}), "t", None)
    every = (COMPUTE, SURFACE, BITS, FREE_BITS, LOSS)
    assert accuracy_models.feasible(every, points) == every
    assert accuracy_models.feasible(every, points.drop(columns="bits_per_byte")) == (COMPUTE, SURFACE, LOSS)
    assert accuracy_models.feasible(every, points.drop(columns="loss")) == (COMPUTE, SURFACE, BITS, FREE_BITS)
    assert accuracy_models.feasible(every, points, np.arange(len(points)) < 5) == (COMPUTE, SURFACE)
    same = points.assign(params=points["params"].iloc[0], tokens=points["tokens"].iloc[0])
    assert accuracy_models.feasible((SURFACE, BITS), same) == ()


def test_resamples_are_of_whole_trunks_and_the_same_through_both_steps() -> None:
    params, tokens = grid(12, 4)
    rows = table({"t": PLANTED[BITS]}, 0, cells=(params, tokens))
    rows["branch_of"] = [f"r{i // 4 * 4 + 3:03}" if i % 4 != 3 else "" for i in range(48)]
    points, _, _ = task_points(rows, "t", None)
    found, note = accuracy_models.drawn(BITS, points, 40, 0)
    assert note == ""
    assert [rows.shape for rows in found.draws] == [(40, 5), (40, 2)]
    at = accuracy_models.predict(BITS, found.draws, FAR)[:, 0]
    own = accuracy_models.predict(BITS, found.values, FAR)[0, 0]
    assert 0 < np.std(at) < 0.2
    assert abs(np.median(at) - own) < np.std(at)
    _, note = accuracy_models.drawn(
        BITS, points.assign(cluster=points["cluster"].where(points["params"] > 1e5, "one")), 2, 0
    )
    assert re.search(r"\b4\b", note), "trunks, too few to resample whole"
