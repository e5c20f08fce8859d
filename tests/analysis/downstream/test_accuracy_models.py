"""Each accuracy model recovers the law behind runs without noise, and forecasts a run far beyond them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from analysis.downstream import accuracy_models
from analysis.downstream.accuracy_models import (
    BITS_FREE_SIGMOID,
    BITS_SIGMOID,
    COMPUTE,
    LOSS_EXPONENTIAL,
    PARAMS_AND_TOKENS,
    AccuracyModel,
)
from analysis.downstream.task_table import task_points
from tests.support.task_tables import CHANCE, grid_of_cells, make_task_table, true_bits_per_byte

FAR = pd.DataFrame({"params": [1e6], "tokens": [2e7], "flops": [1.2e14], "chance": [CHANCE], "ceiling": [1.0]})
TRUE_ACCURACIES = {
    COMPUTE: lambda n, d: CHANCE + (1 - CHANCE) * np.exp(-((6 * n * d / 2e12) ** -0.4)),
    PARAMS_AND_TOKENS: lambda n, d: CHANCE + (1 - CHANCE) * np.exp(-((n / 5e4) ** -0.5) - (d / 1e6) ** -0.7),
    BITS_SIGMOID: lambda n, d: CHANCE + (1 - CHANCE) / (1 + np.exp(4 * (true_bits_per_byte(n, d) - 1.8))),
    BITS_FREE_SIGMOID: lambda n, d: 0.2 + 0.5 / (1 + np.exp(6 * (true_bits_per_byte(n, d) - 1.9))),
    LOSS_EXPONENTIAL: lambda n, d: 1 - (0.75 - 2.0 * np.exp(-1.5 * 0.7 * true_bits_per_byte(n, d))),
}
EACH_MODEL = pytest.mark.parametrize("model", TRUE_ACCURACIES, ids=lambda model: model.name)


@EACH_MODEL
def test_fit_recovers_the_true_law(model: AccuracyModel) -> None:
    points, _, _ = task_points(make_task_table({"t": TRUE_ACCURACIES[model]}), "t", None)
    values = accuracy_models.fit(model, points, np.ones((1, len(points))))
    truth = TRUE_ACCURACIES[model](FAR["params"].to_numpy(), FAR["tokens"].to_numpy())
    np.testing.assert_allclose(accuracy_models.predict(model, values, FAR)[0], truth, atol=2e-4)


def test_fit_uses_runs_at_and_below_chance() -> None:
    """A line through ln(-ln accuracy) would drop a quarter of these runs, which measure no better than chance."""
    rows = make_task_table(
        {"t": lambda n, d: CHANCE + (1 - CHANCE) * np.exp(-((6 * n * d / 6e12) ** -0.9))}, 0, questions=400
    )
    points, _, _ = task_points(rows, "t", None)
    assert np.mean(points["accuracy"] <= CHANCE) > 0.15
    (values,) = accuracy_models.fit(COMPUTE, points, np.ones((1, len(points))))
    assert values[0, 1] == pytest.approx(0.9, rel=0.2)


def test_fit_ignores_a_run_of_count_zero() -> None:
    points, _, _ = task_points(make_task_table({"t": TRUE_ACCURACIES[COMPUTE]}), "t", None)
    with_outlier = points.assign(accuracy=np.where(np.arange(len(points)) == 7, 0.99, points["accuracy"]))
    counts = np.ones((2, len(points)))
    counts[1, 7] = 0
    with_run, without_run = accuracy_models.predict(COMPUTE, accuracy_models.fit(COMPUTE, with_outlier, counts), FAR)[
        :, 0
    ]
    truth = TRUE_ACCURACIES[COMPUTE](FAR["params"].to_numpy(), FAR["tokens"].to_numpy())[0]
    assert without_run == pytest.approx(truth, abs=2e-4)
    assert abs(with_run - truth) > 10 * abs(without_run - truth)


def test_fit_weights_runs_by_their_standard_error() -> None:
    rows = make_task_table({"t": TRUE_ACCURACIES[COMPUTE]})
    is_inexact = np.arange(len(rows)) % 2 == 0
    rows["t/accuracy"] += np.where(is_inexact, 0.05, 0.0)
    unweighted = accuracy_models.fit(COMPUTE, task_points(rows, "t", None)[0], np.ones((1, len(rows))))
    rows["t/accuracy_stderr"] = np.where(is_inexact, 0.2, 0.004)
    weighted = accuracy_models.fit(COMPUTE, task_points(rows, "t", None)[0], np.ones((1, len(rows))))
    truth = TRUE_ACCURACIES[COMPUTE](FAR["params"].to_numpy(), FAR["tokens"].to_numpy())[0]
    errors = [abs(accuracy_models.predict(COMPUTE, values, FAR)[0, 0] - truth) for values in (unweighted, weighted)]
    assert errors[1] < 0.2 * errors[0]


def test_predictions_end_at_the_ceiling() -> None:
    points, _, _ = task_points(make_task_table({"t": TRUE_ACCURACIES[LOSS_EXPONENTIAL]}), "t", None)
    values = (np.array([[0.1, 1.0, 1.0, 0.5, 0.5]]), np.array([[0.7, 50.0, 1.0]]))
    assert accuracy_models.predict(LOSS_EXPONENTIAL, values, FAR.assign(ceiling=0.9))[0, 0] == 0.9
    assert np.isfinite(accuracy_models.predict(LOSS_EXPONENTIAL, values, points)).all()


def test_models_need_their_columns_and_more_cells_than_parameters() -> None:
    points, _, _ = task_points(make_task_table({"t": TRUE_ACCURACIES[BITS_SIGMOID]}), "t", None)
    every_model = (COMPUTE, PARAMS_AND_TOKENS, BITS_SIGMOID, BITS_FREE_SIGMOID, LOSS_EXPONENTIAL)
    assert accuracy_models.feasible_models(every_model, points) == every_model
    assert accuracy_models.feasible_models(every_model, points.drop(columns="bits_per_byte")) == (
        COMPUTE,
        PARAMS_AND_TOKENS,
        LOSS_EXPONENTIAL,
    )
    assert accuracy_models.feasible_models(every_model, points.drop(columns="loss")) == (
        COMPUTE,
        PARAMS_AND_TOKENS,
        BITS_SIGMOID,
        BITS_FREE_SIGMOID,
    )
    assert accuracy_models.feasible_models(every_model, points, np.arange(len(points)) < 5) == (
        COMPUTE,
        PARAMS_AND_TOKENS,
    )
    single_cell = points.assign(params=points["params"].iloc[0], tokens=points["tokens"].iloc[0])
    assert accuracy_models.feasible_models((PARAMS_AND_TOKENS, BITS_SIGMOID), single_cell) == ()


def test_resamples_are_of_whole_trunks_and_the_same_in_both_steps() -> None:
    params, tokens = grid_of_cells(12, 4)
    rows = make_task_table({"t": TRUE_ACCURACIES[BITS_SIGMOID]}, 0, cells=(params, tokens))
    rows["branch_of"] = [f"r{i // 4 * 4 + 3:03}" if i % 4 != 3 else "" for i in range(48)]
    points, _, _ = task_points(rows, "t", None)
    resampled, warning = accuracy_models.fit_resamples(BITS_SIGMOID, points, 40, 0)
    assert warning == ""
    assert [rows.shape for rows in resampled.draws] == [(40, 5), (40, 2)]
    forecasts = accuracy_models.predict(BITS_SIGMOID, resampled.draws, FAR)[:, 0]
    best = accuracy_models.predict(BITS_SIGMOID, resampled.values, FAR)[0, 0]
    assert 0 < np.std(forecasts) < 0.2
    assert abs(np.median(forecasts) - best) < np.std(forecasts)
    _, warning = accuracy_models.fit_resamples(
        BITS_SIGMOID, points.assign(cluster=points["cluster"].where(points["params"] > 1e5, "one")), 2, 0
    )
    assert re.search(r"\b4\b", warning), "trunks, too few to resample whole"
