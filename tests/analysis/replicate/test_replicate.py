"""Verdicts on published numbers, each study on its table, the verb `scaling replicate`, and the download of tables."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.commands import replicate
from analysis.errors import TableError
from analysis.replicate import approach2, chinchilla, datablations, fetch, gadre, nanochat, porian, steplaw
from analysis.replicate.study import Comparison, PinnedFile, Reason, Replication, check_bound, check_interval, compare
from tests.support import made_tables


def test_a_verdict_is_computed() -> None:
    """Within the tolerance; beyond it; beyond it with a reason; with a reason that the numbers do not bear out."""
    reason = Reason("not an optimum", True, "why")
    assert compare("s", "q", 1.0, 1.04, 0.05).verdict == "reproduced"
    assert compare("s", "q", 1.0, 1.06, 0.05).verdict == "differs"
    assert compare("s", "q", 1.0, 0.94, 0.05).verdict == "differs"
    assert compare("s", "q", 1.0, float("nan"), 0.05).verdict == "differs"
    explained = compare("s", "q", 1.0, 1.06, 0.05, reason=reason)
    assert (explained.verdict, explained.note) == ("not an optimum", "why")
    assert explained.difference == pytest.approx(0.06)
    assert compare("s", "q", 1.0, 1.06, 0.05, reason=replace(reason, is_supported=False)).verdict == "differs"
    assert compare("s", "q", 1.0, 1.04, 0.05, reason=reason).verdict == "reproduced"


def test_bounds_and_intervals() -> None:
    assert check_bound("s", "q", 1.0, 0.9).verdict == "within bound"
    assert check_bound("s", "q", 1.0, 1.1).verdict == "differs"
    assert check_bound("s", "q", 1.0, float("nan")).verdict == "differs"
    assert check_interval("s", "q", 2.0, 5.0, (1.0, 9.0), "").verdict == "inside interval"
    assert check_interval("s", "q", 0.9, 5.0, (1.0, 9.0), "").verdict == "differs"


def verdicts(rows: list[Comparison]) -> dict[str, str]:
    return {row.quantity: row.verdict for row in rows}


def test_approach_2_bias() -> None:
    rows = approach2.run(Path())
    assert [round(row.ours, 2) for row in rows] == [-0.33, -1.30, -2.90, -5.10]
    assert set(verdicts(rows).values()) == {"reproduced"}


def test_nanochat() -> None:
    rows = nanochat.run(Path())
    verdict_of = verdicts(rows)
    exponents = {quantity: verdict for quantity, verdict in verdict_of.items() if "exponent" in quantity}
    assert len(exponents) == 6
    assert set(exponents.values()) == {"reproduced"}
    assert verdict_of["tokens per parameter at 1e+19"] == "explained"


def test_nanochat_ratio_is_explained_only_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear interpolation of a convex curve cannot give a printed ratio below D*/N*."""
    monkeypatch.setattr(nanochat, "RATIOS", (11.2, 10.7, 10.8, 9.5))
    assert verdicts(nanochat.run(Path()))["tokens per parameter at 1e+19"] == "differs"


def test_porian(shared_data: Path) -> None:
    """Five exponents on each of two corpora, each within .005."""
    rows = porian.run(shared_data / "porian")
    assert len(rows) == 10
    assert max(abs(row.difference) for row in rows) <= 0.005
    assert set(verdicts(rows).values()) == {"reproduced"}


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "reproduced"), (0.02, "differs")])
def test_porian_recovers_planted_exponents(tmp_path: Path, shift: float, verdict: str) -> None:
    made_tables.write_porian(tmp_path, shift)
    rows = porian.run(tmp_path / "porian")
    assert [row.difference for row in rows] == pytest.approx([shift] * 10, abs=0.005)
    assert set(verdicts(rows).values()) == {verdict}


def test_steplaw(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published fits give the paper's law; the released runs give another, which a user's re-run also gave."""
    monkeypatch.setattr(steplaw, "DRAWS", 300)
    rows = steplaw.run(shared_data / "steplaw" / "data")
    assert [row.verdict for row in rows] == ["reproduced"] * 5 + ["explained"] * 3
    assert [round(row.ours, 3) for row in rows[:3]] == [-0.713, 0.307, 0.571]


def test_steplaw_recovers_a_planted_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs with a planted optimum, differences from the paper are not explained."""
    monkeypatch.setattr(steplaw, "DRAWS", 50)
    random = np.random.default_rng(0)
    runs = []
    for n, d in ((n, d) for n in (2e8, 4e8, 8e8) for d in (5e9, 2e10, 8e10)):
        best = np.log([30.0 * n**-0.5 * d**0.1, 2.0 * d**0.45])
        offsets = random.uniform(-0.5, 0.5, (60, 2))
        lr, tokens = np.exp(best + offsets).T
        loss = 2.5 * (1 + 0.02 * (offsets**2).sum(axis=1))
        columns = {"N": n, "D": d, "lr": lr, "bs": tokens / steplaw.SEQUENCE_LENGTH, "smooth loss": loss}
        runs.append(pd.DataFrame(columns))
    table = pd.concat(runs, ignore_index=True)
    chosen = steplaw.select_near_optimal(table)
    assert len(chosen) < len(table)
    fitted = steplaw.fit_exponents(chosen, np.arange(len(chosen)))
    assert fitted == pytest.approx([-0.5, 0.1, 0.0, 0.45, 0.45], abs=0.06)
    table.to_csv(tmp_path / "dense_lr_bs_loss.csv")
    fits = "1004_fitted_lr_bs_scaling_model_parameters.csv"
    pd.DataFrame([dict.fromkeys(("lr_intercept", "lr_coefN", "lr_coefD", "bs_intercept", "bs_coefD"), 0.0)]).to_csv(
        tmp_path / fits
    )
    assert {row.verdict for row in steplaw.run(tmp_path)} == {"differs"}


@pytest.mark.slow
def test_chinchilla(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each objective has its own optimum; the printed point is that of LAD and is not a Huber optimum."""
    monkeypatch.setattr(chinchilla, "DRAWS", 500)
    rows = chinchilla.run(shared_data / "chinchilla_epoch")
    verdict_of = verdicts(rows)
    errors = [row for row in rows if row.quantity.startswith("standard error")]
    assert len(errors) == 4
    for row in errors:
        assert row.ours == pytest.approx(row.published, rel=0.15)
    for name in chinchilla.PARAMETERS:
        assert verdict_of[f"{name}, least absolute deviation"] == "reproduced"
        assert verdict_of[f"{name}, Huber(1e-3)"] == "reproduced"
        assert verdict_of[f"{name}, printed as Huber"] == "not an optimum"
    assert verdict_of["A, LAD, smoothed"] == "not an optimum"
    assert verdict_of["Huber objective, notebook's own fit"] == "within bound"
    assert (
        verdict_of["beta, all 245 points, Huber(1e-3)"] == verdict_of["a, all 245 points, Huber(1e-3)"] == "reproduced"
    )
    notes = {row.note for row in rows if row.quantity.endswith("printed as Huber")}
    assert len(notes) == 1
    assert "LAD" in notes.pop()


@pytest.mark.slow
def test_gadre(shared_data: Path) -> None:
    rows = gadre.run(shared_data / "gadre_overtrain")
    assert [round(row.ours, 4) for row in rows] == [0.7103, 3.6365, 0.7320, 0.0464]
    assert set(verdicts(rows).values()) == {"reproduced"}
    assert re.search(r"\b4\.30 %.*\b1\.62 %", rows[2].note), "on C4, on RefinedWeb"


@pytest.mark.slow
def test_gadre_forecasts_runs_that_lie_on_its_laws(made_data: Path) -> None:
    """Runs exactly on the laws have no prediction errors, so the published ones are not reproduced."""
    rows = gadre.run(made_data / "gadre_overtrain")
    assert [row.ours for row in rows] == pytest.approx([0.0] * 4, abs=1e-3)
    assert set(verdicts(rows).values()) == {"differs"}


@pytest.mark.slow
def test_datablations_finds_a_planted_point(made_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs planted at the lower minimum the published point is no minimum, and its difference is unexplained."""
    monkeypatch.setattr(datablations, "PROFILE_GRID", np.geomspace(10.0, 1e3, 120))
    rows = {row.quantity: row for row in datablations.run(made_data / "datablations")}
    assert rows["R_D*, lower minimum"].ours == pytest.approx(datablations.LOWER_MINIMUM["R_D"], rel=0.1)
    assert rows["R_N*, lower minimum"].ours == pytest.approx(datablations.LOWER_MINIMUM["R_N"], rel=0.1)
    assert rows["lowest objective"].verdict == "within bound"
    assert rows["R_D*, published"].verdict == rows["R_N*, published"].verdict == "differs"
    assert rows["R_D*, published, in the 95 % interval"].verdict == "differs"


@pytest.mark.slow
def test_datablations(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published minimum is local, the lower minimum is reproduced, and the interval contains both."""
    monkeypatch.setattr(datablations, "PROFILE_GRID", np.geomspace(5.0, 1e4, 30))
    rows = {row.quantity: row for row in datablations.run(shared_data / "datablations")}
    assert rows["R_D*, published"].verdict == rows["R_N*, published"].verdict == "not an optimum"
    assert rows["R_D*, descent from the published point"].verdict == "reproduced", "a local minimum"
    assert rows["lowest objective"].ours <= 0.015805
    assert rows["R_D*, lower minimum"].verdict == rows["R_N*, lower minimum"].verdict == "reproduced"
    inside = [row for quantity, row in rows.items() if "interval" in quantity]
    assert [row.published for row in inside] == [15.387756, 95.4]
    assert {row.verdict for row in inside} == {"inside interval"}


def test_an_interval_is_where_the_likelihood_ratio_leaves_it() -> None:
    """A parabola in log R_D of known curvature: the end is where points * log ratio reaches 3.84 / 2."""
    grid = np.geomspace(1.0, 100.0, 2001)
    objectives = np.exp(0.5 * np.log(grid / 10) ** 2)
    ends = datablations.likelihood_interval(objectives, 1.0, 16, grid)
    half = np.sqrt(3.841 / 16)
    assert np.log(np.array(ends) / 10) == pytest.approx([-half, half], abs=5e-3)


def test_a_grid_without_a_point_in_the_interval_is_an_error() -> None:
    grid = np.array([2.0, 8.0, 32.0])
    with pytest.raises(TableError, match=r"R_D\*.*\b2 to 32\b.*\b8\b.*\b1\.5\b"):
        datablations.likelihood_interval(np.array([2.0, 1.5, 3.0]), 1.0, 16, grid)


def one_row(_: Path) -> list[Comparison]:
    return [compare("s", "q", 1.0, 2.0, 0.5)]


def test_the_verb_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = replicate.replicate(("approach2", "nanochat"), json=tmp_path / "r.json")
    printed = capsys.readouterr().out
    assert code == 0
    facts = json.loads((tmp_path / "r.json").read_text())
    for row in facts["rows"]:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{row['quantity']} ")]
        assert f"{row['published']:.6g}" in line.split()
        assert f"{row['ours']:.6g}" in line.split()
        assert row["verdict"] in line
    (note,) = {row["note"] for row in facts["rows"] if row["verdict"] == "explained"}
    assert f"(1) {note}" in printed
    assert facts["counts"]["reproduced"] == sum(row["verdict"] == "reproduced" for row in facts["rows"])
    assert {row["study"] for row in facts["rows"]} == {"approach2", "nanochat"}


def test_an_unexplained_difference_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "STUDIES", (approach2.STUDY, Replication("s", "nowhere", one_row)))
    assert replicate.replicate(("approach2",)) == 0
    assert replicate.replicate() == 1


def test_absent_data_skip_a_study_unless_it_was_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replicate.replicate(data=tmp_path, json=tmp_path / "r.json") == 0
    printed, skipped = capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())["skipped"]
    assert {"porian", "steplaw"} <= set(skipped)
    assert all(re.search(rf"^{name}\b.*{re.escape(why)}$", printed, re.M) for name, why in skipped.items())
    with pytest.raises(TableError, match=r"steplaw.*--fetch"):
        replicate.replicate(("steplaw",), data=tmp_path)
    with pytest.raises(TableError, match=r"--data .*none"):
        replicate.replicate(data=tmp_path / "none")
    with pytest.raises(TableError, match=r"\bporain\b.*\bporian\b.*\bporian\b"):
        replicate.replicate(("porain",))


CONTENT = b"a,b\n1,2\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A stand-in for the public host: its address and the paths requested from it."""
    monkeypatch.setenv("no_proxy", "*")
    root = tmp_path / "host"
    (root / "o" / "r" / "c0ffee" / "data").mkdir(parents=True)
    (root / "o" / "r" / "c0ffee" / "data" / "a b.csv").write_bytes(CONTENT)
    requested_paths: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            requested_paths.append(self.path)

        def log_error(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root)) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{host.server_port}", requested_paths
        host.shutdown()


def pinned(path: str = "data/a b.csv", content: bytes = CONTENT) -> Replication:
    file = PinnedFile(path, "a.csv", hashlib.sha256(content).hexdigest())
    return Replication("s", "nowhere", one_row, folder="s/data", repository="o/r", commit="c0ffee", files=(file,))


def test_fetch_gets_a_file_once(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    base, requested_paths = server
    (path,) = fetch.fetch_files(pinned(), tmp_path / "got", base)
    assert path == tmp_path / "got" / "s" / "data" / "a.csv"
    assert path.read_bytes() == CONTENT
    assert [item.name for item in path.parent.iterdir()] == ["a.csv"]
    fetch.fetch_files(pinned(), tmp_path / "got", base)
    assert requested_paths == ["/o/r/c0ffee/data/a%20b.csv"]
    path.write_bytes(CONTENT[:-2])
    fetch.fetch_files(pinned(), tmp_path / "got", base)
    assert path.read_bytes() == CONTENT
    assert len(requested_paths) == 2


def test_fetch_refuses_other_bytes(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    with pytest.raises(TableError, match=rf"{hashlib.sha256(CONTENT).hexdigest()[:12]}.*a\.csv"):
        fetch.fetch_files(pinned(content=b"other"), tmp_path / "got", server[0])
    assert not (tmp_path / "got").exists()


def test_fetch_says_what_to_do_without_the_file_or_the_network(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    with pytest.raises(TableError, match=r"data/gone\.csv.*404.*a\.csv"):
        fetch.fetch_files(pinned("data/gone.csv"), tmp_path / "got", server[0])
    with pytest.raises(TableError, match=r"http://127\.0\.0\.1:1/.*a\.csv"):
        fetch.fetch_files(pinned(), tmp_path / "got", "http://127.0.0.1:1")
    assert not (tmp_path / "got").exists()


def test_the_verb_fetches(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch.fetch_files, "__defaults__", (server[0],))
    monkeypatch.setattr(replicate, "STUDIES", (pinned(), replace(porian.STUDY)))
    assert replicate.replicate(data=tmp_path / "got", fetch=True) == 1
    assert (tmp_path / "got" / "s" / "data" / "a.csv").read_bytes() == CONTENT
    assert porian.STUDY.why_not_fetched in capsys.readouterr().out


def test_pins_are_of_the_tables_at_hand(shared_data: Path) -> None:
    """The tables that --fetch can download have the pinned hash, if they are here."""
    files = [
        (shared_data / study.folder / file.local_name, file.sha256)
        for study in replicate.STUDIES
        for file in study.files
    ]
    assert files
    for path, pin in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == pin
