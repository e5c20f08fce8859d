"""Verdicts on tasks, where the truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.downstream import trend
from analysis.downstream.task_table import task_points
from tests.support.task_tables import CHANCE, flat_accuracy, grid_of_cells, make_task_table, rising_accuracy


def judge_simulated(truth, seed: int = 0, questions: int = 1000, **more) -> trend.Trend:
    return trend.judge(task_points(make_task_table({"t": truth}, seed, questions=questions, **more), "t", None)[0])


def test_tau_is_kendalls() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=40)
    y = np.round(x + generator.normal(size=40), 1)
    tau, p, p_falls = trend.kendall_test(x, y, np.arange(40))
    expected = stats.kendalltau(x, y, alternative="greater")
    assert tau == pytest.approx(expected.statistic, abs=1e-6)
    assert p < 0.01
    assert p_falls > 0.98
    assert trend.kendall_test(x, np.zeros(40), np.arange(40)) == (0.0, 1.0, 1.0)


def test_p_is_uniform_where_compute_does_nothing() -> None:
    generator = np.random.default_rng(1)
    x = np.arange(20.0)
    p = np.array([trend.kendall_test(x, generator.normal(size=20), np.arange(20), seed=i)[1] for i in range(40)])
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_shared_error_of_trunks_is_no_trend() -> None:
    """Branches of a trunk share its error: exchanging single runs would find a trend in the errors of 5 trunks."""
    generator = np.random.default_rng(2)
    trunk = np.repeat(np.arange(5), 6)
    flops = 4.0**trunk * np.tile(1.5 ** np.arange(6), 5)
    by_run, by_trunk = [], []
    for seed in range(24):
        accuracy = 0.25 + 0.05 * generator.normal(size=5)[trunk] + 0.005 * generator.normal(size=30)
        by_trunk.append(trend.kendall_test(flops, accuracy, trunk, seed=seed)[1])
        by_run.append(trend.kendall_test(flops, accuracy, np.arange(30), seed=seed)[1])
    assert np.mean(np.array(by_run) < 0.05) > 0.15
    assert np.mean(np.array(by_trunk) < 0.05) <= 0.125


def test_a_task_that_rises() -> None:
    result = judge_simulated(rising_accuracy)
    assert result.verdict == "rises"
    assert result.p < 0.01
    assert result.ratio > 3 * result.ratio_needed


def test_no_trend_is_an_answer() -> None:
    verdicts = [judge_simulated(flat_accuracy, seed).verdict for seed in range(12)]
    assert verdicts.count("no trend") >= 10
    assert "rises" not in verdicts


def test_a_task_that_falls_has_no_trend_and_says_so() -> None:
    result = judge_simulated(lambda n, d: 1.2 - rising_accuracy(n, d))
    assert result.verdict == "no trend"
    assert result.tau < -0.5
    assert f"{result.tau:+.2f}" in result.reason


def test_below_chance_everywhere() -> None:
    result = judge_simulated(lambda n, d: 0.6 * rising_accuracy(n, d) - 0.14, questions=4000, chance=0.6)
    assert result.verdict == "no trend"
    assert result.p < 0.01, "they rise all the same"


def test_few_questions_are_too_noisy_and_many_are_not() -> None:
    result = judge_simulated(flat_accuracy, questions=20)
    assert result.verdict == "too noisy"
    assert result.p > trend.SIGNIFICANCE
    assert f"{result.ratio_needed * result.noise / 0.75:.0%}" in result.reason, "the rise that noise could hide"
    weak = judge_simulated(lambda n, d: CHANCE + 0.06 * (rising_accuracy(n, d) - CHANCE), questions=1000, seed=3)
    assert (weak.verdict, weak.p < 0.05) == ("too noisy", True), "a rise that is smaller than the noise of a run"
    assert (
        judge_simulated(lambda n, d: CHANCE + 0.06 * (rising_accuracy(n, d) - CHANCE), questions=100_000).verdict
        == "rises"
    )


def test_a_task_at_its_ceiling_is_saturated() -> None:
    result = judge_simulated(lambda n, d: 1 - 0.4 * np.exp(-n * d / 2e10))
    assert result.verdict == "saturated"


def test_the_threshold_is_what_equal_models_reach_once_in_twenty() -> None:
    generator = np.random.default_rng(0)
    spread = np.ptp(generator.normal(size=(4000, 36)), axis=1)
    assert np.mean(spread > judge_simulated(flat_accuracy).ratio_needed) == pytest.approx(0.05, abs=0.015)


def test_noise_is_the_largest_that_is_known() -> None:
    points = task_points(make_task_table({"t": flat_accuracy}, 0), "t", None)[0]
    assert trend.judge(points).noise == pytest.approx(np.sqrt(0.25 * 0.75 / 1000), rel=0.1)
    assert trend.judge(points).noise_source == "standard error"
    params, tokens = grid_of_cells(3, 3)
    cells = np.repeat(params, 4), np.repeat(tokens, 4)
    seeds = task_points(make_task_table({"t": flat_accuracy}, 0, cells=cells), "t", None)[0]
    scatter = np.random.default_rng(0).normal(0, 0.08, len(seeds))
    result = trend.judge(seeds.assign(accuracy=seeds["accuracy"] + scatter))
    assert result.noise_source == "scatter of seeds"
    assert result.noise == pytest.approx(0.08, rel=0.3)
    apart = seeds.assign(accuracy=seeds["accuracy"] + scatter, settings=[f"rate {i}" for i in range(len(seeds))])
    assert trend.judge(apart).noise_source == "standard error", "runs that were set otherwise are no seeds of one cell"
    ends = np.random.default_rng(1).normal(0, 0.06, (10, 5))
    steps = [{"run_id": i, "tokens": 1e6 * (j + 1), "accuracy": 0.3 + 0.1 * np.log(j + 1) + ends[i, j]}
             for i in range(10) for j in range(5)]  # fmt: skip
    result = trend.judge(points, pd.DataFrame(steps))
    assert result.noise_source == "scatter of checkpoints"
    assert result.noise == pytest.approx(0.06, rel=0.4), "the rise along a run is not noise"


def test_noise_is_unknown_if_the_table_has_no_estimate_of_it() -> None:
    rows = make_task_table({"t": rising_accuracy}, 0).drop(columns="t/accuracy_stderr")
    points = task_points(rows, "t", None)[0]
    result = trend.judge(points)
    assert (result.verdict, result.noise_source) == ("rises", "unknown")
    assert np.isnan(result.ratio)
    assert trend.NOISE_UNKNOWN in result.reason
    assert trend.rise_is_visible(points), "the order of the runs decides"
    assert trend.NOISE_UNKNOWN not in judge_simulated(rising_accuracy).reason
