from __future__ import annotations

import numpy as np
import pytest

from analysis.downstream.task_table import require_task_names, task_names, task_points
from analysis.errors import TableError
from tests.support.task_tables import flat_accuracy, make_task_table, rising_accuracy


def test_tasks_are_found_by_their_columns() -> None:
    rows = make_task_table({"copy": rising_accuracy, "addition": flat_accuracy})
    assert task_names(rows) == ["addition", "copy"]
    assert task_names(rows.drop(columns="copy/chance")) == ["addition"]
    assert task_names(rows.assign(**{"loss/bits_per_byte": 1.0})) == ["addition", "copy"]
    with pytest.raises(TableError, match=r"/accuracy.*/chance.*scaling eval"):
        require_task_names(rows[["run_id", "loss"]])


def test_points_are_those_of_runs_that_are_done_and_measured() -> None:
    rows = make_task_table({"t": rising_accuracy}, 0)
    rows.loc[3, "status"] = "diverged"
    rows.loc[5, "t/accuracy"] = np.nan
    points, params_column, questions = task_points(rows, "t", None)
    assert len(points) == len(rows) - 2
    assert params_column == "params_matmul"
    assert questions == pytest.approx(1000)
    assert points["flops"].is_monotonic_increasing
    assert points["accuracy_weight"].mean() == pytest.approx(1)
    at = rows.set_index("run_id").loc[points["run_id"]]
    np.testing.assert_allclose(points["accuracy"], at["t/accuracy"])


def test_an_accuracy_of_zero_has_a_standard_error() -> None:
    rows = make_task_table({"t": rising_accuracy}, 0, questions=100)
    rows.loc[0, ["t/accuracy", "t/accuracy_stderr"]] = 0.0
    points, _, _ = task_points(rows, "t", None)
    none = points.set_index("run_id").loc["r000", "standard_error"]
    assert none == pytest.approx(np.sqrt(2 / 104 * (1 - 2 / 104) / 100))


def test_without_standard_errors_all_weights_are_one() -> None:
    points, _, questions = task_points(
        make_task_table({"t": rising_accuracy}, 0).drop(columns="t/accuracy_stderr"), "t", None
    )
    assert np.isnan(questions)
    assert (points["accuracy_weight"] == 1).all()
    assert "standard_error" not in points


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("t/accuracy", 1.5, r"t/accuracy = 1.5 .*\br004\b"),
        ("t/accuracy", -0.1, r"t/accuracy = -0.1 .*\br004\b"),
        ("t/chance", 0.5, "t/chance"),
        ("tokens", -1.0, r"\br004\b.*tokens = -1.0"),
    ],
)
def test_values_out_of_range_are_errors(column: str, value: float, message: str) -> None:
    rows = make_task_table({"t": rising_accuracy}, 0)
    rows.loc[4, column] = value
    with pytest.raises(TableError, match=message):
        task_points(rows, "t", None)


def test_chance_lies_below_the_ceiling() -> None:
    with pytest.raises(TableError, match=r"t/chance.*t/ceiling"):
        task_points(make_task_table({"t": rising_accuracy}, 0, chance=1.0), "t", None)


@pytest.mark.parametrize(("column", "value"), [("t/accuracy", np.nan), ("status", "diverged")])
@pytest.mark.filterwarnings("error")
def test_a_task_without_runs_is_an_error(column: str, value: object) -> None:
    with pytest.raises(TableError, match=r"^task t\b"):
        task_points(make_task_table({"t": rising_accuracy}, 0).assign(**{column: value}), "t", None)
