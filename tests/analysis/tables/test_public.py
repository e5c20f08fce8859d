from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import TableError
from analysis.tables import public, table_checks
from analysis.tables.public import PUBLIC_TABLES
from analysis.tables.results import select_points


@pytest.fixture(scope="module", params=["made_data", "shared_data"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Synthetic tables, and the public ones if they are there."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return dict(public.read_all(folder))


def source(folder: Path, file: str) -> pd.DataFrame:
    return pd.read_csv(folder / file)


def test_every_table_is_ready_to_be_fitted(tables: dict[str, pd.DataFrame]) -> None:
    assert list(tables) == list(PUBLIC_TABLES)
    for name, table in tables.items():
        for column in ("params", "tokens", "flops", "loss"):
            assert table[column].dtype == float, (name, column)
            assert (np.isfinite(table[column]) & (table[column] > 0)).all(), (name, column)
        np.testing.assert_allclose(table["flops"], 6 * table["params"] * table["tokens"], rtol=1e-6, err_msg=name)
        assert table.index.tolist() == list(range(len(table))), name
        points = select_points(table, "params")
        assert len(points.table) == len(table), name
        assert table_checks.check_points(points) == [], name


def test_rows_are_as_many_as_were_published(shared_data: Path) -> None:
    counts = {name: len(table) for name, table in public.read_all(shared_data)}
    assert (counts["chinchilla_245"], counts["chinchilla_240"], counts["datablations_1epoch"]) == (245, 240, 29)
    for study, rows in (("gadre_", 104), ("porian_rw_", 579), ("porian_owt2_", 581)):
        assert sum(count for name, count in counts.items() if name.startswith(study)) == rows


def test_chinchilla_is_every_point_and_those_that_were_kept(tables: dict[str, pd.DataFrame]) -> None:
    all_points, inliers = tables["chinchilla_245"], tables["chinchilla_240"]
    assert len(all_points) - len(inliers) == 5
    pd.testing.assert_frame_equal(all_points[all_points["used_in_epoch_fit"]].reset_index(drop=True), inliers)
    assert all_points.loc[~all_points["used_in_epoch_fit"], "loss"].max() > inliers["loss"].max()


def test_gadre_is_shared_out_by_training_set_and_measured_on_c4(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    raw = source(folder, "gadre_overtrain/gadre_104_models.csv")
    parts = [tables[f"gadre_{name}"] for name in ("c4_original", "rpj", "rw_original")]
    assert sum(map(len, parts)) == len(raw)
    together = pd.concat(parts).set_index(["dataset_name", "name"])["loss"].sort_index()
    measured = raw.set_index(["dataset_name", "name"])["loss_c4_val"].sort_index()
    assert together.tolist() == measured.tolist()
    assert [part["dataset_name"].unique().tolist() for part in parts] == [["c4_original"], ["rpj"], ["rw_original"]]


@pytest.mark.parametrize(("corpus", "suffix"), [("rw", ""), ("owt2", "_owt2")])
def test_porians_five_steps_share_out_every_point(
    tables: dict[str, pd.DataFrame], folder: Path, corpus: str, suffix: str
) -> None:
    raw = source(folder, f"porian/summary_df{suffix}_points.csv")
    parts = {step: tables[f"porian_{corpus}_{step}"] for step in ("kaplan", "head", "warmup", "decay", "tuned")}
    assert sum(map(len, parts.values())) == len(raw)
    together = np.sort(np.concatenate([part["loss"] for part in parts.values()]))
    assert together.tolist() == np.sort(raw["loss"]).tolist()
    assert {part["dataset"].unique()[0] for part in parts.values()} == set(raw["dataset"])
    assert parts["kaplan"]["params"].min() < 1e6, "without embeddings and head"
    assert parts["head"]["params"].min() > 5e6
    assert parts["tuned"]["hparams"].unique().tolist() == ["tuned"]
    assert parts["warmup"]["warmup"].unique().tolist() == ["short"] != parts["head"]["warmup"].unique().tolist()
    assert parts["decay"]["decay"].unique().tolist() == ["chinchilla"]


def test_datablations_are_the_runs_that_repeat_nothing(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    table = tables["datablations_1epoch"]
    raw = source(folder, "datablations/datablations_182.csv")
    assert len(table) == (raw["D"] <= raw["U"]).sum() < len(raw)
    assert (table["tokens"] <= table["unique_tokens"]).all()


def test_steplaw_is_the_best_setting_of_each_size_and_horizon(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    raw, table = source(folder, "steplaw/data/dense_lr_bs_loss.csv"), tables["steplaw_dense"]
    least: dict[tuple[float, float], float] = {}
    for row in raw.to_dict("records"):
        cell = (float(row["N"]), float(row["D"]))
        least[cell] = min(least.get(cell, np.inf), row["smooth loss"])
    losses = {(row["params"], row["tokens"]): row["loss"] for row in table.to_dict("records")}
    assert losses == least
    assert len(table) == len(least)


def test_a_folder_without_the_file_says_which(tmp_path: Path) -> None:
    for name, table in PUBLIC_TABLES.items():
        with pytest.raises(TableError, match=r"\.csv.*--data"):
            table.read(tmp_path)
        assert table.name == name
        assert table.source


def written(folder: Path, file: str, **columns: list[object]) -> Path:
    (folder / file).parent.mkdir(parents=True)
    pd.DataFrame(columns).to_csv(folder / file, index=False)
    return folder


def test_flops_are_those_of_the_source_or_six_n_d(tmp_path: Path) -> None:
    points = {"N": [1_000_000, 2_000_000], "D": [10_000_000, 20_000_000], "loss": [5, 4]}
    own = written(tmp_path / "own", "chinchilla_epoch/chinchilla_nd_loss.csv", **points, flops=[7, 8])
    none = written(tmp_path / "none", "chinchilla_epoch/chinchilla_nd_loss.csv", **points)
    assert PUBLIC_TABLES["chinchilla_245"].read(own)["flops"].tolist() == [7.0, 8.0]
    table = PUBLIC_TABLES["chinchilla_245"].read(none)
    assert table["flops"].tolist() == [6e13, 2.4e14]
    assert table[["params", "tokens", "loss"]].dtypes.tolist() == [float, float, float]


def test_selections_without_the_public_files(tmp_path: Path) -> None:
    """Tests the rules of selection on a few synthetic rows, without the public tables."""
    written(
        tmp_path,
        "steplaw/data/dense_lr_bs_loss.csv",
        **{"N": [1e8, 1e8, 1e8], "D": [1e9, 1e9, 2e9], "loss": [9.0, 1.0, 5.0], "smooth loss": [3.0, 3.1, 2.9]},
    )
    best = PUBLIC_TABLES["steplaw_dense"].read(tmp_path)
    assert best[["tokens", "loss"]].to_numpy().tolist() == [[1e9, 3.0], [2e9, 2.9]]
    epochs = {"D": [1e9, 1e9, 3e9], "U": [2e9, 1e9, 1e9]}
    written(tmp_path, "datablations/datablations_182.csv", N=[1e8] * 3, **epochs, loss=[3.0, 3.1, 3.2])
    assert PUBLIC_TABLES["datablations_1epoch"].read(tmp_path)["loss"].tolist() == [3.0, 3.1]
