from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from analysis.forecasting.extrapolation import describe_targets, fitted_ranges, times_beyond, warn_of_target
from tests.conftest import simulated

POINTS = simulated().rename(columns={"params_matmul": "params"})
RANGES = fitted_ranges(POINTS)


def test_a_run_near_the_fit_gives_no_warning() -> None:
    largest = POINTS.loc[POINTS["flops"].idxmax()]
    for factor in (0.1, 1.0, 5.0):
        assert warn_of_target(RANGES, largest["params"] * factor, largest["tokens"] * factor, 2.0) == []


def test_times_are_those_of_the_largest_params_tokens_and_compute() -> None:
    times = times_beyond(RANGES, POINTS["params"].max() * 2, POINTS["tokens"].max() * 3)
    assert times == pytest.approx({"params": 2.0, "tokens": 3.0, "flops": 6.0})


@pytest.mark.parametrize(
    ("params", "tokens", "words"),
    [
        (7, 140, r"billions.*--params-value 7e\+06 or 7e\+09; .*billions.*--tokens 1\.4e\+08 or 1\.4e\+11"),
        (1e9, 30, r"tokens of the run in billions.*--tokens 3e\+10"),
        (1e18, 1e10, r"N is 1e\+09 times the largest \(1e\+09\)"),
        (1e9, 1e18, r"D is 3\.33e\+07 times the largest \(3e\+10\)"),
        (9e9, 9e11, r"C = 6 N D is 270 times the largest"),
        (2e10, 5e7, r"swapped.*--params-value 5e\+07 --tokens 2e\+10"),
    ],
)
def test_far_wrong_units_and_swapped_are_named_with_what_to_type(params: float, tokens: float, words: str) -> None:
    notes = " ".join(warn_of_target(RANGES, params, tokens, 2.0))
    assert re.search(words, notes), notes


def test_a_fit_in_billions_is_named_where_the_run_is_in_counts() -> None:
    ranges = fitted_ranges(POINTS.assign(params=POINTS["params"] / 1e9, tokens=POINTS["tokens"] / 1e9))
    assert re.search(
        r"params of the fit in billions.*--params-value 2\b", " ".join(warn_of_target(ranges, 2e9, 4e10, 2))
    )


def test_a_loss_above_a_uniform_guess_is_warned_of() -> None:
    assert "13 nats" in " ".join(warn_of_target(RANGES, 1e9, 3e10, 13.0))


def test_a_law_of_other_columns_has_no_distance() -> None:
    points = pd.DataFrame({"tokens": np.array([1.0, 2.0])})
    assert describe_targets(points, [{"params": 1.0}]) == {"times_largest": {}, "warnings": []}
