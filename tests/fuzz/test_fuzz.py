"""Damaged files, names and expressions: a reader returns a value of its schema, or raises the error of its package.

Any other exception is a failure, and so is an example that takes more than DEADLINE. The examples are the same every
time (derandomize). A reader is called in a folder that has one damaged file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import analysis
from analysis.errors import TableError
from analysis.fitting.learning_rate_law import read_rate_law
from analysis.forecasting import saved_fit, sealed_forecast
from analysis.tables import checkpoints, evaluations, metrics, results, where
from scaling.config.overrides import parse_overrides
from scaling.config.run_config import RunConfig, from_dict, load_config, to_dict
from scaling.data.corpora import parse_corpus
from scaling.data.prepare import prepare
from scaling.data.shards import open_shards, read_meta, shards_folder
from scaling.errors import InputError
from scaling.files import read_json
from scaling.recipes.derive import load_measured_rate
from scaling.record import run_folder
from scaling.record.evaluations import read_evaluations
from scaling.record.run_folder import ATTEMPTS, CONFIG, ENVIRONMENT, EVALUATIONS, LEASE, METRICS, PLAN, RESULT, RUNS
from scaling.terminal import printable
from scaling.type_checks import find_misfit
from sweeps.planning.plan import Plan, load_plan, plan_to_dict
from sweeps.running import attempt_log, claims, outcomes, progress
from tests.conftest import in_process, simulated
from tests.fuzz.damage import TEXTS, VALUES, damaged_bytes, damaged_json, damaged_lines

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden" / "earlier_layout"
RUN_ID = "ccae51ed4e0a"
REFUSALS = (InputError, TableError)
DEADLINE = timedelta(seconds=5)
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=DEADLINE, suppress_health_check=CHECKS
    )


@functools.cache
def golden_plan() -> Plan:
    return load_plan(GOLDEN)


def golden_json(name: str) -> Any:
    return read_json(GOLDEN / name)


def golden_lines(name: str) -> list[Any]:
    lines = (GOLDEN / RUNS / RUN_ID / name).read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")][:4]


def assert_json(value: Any) -> None:
    """A value that was accepted can be written: it has no number that JSON lacks, and no half of a surrogate pair."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sweep earlier_layout, of which each example damages one file."""
    return Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("fuzz") / "earlier_layout"))


def read_damaged(path: Path, content: bytes, read: Callable[[], Any]) -> Any:
    """The result of `read` with the content in place of a file, which is restored; None where the content is refused
    with an error that can be printed."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        return read()
    except REFUSALS as error:
        message = str(error)
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    printable(message).encode()
    return None


@given(damaged_json(golden_json(f"{RUNS}/{RUN_ID}/{CONFIG}")))
@fuzz(300)
def test_config(sweep: Path, content: bytes) -> None:
    path = sweep / RUNS / RUN_ID / CONFIG
    config: RunConfig | None = read_damaged(path, content, lambda: load_config(path))
    if config is not None:
        assert from_dict(to_dict(config)) == config
        assert_json(to_dict(config))
        assert len(config.run_id) == 12


@given(damaged_json(golden_json(PLAN) | {"cells": golden_json(PLAN)["cells"][:2]}))
@fuzz(150)
def test_plan(sweep: Path, content: bytes) -> None:
    plan = read_damaged(sweep / PLAN, content, lambda: load_plan(sweep))
    if plan is not None:
        assert_json(plan_to_dict(plan))
        assert len(progress.read_sweep_progress(sweep, plan)) == len(plan.cells)


@given(damaged_json(golden_json(f"{RUNS}/{RUN_ID}/{RESULT}")))
@fuzz(200)
def test_result(sweep: Path, content: bytes) -> None:
    run = sweep / RUNS / RUN_ID
    result = read_damaged(run / RESULT, content, lambda: run_folder.read_result(run))
    if result is not None:
        assert not find_misfit(result, run_folder.Result)
    row = read_damaged(run / RESULT, content, lambda: results.read_run(run))
    if row is not None:
        table = results.arrange(pd.DataFrame([row, results.read_run(run)]))
        read_damaged(run / RESULT, content, lambda: results.done_points(table, "params_matmul"))
        table.to_csv(index=False).encode()
    plan = golden_plan()
    cells = read_damaged(run / RESULT, content, lambda: progress.read_sweep_progress(sweep, plan))
    assert_json([dataclasses.asdict(cell) for cell in cells])
    assert sum(cell.state == "done" for cell in cells) >= 4


@given(damaged_lines(golden_lines(METRICS)))
@fuzz(200)
def test_metrics(sweep: Path, content: bytes) -> None:
    run, cell = sweep / RUNS / RUN_ID, next(cell for cell in golden_plan().cells if cell.run_id == RUN_ID)
    lines = read_damaged(run / METRICS, content, lambda: run_folder.read_metrics(run))
    assert not any(find_misfit(line, run_folder.MetricsLine) for line in lines)
    table = read_damaged(run / METRICS, content, lambda: metrics.load_metrics(run))
    assert table["step"].dtype == np.int64
    (run / RESULT).rename(run / "aside")
    try:
        state = read_damaged(run / METRICS, content, lambda: progress.read_cell_progress(run, cell))
        assert_json(dataclasses.asdict(state))
        read_damaged(run / METRICS, content, lambda: outcomes.record_failure(run, cell, "why"))
    finally:
        (run / "aside").replace(run / RESULT)


@given(
    damaged_lines(
        [*golden_lines(ATTEMPTS), {"at": 1.5, "event": "ended", "kind": "memory", "reason": "", "sequences": 4}]
    )
)
@fuzz(200)
def test_attempts(sweep: Path, content: bytes) -> None:
    run, cell = sweep / RUNS / RUN_ID, next(cell for cell in golden_plan().cells if cell.run_id == RUN_ID)

    def read() -> list[dict[str, Any]]:
        attempt_log.has_unfinished_attempt(run)
        attempt_log.DEFAULT_BUDGETS.exhausted_reason(attempt_log.count_outcomes(run))
        assert isinstance(attempt_log.last_reason(run), str)
        outcomes.attempt_config(run, cell)
        return attempt_log.read_attempts(run)

    assert not any(find_misfit(line, attempt_log.AttemptLine) for line in read_damaged(run / ATTEMPTS, content, read))


@given(damaged_lines(golden_lines(EVALUATIONS) * 2))
@fuzz(120)
def test_evaluations(sweep: Path, content: bytes) -> None:
    run = sweep / RUNS / RUN_ID
    for evaluation in read_damaged(run / EVALUATIONS, content, lambda: read_evaluations(run)).values():
        assert evaluation.measurements
    assert isinstance(read_damaged(run / EVALUATIONS, content, lambda: evaluations.read_run_evaluations(run)), dict)
    table = read_damaged(run / EVALUATIONS, content, lambda: checkpoints.load_evaluations(sweep))
    assert table["run_id"].nunique() >= 5


@given(damaged_json(golden_json(f"{RUNS}/{RUN_ID}/{ENVIRONMENT}")), damaged_json({"nonce": "a", "host": "b", "pid": 1}))
@fuzz(150)
def test_environment_and_lease(sweep: Path, environment: bytes, lease: bytes) -> None:
    run, cell = sweep / RUNS / RUN_ID, next(cell for cell in golden_plan().cells if cell.run_id == RUN_ID)
    assert read_damaged(run / ENVIRONMENT, environment, lambda: outcomes.count_devices(run, cell, None)) >= 1
    assert not find_misfit(read_damaged(run / LEASE, lease, lambda: claims.read_lease(run / LEASE)), claims.Lease)
    assert read_damaged(run / LEASE, lease, lambda: claims.is_claimable(run)) in (True, False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    prepare("walk?tokens=2048", folder, backend="plain")
    return folder


@given(st.data())
@fuzz(120)
def test_prepared_corpus(prepared: Path, data: st.DataObject) -> None:
    folder = shards_folder(prepared, "walk?tokens=2048", "byte")
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    before = (folder / name).read_bytes()
    damage = damaged_json(json.loads(before)) if name == "meta.json" else damaged_bytes(before)
    content = data.draw(damage)
    read_damaged(folder / name, content, lambda: read_meta(folder))
    tokens = read_damaged(folder / name, content, lambda: open_shards(prepared, "walk?tokens=2048"))
    if tokens is not None:
        assert tokens.train.gather(np.arange(8)).max() < tokens.vocab_size


def small_fit() -> dict[str, Any]:
    document = golden_json("fit.json")
    members = [member | {"draws": member["draws"][:3]} for member in document["predictive"]["members"]]
    return document | {"draws": document["draws"][:3], "predictive": document["predictive"] | {"members": members}}


@given(damaged_json(small_fit()))
@fuzz(250)
def test_fit(sweep: Path, content: bytes) -> None:
    path = sweep / "fit.json"

    def read() -> pd.DataFrame:
        fit = saved_fit.read_fit(path)
        assert_json(fit.document)
        assert repr(fit)
        assert len(fit.residuals) == len(fit.points)
        return analysis.forecast(fit, params=20_000, tokens=40_000)

    forecast = read_damaged(path, content, read)
    assert forecast is None or len(forecast) == 1


@given(st.data())
@fuzz(150)
def test_sealed_forecast(sweep: Path, data: st.DataObject) -> None:
    """Also one that was damaged and sealed anew, so that its hash is right."""
    path = sweep / "sealed.json"
    target = {"params": 2e4, "tokens": 4e4, "predicted": 3.0, "low": 2.9, "high": 3.1, "level": 0.9, "known": "new"}
    content = {"schema": 1, "date": "2026-11-30", "params_column": "params_matmul", "targets": [target, target]}
    text = data.draw(damaged_json(content | {"sha256": sealed_forecast.sealed_hash(content)}))
    try:
        changed = json.loads(text)
        sealed = json.dumps(changed | {"sha256": sealed_forecast.sealed_hash(changed)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        sealed = text
    table = results.read_table(sweep)
    for part in (text, sealed):
        score = lambda: sealed_forecast.score_sealed(sealed_forecast.read_sealed(path), table)  # noqa: E731
        read_damaged(path, part, score)


@given(damaged_json(read_json(GOLDEN.parents[2] / "sweeps" / "catalog" / "stdlib_rates.json")))
@fuzz(200)
def test_learning_rates(sweep: Path, content: bytes) -> None:
    path = sweep / "rates.json"
    law = read_damaged(path, content, lambda: read_rate_law(path))
    if law is not None:
        assert str(law)
        assert all(len(scan.rates) == len(scan.losses) for scan in law.scans)
    rule = read_damaged(path, content, lambda: load_measured_rate(path))
    assert rule is None or rule.text


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes]]:
    """A table in a file of each kind, and its bytes."""
    folder, table = tmp_path_factory.mktemp("tables"), simulated().iloc[:6]
    table.to_csv(folder / "t.csv", index=False)
    table.to_parquet(folder / "t.parquet", write_page_checksum=True)
    table.to_json(folder / "t.jsonl", orient="records", lines=True)
    table.to_json(folder / "t.json", orient="records")
    return {path.suffix: (path, path.read_bytes()) for path in folder.iterdir()}


@given(st.data())
@fuzz(250)
def test_tables(tables: dict[str, tuple[Path, bytes]], data: st.DataObject) -> None:
    path, content = tables[data.draw(st.sampled_from([".csv", ".jsonl", ".json", ".parquet"]))]
    if path.suffix == ".jsonl":
        damaged = data.draw(damaged_lines([json.loads(line) for line in content.splitlines()]))
    else:
        damage = damaged_json(json.loads(content)) if path.suffix == ".json" else damaged_bytes(content)
        damaged = data.draw(damage)
    table = read_damaged(path, damaged, lambda: results.read_table(path))
    if table is None:
        return
    assert isinstance(table, pd.DataFrame)
    points = read_damaged(path, damaged, lambda: results.done_points(table, "params_matmul"))
    if points is not None:
        assert np.isfinite(points[["params", "tokens", "loss"]].to_numpy(float)).all()
    if path.suffix == ".parquet":
        # Its pages have checksums: what is read has the numbers that were written.
        before = results.read_table(path)
        assert all(table[name].equals(before[name]) for name in set(table) & set(before))


KINDS = ["text", "jsonl", "parquet", "hf", "mixture", "seqio", "walk", "zipf", "simulated", "stdlib", "other", ""]
FIELDS = [
    "tokens",
    "seed",
    "nodes",
    "edges",
    "facts",
    "exponent",
    "alpha",
    "noise",
    "limit",
    "document",
    "field",
    "module",
    "E",
]
CORPORA = st.builds(
    lambda kind, path, query: kind + path + "".join(query),
    st.sampled_from(KINDS),
    st.one_of(st.just(""), TEXTS.map(":{}".format)),
    st.lists(
        st.builds("{}{}={}".format, st.sampled_from("?&"), st.sampled_from(FIELDS), TEXTS | st.floats().map(str)),
        max_size=3,
    ),
)


@given(CORPORA | TEXTS)
@fuzz(500)
def test_corpus_names(name: str) -> None:
    try:
        corpus = parse_corpus(name)
    except InputError as error:
        printable(error).encode()
        return
    assert parse_corpus(corpus.name) == corpus
    assert len(corpus.slug.encode()) < 256
    assert "/" not in corpus.slug


@given(
    st.lists(
        st.sampled_from(
            ["alpha", "E", "A", "B", "beta", "gamma", "rate_at", "rate_exponent", "curvature", "limit", "noise"]
        ),
        max_size=4,
        unique=True,
    ),
    st.data(),
)
@fuzz(150)
def test_simulated_runs(tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject) -> None:
    """Every accepted corpus `simulated` gives a run whose numbers are finite."""
    from scaling.config.run_config import DataConfig, OptimizerConfig
    from scaling.training.simulated_run import simulate_run

    numbers = st.sampled_from([-2, -1e-9, 0, 1e-9, 1e-3, 1, 2, 10, 1e3, 1e9]) | st.floats()
    query = "&".join(f"{name}={data.draw(numbers)}" for name in names)
    try:
        config = RunConfig(
            data=DataConfig(
                corpus=f"simulated?{query}" if query else "simulated", sequence_length=8, batch_sequences=1
            ),
            optimizer=OptimizerConfig(learning_rate=data.draw(st.sampled_from([1e-320, 1e-3, 1e300]))),
            tokens=64,
        )
        folder = tmp_path_factory.mktemp("run")
        simulate_run(config, folder)
    except InputError:
        return
    result = run_folder.read_result(folder)
    assert result is not None
    assert result["status"] == "diverged" or math.isfinite(result["row"]["loss"])
    assert len(run_folder.read_metrics(folder)) >= 2
    shutil.rmtree(folder)


CLAUSES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["loss", "'loss'", "run_id", "status", "los", "", " ", "a and b"]) | TEXTS,
    st.sampled_from(["==", "!=", "<", ">=", "=", "<>", ""]),
    st.sampled_from(["2", "1e9", "done", "'done'", "", "nan", "inf", "1_0", "3B", " " * 3000]) | TEXTS,
)


@given(st.lists(CLAUSES, max_size=3).map(" and ".join) | TEXTS)
@fuzz(400)
def test_where(expression: str) -> None:
    table = simulated().iloc[:6]
    try:
        rows = where.filter_rows(table, expression)
    except TableError:
        return
    assert set(rows["run_id"]) <= set(table["run_id"])
    assert len(rows) > 0


@given(
    st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from(
                ["model.width", "seed", "tokens", "schedule", "optimizer.learning_rate", "data.corpus", "x"]
            ),
            TEXTS | VALUES.map(json.dumps),
        ),
        max_size=3,
    )
)
@fuzz(300)
def test_overrides(texts: list[str]) -> None:
    try:
        changes = parse_overrides(texts)
    except InputError:
        return
    assert len(changes) == len(texts)


@given(st.data())
@settings(parent=fuzz(40))
def test_verbs(sweep: Path, data: st.DataObject) -> None:
    """Verbs of a sweep of which one file is damaged end with 0, 1 or 2 and without an exception."""
    run = RUNS + "/" + RUN_ID
    file = data.draw(st.sampled_from([PLAN, "fit.json", *(f"{run}/{name}" for name in (CONFIG, RESULT, ENVIRONMENT))]))
    lines = data.draw(st.sampled_from([None, None, METRICS, ATTEMPTS, EVALUATIONS]))
    path = sweep / run / lines if lines else sweep / file
    content = data.draw(damaged_lines(golden_lines(lines)) if lines else damaged_json(golden_json(file)))
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        for verb in (["sweep", "status"], ["sweep", "collect"]):
            done = in_process(*verb, "earlier_layout", "--out", sweep.parent, cwd=sweep)
            assert done.returncode in (0, 1, 2), done.stderr
            assert "Traceback" not in done.stdout + done.stderr
        done = in_process("forecast", sweep / "fit.json", "--params-value", 20_000, "--tokens", 40_000, cwd=sweep)
        assert done.returncode in (0, 2)
    finally:
        path.write_bytes(before)
