from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.downstream import study as downstream
from analysis.downstream.accuracy_models import BITS_SIGMOID, COMPUTE, PARAMS_AND_TOKENS
from analysis.downstream.study import MIN_RUNS, Study
from analysis.errors import TableError
from tests.analysis.downstream.test_accuracy_models import TRUE_ACCURACIES
from tests.support.task_tables import CHANCE, flat_accuracy, make_task_table, rising_accuracy

FEW = (COMPUTE, PARAMS_AND_TOKENS, BITS_SIGMOID)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return make_task_table({"addition": flat_accuracy, "copy": rising_accuracy}, 1)


@pytest.fixture(scope="module")
def copy_study(rows: pd.DataFrame) -> Study:
    return downstream.study(rows, "copy", holdout="largest", models=FEW, draws=60)


def test_a_task_that_rises_has_a_law_with_its_interval(copy_study: Study) -> None:
    assert copy_study.verdict == "rises"
    assert copy_study.accuracy_forecast is not None
    curve = copy_study.curve()
    assert curve["flops"].iloc[-1] == pytest.approx(10 * copy_study.points["flops"].max())
    assert (curve["low"] <= curve["predicted"]).all()
    assert (curve["predicted"] <= curve["high"]).all()
    assert (curve["measured_high"] >= curve["high"] - 0.01).all()
    truth = rising_accuracy(curve["params"].to_numpy(), curve["tokens"].to_numpy())
    assert np.abs(curve["predicted"] - truth).max() < 0.1
    assert np.mean((curve["low"] - 0.02 <= truth) & (truth <= curve["high"] + 0.02)) > 0.8


def test_held_out_runs_take_part_in_no_fit(rows: pd.DataFrame, copy_study: Study) -> None:
    last = rows["flops"].idxmax()
    assert len(copy_study.held_out) == 1
    assert rows.loc[last, "run_id"] not in set(copy_study.points["run_id"])
    moved = rows.copy()
    moved.loc[last, ["copy/accuracy", "copy/bits_per_byte", "loss"]] = 0.01
    repeated = downstream.study(moved, "copy", holdout="largest", models=FEW, draws=60)
    pd.testing.assert_frame_equal(repeated.curve(), copy_study.curve())
    assert copy_study.held_out["inside"].tolist() == [True]
    assert repeated.held_out["inside"].tolist() == [False]


def test_the_curve_runs_through_the_middle_of_the_runs(copy_study: Study) -> None:
    curve = copy_study.curve(beyond=1)
    for name in ("params", "tokens"):
        slope, _ = np.polyfit(np.log(copy_study.points["flops"]), np.log(copy_study.points[name]), 1)
        found = np.log(curve[name].iloc[-1] / curve[name].iloc[0]) / np.log(
            curve["flops"].iloc[-1] / curve["flops"].iloc[0]
        )
        assert found == pytest.approx(slope)


def test_no_trend_is_an_answer_and_has_no_law(rows: pd.DataFrame) -> None:
    found = downstream.study(rows, "addition")
    assert found.verdict == "no trend"
    assert found.accuracy_forecast is None
    assert found.facts()["law"] is None
    with pytest.raises(TableError, match=r"addition.*no trend"):
        found.forecast(pd.DataFrame({"params": [1e6], "tokens": [1e7]}))


def test_the_better_model_through_bits_is_kept_beside_the_best_model(copy_study: Study) -> None:
    assert copy_study.bits_model is not None
    assert copy_study.bits_model.model is BITS_SIGMOID
    k, x0 = copy_study.bits_model.values[-1][0]
    assert (k, x0) == (pytest.approx(5, rel=0.1), pytest.approx(1.9, rel=0.02))
    without = downstream.study(
        make_task_table({"t": TRUE_ACCURACIES[COMPUTE]}, 0).drop(columns="t/bits_per_byte"), "t", models=FEW, draws=20
    )
    assert without.bits_model is None
    assert without.accuracy_forecast is not None


def test_facts_are_json_and_hold_the_law(copy_study: Study) -> None:
    facts = json.loads(copy_study.to_json())
    assert facts["law"] == copy_study.backtest.best.name
    scores = {model["name"]: model["error"] for model in facts["backtest"]["roads"]}
    assert scores[facts["law"]] == min(scores.values())
    assert facts["forecast"]["low"] < facts["forecast"]["predicted"] < facts["forecast"]["high"]
    assert facts["chance"] == CHANCE
    assert facts["held_out"][0]["inside"] is True
    assert copy_study.task in repr(copy_study)


def test_a_study_does_not_depend_on_the_order_of_rows(rows: pd.DataFrame, copy_study: Study) -> None:
    shuffled = rows.sample(frac=1, random_state=0)
    repeated = downstream.study(shuffled, "copy", holdout="largest", models=FEW, draws=60)
    pd.testing.assert_frame_equal(repeated.curve(), copy_study.curve())


def test_wrong_input_is_an_error_that_names_it(rows: pd.DataFrame) -> None:
    with pytest.raises(TableError, match=r"copi\b.*copy"):
        analysis.study(rows, "copi")
    with pytest.raises(TableError, match=r"/accuracy.*/chance"):
        analysis.studies(rows[["run_id", "loss"]])
    with pytest.raises(TableError, match=rf"copy.*\b4\b.*\b{MIN_RUNS}\b"):
        analysis.studies(rows.iloc[:4], ["copy"])
    with pytest.raises(TableError, match=r"--holdout 5e10.*\b3\d\b"):
        downstream.study(rows, "copy", holdout="5e10")


def test_targets_need_params_and_tokens(copy_study: Study) -> None:
    with pytest.raises(TableError, match="tokens"):
        copy_study.forecast(pd.DataFrame({"params": [1e6]}))


def test_a_task_of_too_few_runs_stops_no_other(rows: pd.DataFrame) -> None:
    few = rows.assign(**{"few/accuracy": rows["copy/accuracy"].where(rows.index < 2), "few/chance": CHANCE})
    few["apart/accuracy"], few["apart/chance"] = few["copy/accuracy"], np.where(few.index < 9, 0.25, 0.2)
    few["never/accuracy"], few["never/chance"] = np.nan, 0.25
    found, left_out = downstream.survey(few, ["addition", "few", "apart", "never"])
    assert [study.task for study in found] == ["addition"]
    assert set(left_out) == {"few", "apart", "never"}
    assert re.search(rf"\b2\b.*\b{MIN_RUNS}\b", left_out["few"])
    assert "apart/chance" in left_out["apart"]
    assert left_out["never"]
    assert not any(why.startswith("task ") for why in left_out.values()), "the task is the key already"
    assert [study.task for study in analysis.studies(few.drop(columns="copy/chance"))] == ["addition"]
    with pytest.raises(TableError, match=r"few.*\b2\b"):
        analysis.studies(few, ["addition", "few"])
    with pytest.raises(TableError, match=r"few.*\b2\b.*never"):
        downstream.survey(few, ["few", "never"])


def test_unknown_noise_is_in_the_verdict(rows: pd.DataFrame) -> None:
    found = downstream.study(rows.drop(columns="addition/accuracy_stderr"), "addition")
    assert found.verdict == "no trend, noise unknown"
    facts = json.loads(found.to_json())
    assert (facts["verdict"], facts["noise"], facts["ratio"], facts["noise_of"]) == ("no trend", None, None, "unknown")


def test_checkpoints_of_runs_that_are_not_fitted_are_no_noise(rows: pd.DataFrame) -> None:
    scatter = [{"tokens": 1e6 * i, "addition/accuracy": 0.5 + 0.3 * (-1) ** i} for i in range(1, 6)]
    last, first = rows.loc[rows["flops"].idxmax(), "run_id"], rows["run_id"].iloc[0]

    def noise_source_with_checkpoints_of(run: str) -> str:
        checkpoints = pd.DataFrame(scatter).assign(run_id=run)
        return downstream.study(rows, "addition", holdout="largest", checkpoints=checkpoints).trend.noise_source

    assert noise_source_with_checkpoints_of(first) == "scatter of checkpoints"
    assert noise_source_with_checkpoints_of(last) == "standard error", "held out"
    assert noise_source_with_checkpoints_of("of another table") == "standard error"
