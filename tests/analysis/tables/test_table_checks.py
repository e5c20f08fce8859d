from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import TableError
from analysis.tables import results, table_checks
from tests.conftest import PLANTED, simulated

Change = Callable[[pd.DataFrame], pd.DataFrame]


def notes(table: pd.DataFrame, change: Change = lambda t: t) -> list[str]:
    return table_checks.check_points(results.select_points(change(table.copy()), parameters=0))


def scale(column: str, factor: float, rows: slice = slice(None)) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        values = table[column].to_numpy(np.float64).copy()
        values[rows] *= factor
        return table.assign(**{column: values})

    return change


@pytest.mark.parametrize("noise", [0.0, 3e-3, 0.05])
def test_a_sound_table_gives_no_warning(noise: float) -> None:
    assert notes(simulated(noise)) == []
    plain = simulated(noise).rename(columns={"params_matmul": "params"})[["params", "tokens", "loss"]]
    assert table_checks.check_points(plain) == []


@pytest.mark.parametrize(
    "change",
    [
        scale("params_matmul", 1e-2, slice(0, 30, 6)),
        lambda t: t.assign(params_matmul=t["params_matmul"] * 10, tokens=t["tokens"] * 0.1),
        scale("params_matmul", 1e-3),
        scale("tokens", 1e4),
        scale("loss", 2.0),
        scale("loss", 1e-2),
    ],
)
def test_what_is_rare_but_can_be_gives_no_warning(change: Change) -> None:
    """Gaps of 100 in size, few tokens for large models, many for tiny ones, high and low losses."""
    assert notes(simulated(1e-3).drop(columns="flops"), change) == []


def test_swapped_columns_and_losses_in_bits_are_suspected() -> None:
    table = simulated(1e-3)
    swapped = table.assign(params_matmul=table["tokens"], tokens=table["params_matmul"])
    assert any("swapped" in note and "--columns" in note for note in notes(swapped))
    assert any("ln 2" in note for note in notes(table, scale("loss", 1 / np.log(2))))


@pytest.mark.parametrize(
    ("source", "is_other"),
    [("loss", False), ("bits_per_byte", True), ("val_bpb", True), ("ppl", True), ("supply", False)],
)
def test_a_column_named_in_another_unit_is_named(source: str, is_other: bool) -> None:
    assert bool(table_checks.unit_of_name_warnings(source)) == is_other


@pytest.mark.parametrize("change", [scale("flops", 30.0), scale("flops", 1 / 30), scale("flops", 50.0, slice(3, 6))])
def test_flops_may_differ_by_how_they_are_counted(change: Change) -> None:
    assert notes(simulated(1e-3), change) == []


@pytest.mark.parametrize(
    ("path", "columns"),
    [
        ("chinchilla_epoch/chinchilla_nd_loss.csv", "params=N,tokens=D,flops=C"),
        ("datablations/datablations_182.csv", "params=N,tokens=D"),
        ("datablations/datablations_all_296.csv", "params=N,tokens=D"),
        ("gadre_overtrain/gadre_104_models.csv", "params=N,tokens=D,loss=loss_c4_val"),
        ("porian/summary_df_points.csv", "params=N,tokens=D"),
        ("porian/summary_df_owt2_points.csv", "params=N,tokens=D"),
        ("porian/summary_df_att_points.csv", "params=N,tokens=D"),
        ("porian/summary_df_kaplan_tuned_hparams_points.csv", "params=N,tokens=D"),
        ("steplaw/data/dense_lr_bs_loss.csv", "params=N,tokens=D,run_id=exp_name"),
    ],
)
def test_public_tables_give_no_warning(shared_data: Path, path: str, columns: str) -> None:
    assert notes(results.read_table(shared_data / path, results.parse_columns(columns))) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(params_matmul=1e8), ["params", "1e+08", "3"]),
        (lambda t: t.assign(tokens=2e9), ["tokens", "2e+09"]),
        (lambda t: t.assign(tokens=np.geomspace(2e9, 2.019e9, 30)), ["tokens", "2e+09", "2.019e+09"]),
        (scale("tokens", 1e-9), ["tokens = 1 ", "params = 1e+07", "billions", "25"]),
        (scale("tokens", 1e-9, slice(4, 5)), ["000000000004", "tokens = "]),
        (scale("params_matmul", 1e-9), ["params = 0.01", "tokens = 1e+09", "billions"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error(change: Change, words: list[str]) -> None:
    with pytest.raises(TableError) as error:
        notes(simulated(), change)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(params_matmul=[1e7, 1e8] * 15), ["params", "1e+07", "1e+08", "3"]),
        (lambda t: t.assign(tokens=[1e9, 1e9 * 1.009, 1e10] * 10), ["tokens", "1e+09", "1e+10", "3"]),
        (scale("tokens", 1.1e-6), ["tokens", "6024", "1.1", "millions"]),
        (
            lambda t: t.assign(params_matmul=t["params_matmul"] * 1e-6, tokens=t["tokens"] * 3e-2),
            ["params", "110.793", "thousands", "millions"],
        ),
        (
            lambda t: t.assign(params_matmul=t["params_matmul"] * 100, tokens=t["tokens"] * 1e-4),
            ["tokens", "547723", "1e-4"],
        ),
        (
            lambda t: t.assign(params_matmul=t["params_matmul"] * 1e-9, tokens=t["tokens"] * 1e-9),
            ["params", "tokens", "1,000"],
        ),
        (scale("tokens", 1e6, slice(4, 6)), ["000000000004", "000000000005", "tokens"]),
        (scale("params_matmul", 1.1e-4, slice(0, 3)), ["params", "2e-05", "000000000000"]),
        (scale("flops", 1e-9), ["flops", "1.0e-09", "gigaFLOPs"]),
        (scale("flops", 1e-12), ["teraFLOPs"]),
        (scale("flops", 1e-15), ["petaFLOPs"]),
        (scale("flops", 1e-18), ["exaFLOPs"]),
        (scale("flops", 1 / 8.64e19), ["PFLOP/s-days"]),
        (scale("flops", 1e3), ["flops", "1.0e+03", "params", "tokens", "thousands"]),
        (scale("flops", 1e6), ["params", "tokens", "millions"]),
        (scale("flops", 1e9), ["params", "tokens", "billions"]),
        (scale("flops", 1e-3, slice(7, 9)), ["000000000007", "000000000008", "flops", "1e+03"]),
        (lambda t: t.assign(loss=np.exp(t["loss"])), ["loss", "12.5", "perplexity"]),
        (scale("loss", 5.0, slice(2, 3)), ["000000000002", "loss", "12.5", "perplexity"]),
        (lambda t: t.assign(loss=1 / t["loss"]), ["loss", "params", "tokens"]),
    ],
)  # fmt: skip
def test_what_is_odd_is_one_warning_that_names_it(change: Change, words: list[str]) -> None:
    warnings = notes(simulated(1e-3), change)
    assert any(all(word in note for word in words) for note in warnings), warnings
    assert all("\n" not in note for note in warnings)


def test_one_cause_gives_no_crowd_of_warnings() -> None:
    assert len(notes(simulated(), scale("flops", 1e-9))) == 1
    assert len(notes(simulated(), scale("loss", 20.0))) == 1


def test_copies_are_named_and_replicates_are_not() -> None:
    table = simulated(1e-3)
    copied = pd.concat([table, table.iloc[[3, 3, 8]]], ignore_index=True)
    (note,) = notes(copied)
    assert re.findall(r"\brun (\d+)", note) == [f"{run:012}" for run in (3, 3, 3, 3, 8, 8)]
    assert re.search(r"\b3\b.*\b33\b", note)
    (note,) = notes(copied.drop(columns="run_id"))
    assert re.findall(r"\brow (\d+)", note) == ["31", "4", "32", "4", "33", "9"], "each, and the row before it"
    assert notes(copied.assign(run_id=[f"r{i}" for i in range(33)])) == [], "other runs that came out the same"
    again = copied.assign(loss=copied["loss"] * np.where(np.arange(33) < 30, 1, 1 + 1e-4 * np.arange(33)))
    assert notes(again.drop(columns="run_id")) == [], "replicates"


def test_a_frame_of_any_index_names_its_rows() -> None:
    table = simulated(1e-3).rename(columns={"params_matmul": "params"})[["params", "tokens", "loss"]]
    copied = pd.concat([table, table.iloc[[3]]])
    for index, rows in (
        (None, ["4", "4"]),
        (range(100, 131), ["131", "104"]),
        ([f"name {i}" for i in range(31)], ["31", "4"]),
    ):
        (note,) = table_checks.check_points(copied if index is None else copied.set_axis(index, axis=0))
        assert re.findall(r"\brow (\d+)", note) == rows


def test_a_law_of_one_column_asks_nothing_of_the_other() -> None:
    points = results.select_points(simulated().assign(params_matmul=1e8), parameters=3)
    assert table_checks.check_points(points, ("tokens",)) == []


def test_outliers_are_named_the_worst_first() -> None:
    residuals = np.random.default_rng(0).normal(0, 3e-3, 60)
    names = [f"row {i}" for i in range(1, 61)]
    assert table_checks.outlier_warnings(residuals, names) == []
    residuals[[10, 40]] = 0.05, -0.2
    (note,) = table_checks.outlier_warnings(residuals, names)
    assert re.search(r"^row 41 \(-18.1%\), row 11 \(\+5.1%\).*\b2\b.*\b60\b", note)
    residuals[20:31] = 1.0
    (note,) = table_checks.outlier_warnings(residuals, names)
    assert re.findall(r"row (\d+)", note) == [str(i) for i in range(21, 26)], "the first five of thirteen"
    assert re.search(r"\b8\b.*\b13\b.*\b60\b", note)


def test_a_fit_without_noise_has_no_outliers_but_real_ones() -> None:
    residuals = np.random.default_rng(0).normal(0, 1e-12, 30)
    residuals[5] = 1e-6
    assert table_checks.outlier_warnings(residuals, [str(i) for i in range(30)]) == []
    residuals[6] = 0.02
    (note,) = table_checks.outlier_warnings(residuals, [str(i) for i in range(30)])
    assert re.search(r"^6 \(\+2.0%\).*\b1\b.*\b30\b", note)


def test_losses_below_the_floor_are_named() -> None:
    table = simulated()
    loss, names = table["loss"].to_numpy().copy(), table_checks.name_rows(table)
    assert table_checks.floor_warnings(PLANTED["E"], loss, names) == []
    loss[[2, 9]] = 1.7, 1.2
    (note,) = table_checks.floor_warnings(PLANTED["E"], loss, names)
    assert re.search(r"^run 000000000002 \(1.7\), run 000000000009 \(1.2\).*\bE = 1.7", note)


def test_how_learning_rates_were_found_is_counted() -> None:
    sources = pd.DataFrame({"learning_rate_from": ["scan: a", "", "scan: a", None, "rule: b", "scan: a"]})
    assert table_checks.count_rate_sources(sources) == {"scan: a": 3, "not stated": 2, "rule: b": 1}
    assert (
        table_checks.count_rate_sources(sources[["learning_rate_from"]].rename(columns={"learning_rate_from": "x"}))
        == {}
    )
