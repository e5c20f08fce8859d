"""A sweep folder that commit 3b46d6c wrote, before its modules moved, still loads, resumes and collects.

tests/golden/earlier_layout holds six cells on the corpus `walk`: five are done, ec106d51641f was interrupted, and so
it resumes from the checkpoint that its trunk left at step 12. interrupted.json holds how it ended at 3b46d6c.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis import forecast
from analysis.forecasting import saved_fit
from sweeps.planning import plan as planning
from tests.conftest import ROOT, in_process, scaling

GOLDEN = ROOT / "tests" / "golden" / "earlier_layout"
INTERRUPTED = json.loads((GOLDEN / "interrupted.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> Path:
    """A folder with the sweep and its corpus below out/, after `scaling sweep run` has resumed the interrupted run."""
    folder = tmp_path_factory.mktemp("earlier")
    shutil.copytree(GOLDEN, folder / "out" / "earlier_layout")
    (folder / "out" / "corpora").symlink_to(corpora)
    done = scaling("sweep", "run", "earlier_layout", "--jobs", 1, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_every_config_of_the_plan_keeps_its_run_id() -> None:
    stored = [cell["run_id"] for cell in json.loads((GOLDEN / "plan.json").read_text())["cells"]]
    assert [cell.run_id for cell in planning.load_plan(GOLDEN).cells] == stored
    assert {path.name for path in (GOLDEN / "runs").iterdir()} == set(stored)


def test_the_interrupted_run_goes_on_from_its_trunk(place: Path) -> None:
    runs = place / "out" / "earlier_layout" / "runs"
    row = result(runs / INTERRUPTED["run_id"])["row"]
    assert row["flops_spent"] == INTERRUPTED["flops_spent"] < row["flops"]
    assert row["loss"] == pytest.approx(INTERRUPTED["loss"], rel=1e-5)


def test_finished_runs_are_left_alone(place: Path) -> None:
    for folder in (GOLDEN / "runs").iterdir():
        if folder.name != INTERRUPTED["run_id"]:
            assert result(place / "out" / "earlier_layout" / "runs" / folder.name) == result(folder)


def test_the_table_has_every_run(place: Path) -> None:
    done = in_process("sweep", "collect", "earlier_layout", cwd=place)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(place / "out" / "earlier_layout" / "results.parquet").set_index("run_id")
    assert set(table.index) == {path.name for path in (GOLDEN / "runs").iterdir()}
    assert (table["status"] == "done").all()
    assert table.loc[INTERRUPTED["run_id"], "bits_per_byte"] == pytest.approx(INTERRUPTED["bits_per_byte"], rel=1e-5)


def test_the_saved_fit_forecasts() -> None:
    document = json.loads((GOLDEN / "fit.json").read_text())
    predicted = forecast(saved_fit.read_fit(GOLDEN / "fit.json"), params=20_000, tokens=40_000).iloc[0]["predicted"]
    p = document["parameters"]
    assert predicted == pytest.approx(p["E"] + p["A"] / 20_000 ** p["alpha"] + p["B"] / 40_000 ** p["beta"])
