"""Each flag on a row that should have it and on one that should not, and flags from a run folder to a fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.commands import backtest as backtest_
from analysis.commands import collect, isoflop
from analysis.forecasting import backtest, saved_fit
from analysis.forecasting.saved_fit import FitSettings
from analysis.tables import flags, results, table_checks, where
from analysis.tables.curve_collapse import Curve
from tests.analysis.tables.test_curve_collapse import a_grid, simulated_curves
from tests.analysis.tables.test_results import run
from tests.conftest import simulated

LINES = 200
X = np.arange(1, LINES + 1) / LINES


def make_row(**changes: object) -> pd.DataFrame:
    plain = {"run_id": "a", "status": "done", "params_matmul": 1e5, "tokens": 1e6, "batch_tokens": 1e3, "loss": 2.0}
    return pd.DataFrame([plain | {"learning_rate": 1e-3, "schedule": "wsd", "seed": 0} | changes])


def curve(rate: np.ndarray | None = None, loss: np.ndarray | None = None) -> Curve:
    """The curve of a good run.

    Warm-up of 5 %, stable, cooldown of 30 % to zero; loss a power law with a batch's noise."""
    good = np.minimum(X / 0.05, 1) * np.clip((1 - X) / 0.3, 0, 1)
    noise = np.random.default_rng(0).normal(0, 0.05, LINES)
    return Curve(1e6 * X, 2 * X**-0.1 + noise if loss is None else loss, 1e-3 * (good if rate is None else rate))


def found_flags(table: pd.DataFrame, curve_of_run: Curve | None = None) -> list[tuple[str, str]]:
    return [
        (flag.name, flag.reason) for flag in flags.find_flags(table, {"a": curve_of_run} if curve_of_run else None)[0]
    ]


def test_a_good_run_has_no_flag() -> None:
    assert found_flags(make_row(), curve()) == []
    assert flags.flag_names(make_row(), {"a": curve()}).tolist() == [""]
    assert flags.flag_names(make_row()).tolist() == [""], "without curves"
    assert flags.flag_names(pd.DataFrame({"loss": [1.0], "params": [1e5]})).tolist() == [""], (
        "of a table made elsewhere"
    )


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_runs_that_did_not_end_have_that_flag_alone(status: str) -> None:
    table = make_row(status=status, batch_tokens=1e6)
    assert [word for word, _ in found_flags(table, curve(rate=np.ones(LINES)))] == [status]


@pytest.mark.parametrize(
    ("rate", "share"),
    [
        (np.minimum(X / 0.05, 1), "100%"),
        (np.minimum(X / 0.05, 1) * np.clip((1.3 - X) / 0.3, 0, 1), "100%"),
        (np.minimum(X / 0.05, 1) * (0.25 + 0.75 * (1 - X)), "26%"),
        (np.minimum(X / 0.3, 1) * np.clip((1 - X) / 0.3, 0, 1), "30%"),
    ],
)
def test_undertrained_by_its_learning_rate(rate: np.ndarray, share: str) -> None:
    ((word, reason),) = found_flags(make_row(), curve(rate))
    assert word == "undertrained"
    assert share in reason


def test_rates_that_are_as_they_should_be() -> None:
    cosine = np.minimum(X / 0.02, 1) * (0.1 + 0.9 * (0.5 + 0.5 * np.cos(np.pi * X)))
    assert found_flags(make_row(schedule="cosine"), curve(cosine)) == []
    long = np.minimum(X / 0.24, 1) * np.clip((1 - X) / 0.3, 0, 1)
    assert found_flags(make_row(), curve(long)) == []
    assert found_flags(make_row(schedule="constant"), curve(np.ones(LINES))) == [], "on purpose"
    assert found_flags(make_row(), curve(np.full(LINES, np.nan))) == [], "not logged"


def test_undertrained_by_its_steps() -> None:
    ((word, reason),) = found_flags(make_row(batch_tokens=1e6 / 49))
    assert word == "undertrained"
    assert re.findall(r"\d+", reason) == ["49", "50"]
    assert found_flags(make_row(batch_tokens=1e6 / 50)) == []


def test_a_loss_that_rises_beyond_its_noise() -> None:
    rng = np.random.default_rng(1)
    base = 2 * X**-0.1
    many = pd.concat([make_row(run_id=f"r{i}", loss=np.nan) for i in range(400)], ignore_index=True)
    noisy = {run: curve(loss=base + rng.normal(0, 0.2, LINES)) for run in many["run_id"]}
    assert set(flags.flag_names(many, noisy)) == {""}, "noise alone"
    risen = base + np.where(X > 0.8, 0.15 * (X - 0.8) / 0.2, 0)
    ((word, reason),) = found_flags(make_row(), curve(loss=risen + rng.normal(0, 0.02, LINES)))
    assert word == "rising"
    rise, tokens = map(float, re.findall(r"\d[\d.e+]*", reason))
    assert 0 < rise < 0.15
    assert 7.5e5 <= tokens <= 8.5e5
    spike = base + np.where(np.abs(X - 0.5) < 0.02, 2.0, 0)
    assert found_flags(make_row(), curve(loss=spike)) == [], "a spike that heals"


def scan(losses: list[float | None], **changes: object) -> pd.DataFrame:
    """Runs of one size at rates that double from row to row; a loss of None means diverged."""
    rows = [
        make_row(
            run_id=f"s{i}",
            learning_rate=1e-3 * 2**i,
            loss=np.nan if loss is None else loss,
            status="done" if loss else "diverged",
            **changes,
        )
        for i, loss in enumerate(losses)
    ]
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize(
    ("losses", "at"),
    [
        ([2.0, 2.1, 2.2], 0),
        ([2.2, 2.1, 2.0], 2),
        ([2.2, 2.0, 2.1], None),
        ([2.1, 2.0], None),
        ([2.2, 2.1, 2.0, None], None),
        ([2.0, 2.1, None], 0),
        ([None, None, None], None),
    ],
)
def test_the_best_rate_at_the_edge_of_its_scan(losses: list[float | None], at: int | None) -> None:
    words = flags.flag_names(scan(losses)).tolist()
    assert [i for i, flag_name in enumerate(words) if flag_name == "lr_at_bound"] == ([] if at is None else [at])


def test_a_scan_is_of_rows_alike_in_all_else() -> None:
    table = pd.concat([scan([2.2, 2.0, 2.1]), scan([1.9, 1.8, 1.7], seed=1)], ignore_index=True)
    assert flags.flag_names(table).tolist() == [""] * 5 + ["lr_at_bound"]
    unlike = scan([2.2, 2.1, 2.0]).assign(weight_decay=[0.1, 0.2, 0.3])
    assert flags.flag_names(unlike).tolist() == [""] * 3
    (flag,) = flags.find_flags(scan([2.2, 2.1, 2.0]))[2]
    assert re.findall(r"[\d.]*\d", flag.reason) == ["0.004", "3"], "the best rate, and how many were tried"


def a_sweep(folder: Path, off: dict[int, float]) -> Path:
    """Run folders of a simulated sweep, curves and all."""
    table, curves = simulated_curves(*a_grid(), np.random.default_rng(0), off)
    for entry in table.to_dict("records"):
        name, curve_of_run = entry["run_id"], curves[entry["run_id"]]
        run_folder = run(folder, name, loss=entry.pop("loss"), **{k: v for k, v in entry.items() if k != "status"})
        lines = zip(curve_of_run.tokens, curve_of_run.loss, curve_of_run.learning_rate, strict=True)
        text = [
            json.dumps({"step": i, "tokens": t, "loss": x, "learning_rate": r}) for i, (t, x, r) in enumerate(lines)
        ]
        (run_folder / "metrics.jsonl").write_text("\n".join(text))
    return folder


def test_flags_of_a_sweep_go_into_its_table_and_its_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = a_sweep(tmp_path / "s", {7: 16.0})
    (sweep / "runs" / "r03" / "metrics.jsonl").write_text("torn")
    run(sweep, "bad", status="diverged", loss=np.nan)
    collect.collect("s", out=tmp_path)
    printed = capsys.readouterr().out
    (off,) = [line for line in printed.splitlines() if "r07" in line]
    assert "off_collapse" in off
    assert re.search(r"\bbad\b.*\bdiverged\b.*\bwhy$", printed, re.M), "with the reason that the run itself gives"
    first = [(sweep / f"results.{kind}").read_bytes() for kind in ("csv", "parquet")]
    collect.collect("s", out=tmp_path)
    assert [(sweep / f"results.{kind}").read_bytes() for kind in ("csv", "parquet")] == first
    assert flags.join_names(flags.find_flags(api.load(sweep))[0]) == ""
    for path in (sweep, sweep / "results.csv"):
        table = api.load(path)
        assert table_checks.flags_by_run(table) == {"r07": "off_collapse", "bad": "diverged"}
        assert table.set_index("run_id")["reason"]["r07"] in off
        assert len(api.load(path, where="flags==")) == 19


def test_isoflop_and_backtest_name_them_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The back-test is replaced, because it takes seconds and does not matter here."""
    table = simulated().assign(flags="")
    table.loc[[3, 4], "flags"] = ["rising", "diverged"]
    table.loc[4, "status"] = "diverged"
    table.to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setattr(backtest, "backtest", lambda *_, **__: pd.DataFrame({"factor": [3.0]}))
    monkeypatch.setattr(backtest_, "print_scores", lambda *_: None)
    isoflop.isoflop(tmp_path / "t.csv")
    backtest_.backtest(tmp_path / "t.csv")
    printed = capsys.readouterr().out
    assert len(re.findall(rf"{table['run_id'][3]}\b.*\brising\b.*\b1\b.*\b29\b", printed)) == 2


@pytest.mark.usefixtures("no_rivals")
def test_a_fit_names_the_flagged_points_that_it_uses() -> None:
    table = simulated(3e-3, seed=1).assign(flags="")
    marked = {0: "undertrained", 9: "rising", 29: "lr_at_bound, rising"}
    for at, words in marked.items():
        table.loc[at, "flags"] = words
    table.loc[5, ["status", "flags"]] = "diverged"
    built = api.fit(table, settings=FitSettings(draws=8, holdout="largest"))
    first, last = table["run_id"][0], table["run_id"][29]
    fitted_note, held_out = [note for note in built.document["warnings"] if '--where "flags=="' in note]
    assert re.search(rf"{first}\b.*\bundertrained\b.*{table['run_id'][9]}\b.*\brising\b.*\b2\b.*\b28\b", fitted_note)
    assert last not in fitted_note
    assert re.search(rf"{last}\b.*\blr_at_bound, rising\b.*\b1\b.*\b1\b", held_out)
    assert built.document["flagged"] == {first: "undertrained", table["run_id"][9]: "rising"}
    assert built.facts()["flagged"] == built.document["flagged"]
    assert (len(built.points), built.document["dropped"]) == (28, 1)
    assert re.search(r"^28\b.*, 1\b", repr(built), re.M)
    again = saved_fit.SavedFit(json.loads(built.to_json()))
    assert table_checks.flags_by_run(again.points) == built.document["flagged"]
    assert table_checks.check_points(results.select_points(where.filter_rows(table, "flags=="))) == []
