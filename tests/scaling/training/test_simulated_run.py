from __future__ import annotations

import dataclasses
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.fitting.fit import fit_law
from analysis.laws import chinchilla
from analysis.tables.results import read_table, select_points
from scaling import files
from scaling.accounting.counts import count_params
from scaling.config.run_config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from scaling.data.simulated_corpus import Simulated
from scaling.errors import InputError
from scaling.record import run_folder
from scaling.training import simulated_run
from scaling.training.train import train
from sweeps.commands.run import run_locally
from sweeps.grids import Sweep, apply, axis, product
from sweeps.planning.plan import build_plan, freeze_plan
from sweeps.planning.wall_time import WallTimeModel

PACE = WallTimeModel(0.01, 0.0, 0.0, 1e15, "a test")
TRUTH = Simulated(noise=0.0, seed_effect=0.0)


def run(corpus: str = TRUTH.name, width: int = 256, steps: int = 1_000, rate: float | None = None, **more) -> RunConfig:
    model = ModelConfig(width=width, depth=4, heads=8)
    best = TRUTH.best_rate(count_params(model).matmul)
    return RunConfig(
        model=model,
        data=DataConfig(corpus=corpus, batch_sequences=256),
        optimizer=OptimizerConfig(learning_rate=best if rate is None else best * rate),
        schedule=ScheduleConfig(kind="wsd", warmup_tokens=32_768 * 10),
        tokens=32_768 * steps,
        **more,
    )


def result(config: RunConfig, folder: Path) -> dict:
    train(config, folder, quiet=True)
    return run_folder.read_result(folder) or {}


def test_the_loss_of_a_run_is_the_law_at_its_params_and_tokens(tmp_path: Path) -> None:
    config = run()
    found = result(config, tmp_path)
    N, D = count_params(config.model).matmul, config.tokens
    assert found["row"]["loss"] == pytest.approx(1.69 + 406.4 / N**0.34 + 410.7 / D**0.28, rel=1e-8)
    assert found["row"]["bits_per_byte"] == pytest.approx(found["row"]["loss"] / math.log(2))
    assert found["status"] == "done"
    assert {"loss/nats"} == found["measurements"].keys()
    lines = run_folder.read_metrics(tmp_path)
    assert lines[-1]["step"] == config.steps
    assert lines[-1]["loss"] == pytest.approx(found["row"]["loss"], rel=0.05)
    assert files.read_json(tmp_path / run_folder.ENVIRONMENT)["simulated"] == TRUTH.name


def test_a_learning_rate_off_the_best_costs_loss_and_too_high_a_one_diverges(tmp_path: Path) -> None:
    best, off = (result(run(rate=rate), tmp_path / str(rate))["row"]["loss"] for rate in (1.0, 4.0))
    assert off / best == pytest.approx(1 + 0.01 * 4)
    wild = result(run(rate=17.0), tmp_path / "wild")
    assert wild["status"] == "diverged"
    assert wild["row"]["loss"] is None
    assert 0 < wild["row"]["tokens"] < run().tokens
    assert "nan" in wild["reason"]


def test_noise_depends_on_the_run_and_its_seed_and_repeats(tmp_path: Path) -> None:
    noisy = "simulated?noise=0.01&seed_effect=0.03"
    again = [result(run(noisy), tmp_path / name)["row"]["loss"] for name in "ab"]
    assert again[0] == again[1]
    logs = np.array(
        [
            [
                math.log(result(run(noisy, steps=steps, seed=seed), tmp_path / f"{seed}-{steps}")["row"]["loss"])
                - math.log(result(run(steps=steps), tmp_path / f"clean-{steps}")["row"]["loss"])
                for steps in (100, 200)
            ]
            for seed in range(80)
        ]
    )
    assert logs.mean(1).std(ddof=1) == pytest.approx(0.03, rel=0.25)
    of_one_trunk = np.sqrt(logs.var(1, ddof=1).mean())
    assert of_one_trunk == pytest.approx(0.01 / math.sqrt(2), rel=0.2), "half of the variance is shared"


def test_noise_does_not_depend_on_branch_of(tmp_path: Path) -> None:
    config = run("simulated?noise=0.1")
    branched = dataclasses.replace(config, branch_of="abc")
    assert branched.run_id == config.run_id
    assert result(config, tmp_path / "a")["row"]["loss"] == result(branched, tmp_path / "b")["row"]["loss"]


def test_a_simulated_sweep_is_fitted_back_to_its_law_in_milliseconds_a_run(tmp_path: Path) -> None:
    """Planned, trunks shared, made, collected and fitted: the truth comes back."""
    noisy = "simulated?noise=0.001&seed_effect=0&mishap=0.1"
    cells = apply(run(noisy), product(axis("model.width", 64, 128, 256, 512, 1024), axis("tokens", *SIZES)))
    rates = [
        dataclasses.replace(c, optimizer=OptimizerConfig(learning_rate=TRUTH.best_rate(count_params(c.model).matmul)))
        for c in cells
    ]
    freeze_plan(tmp_path, build_plan(Sweep("truth", tuple(rates), ""), PACE))
    began = time.monotonic()
    assert run_locally(tmp_path, jobs=1) == 0
    assert time.monotonic() - began < 0.1 * len(cells)
    table = read_table(tmp_path)
    assert len(table) == 35
    assert set(table["status"]) == {"done", "diverged"}
    assert set(table["branch_of"]) - {""} <= set(table["run_id"])
    assert (table["flops_spent"].sum() / table["flops"].sum()) == pytest.approx(0.6, abs=0.06)
    points = select_points(table).table
    law = fit_law(chinchilla, points, points["loss"])
    assert law.values["alpha"] == pytest.approx(0.34, abs=0.02)
    assert law.values["beta"] == pytest.approx(0.28, abs=0.02)
    assert pytest.approx(1.69, abs=0.1) == law.values["E"]


SIZES = tuple((32_768 * 250) << doubling for doubling in range(7))


@pytest.mark.parametrize(
    ("corpus", "says"),
    [
        ("simulated?alfa=.3", r"\balfa\b.*\balpha\b"),
        ("simulated?noise=-1", r"noise.*-1\.0"),
        ("simulated?mishap=2", r"mishap.*2\.0.*\[0, 1\]"),
    ],
)
def test_a_wrong_field_of_the_law_is_named(corpus: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        simulated_run.true_law(run(corpus))


def test_there_is_no_text_to_prepare() -> None:
    with pytest.raises(InputError, match=re.escape(TRUTH.name)):
        list(TRUTH.documents("train"))
