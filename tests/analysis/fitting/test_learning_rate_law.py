from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.commands.rates import rates
from analysis.errors import TableError
from analysis.fitting.learning_rate_law import (
    ALL_DIVERGED,
    best_rate,
    find_scans,
    fit_rate_law,
    rate_document,
    read_rate_law,
)
from analysis.plots import learning_rates
from scaling.errors import InputError
from scaling.recipes import recipes
from scaling.recipes.derive import PartialRun, load_measured_rate

SIZES = {16: 1e4, 32: 4e4, 64: 2e5}
MANY = {8 * i: 1e4 * 2**i for i in range(1, 9)}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def best(params: float) -> float:
    return 0.01 * (params / 1e4) ** -0.4


def table(noise: float = 0.0, off: float = 1.3, sizes: dict[int, float] = SIZES) -> pd.DataFrame:
    """Scans about `off` times the best rate; the loss is a parabola in log rate."""
    generator = np.random.default_rng(0)
    rows = []
    for width, params in sizes.items():
        for factor in FACTORS:
            rate = off * factor * best(params)
            loss = 2 + 0.05 * np.log2(rate / best(params)) ** 2 + noise * generator.standard_normal()
            rows.append(
                {"sweep": "made", "status": "done", "params_matmul": params, "params_total": 2 * params, "width": width}
                | {"depth": 2, "tokens": 1e6, "batch_tokens": 512, "seed": 0, "learning_rate": rate, "loss": loss}
            )
    return pd.DataFrame(rows)


def test_the_vertex_of_a_parabola_is_found_exactly() -> None:
    for scan in find_scans(table()):
        assert scan.best == pytest.approx(best(scan.params), rel=1e-8)
        assert scan.loss == pytest.approx(2.0, abs=1e-8)
        assert scan.at_bound == ""


def test_a_planted_law_of_the_optima_is_recovered() -> None:
    law = fit_rate_law(find_scans(table()))
    assert law.exponent == pytest.approx(-0.4)
    assert law(1e4) == pytest.approx(0.01)
    assert law.rms == pytest.approx(0, abs=1e-6)
    noisy = fit_rate_law(find_scans(table(0.004, sizes=MANY)))
    assert noisy.exponent == pytest.approx(-0.4, abs=3 * noisy.stderr)
    assert 0.002 < noisy.stderr < 0.1


@pytest.mark.parametrize(("off", "bound"), [(0.1, "highest"), (10.0, "lowest")])
def test_a_best_rate_at_the_edge_of_the_scan_is_no_optimum(off: float, bound: str) -> None:
    found = find_scans(table(off=off))
    assert {scan.at_bound for scan in found} == {bound}
    with pytest.raises(TableError, match=rf"w16-d2 .*{bound}"):
        fit_rate_law(found)


def test_a_diverged_rate_counts_as_tried() -> None:
    one, two, three = np.array([0.1, 0.2, 0.4]), np.array([2.0, 1.9, np.nan]), np.array([np.nan] * 3)
    assert best_rate(one, two) == (0.2, 1.9, "")
    assert best_rate(one, three)[2] == ALL_DIVERGED
    assert best_rate(one, np.array([np.nan, 1.9, 2.0]))[2] == ""


def test_runs_that_diverged_early_stay_in_their_scan() -> None:
    """Their tokens are those at which they died."""
    made = table(off=2.0).assign(budget_tokens=1e6)
    wild = made["learning_rate"] > 3 * made["params_matmul"].map(best)
    made.loc[wild, ["status", "loss", "tokens"]] = ["diverged", np.nan, 3e5]
    found = find_scans(made)
    assert [(len(scan.rates), scan.at_bound, scan.tokens) for scan in found] == [(5, "", 1e6)] * 3
    assert [scan.best for scan in found] == pytest.approx([best(scan.params) for scan in found], rel=1e-6)


def test_one_rate_twice_in_a_scan_is_refused() -> None:
    made = table()
    with pytest.raises(TableError, match=r"learning_rate.*0\.00325"):
        find_scans(pd.concat([made, made.iloc[:1]]))


def test_runs_that_differ_in_more_are_another_scan() -> None:
    other = table().assign(tokens=2e6)
    assert len(find_scans(pd.concat([table(), other]))) == 6
    with pytest.raises(TableError, match=r"\b3\b.*learning_rate"):
        find_scans(table().assign(batch_tokens=np.arange(15)))
    with pytest.raises(TableError, match="learning_rate"):
        find_scans(table().drop(columns="learning_rate"))


def told(said: str, scan: str, why: str) -> bool:
    """Whether a printed line names that scan and why it has no optimum."""
    return any(scan in line and why in line for line in said.splitlines())


def test_the_verb_writes_what_a_recipe_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = table()
    made.loc[made["width"] == 64, "learning_rate"] *= 8
    made.loc[made["width"] == 64, "loss"] = [2.0, 2.1, 2.2, 2.4, 2.7]
    made.to_csv(tmp_path / "scans.csv", index=False)
    rates(tmp_path / "scans.csv", tmp_path / "rates.json", tmp_path / "rates.png")
    assert told(capsys.readouterr().out, "w64-d2 at 1,000,000 tokens", "lowest")
    assert (tmp_path / "rates.png").stat().st_size > 10_000
    held = json.loads((tmp_path / "rates.json").read_text())
    assert re.search(r"^made\b.*\b2\b.*\b5\b.*\b1,000,000\b", held["source"])
    rule = load_measured_rate(tmp_path / "rates.json")
    known = PartialRun(recipes.small((32, 2), 1_000_000).model, 128)
    assert rule.value(known) == pytest.approx(best(known.params.matmul), rel=1e-3)
    assert rule.origin == "scan"
    assert held["source"] in rule.source


def test_a_file_without_a_rate_law_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"law": {"at": 1}}')
    with pytest.raises(InputError, match=r"other\.json"):
        load_measured_rate(tmp_path / "other.json")


def test_a_figure_names_every_size() -> None:
    axes = learning_rates.rate_scans(fit_rate_law(find_scans(table()))).axes[0]
    assert [text.get_text().strip() for text in axes.texts] == ["10k", "40k", "200k"]


@pytest.mark.filterwarnings("error")
def test_a_size_that_always_diverged_is_left_out_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = table()
    made.loc[made["width"] == 64, ["status", "loss"]] = ["diverged", np.nan]
    law = fit_rate_law(find_scans(made))
    assert law.exponent == pytest.approx(-0.4)
    assert [text.get_text().strip() for text in learning_rates.rate_scans(law).axes[0].texts] == ["10k", "40k"]
    made.to_csv(tmp_path / "scans.csv", index=False)
    rates(tmp_path / "scans.csv", tmp_path / "rates.json", tmp_path / "rates.png")
    assert told(capsys.readouterr().out, "w64-d2 at 1,000,000 tokens", ALL_DIVERGED)
    assert [scan.at_bound for scan in read_rate_law(tmp_path / "rates.json").scans] == ["", "", ALL_DIVERGED]
    with pytest.raises(TableError, match=rf"w64-d2 at 1,000,000 tokens.*{ALL_DIVERGED}"):
        fit_rate_law(find_scans(made[made["width"] != 32]))


def test_facts_are_json() -> None:
    law = fit_rate_law(find_scans(table()[lambda t: t["width"] != 64]))
    assert json.loads(json.dumps(rate_document(law, "x", "y"), allow_nan=False))["law"]["stderr"] is None
