from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.commands import collect, fit
from analysis.errors import TableError
from analysis.fitting.fit import compute_weights, fit_law, lad
from analysis.forecasting import saved_fit
from analysis.laws import chinchilla
from analysis.tables import flags, results
from analysis.tables.results import select_points
from scaling import cli
from tests.analysis.tables.test_results import run
from tests.conftest import PLANTED, simulated

pytestmark = pytest.mark.usefixtures("no_rivals")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated(3e-3, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame) -> Path:
    file = tmp_path_factory.mktemp("verbs") / "t.csv"
    table.to_csv(file, index=False)
    return file


def quick(path: Path, **options: Any) -> dict[str, Any]:
    """`scaling fit` with few resamples, and without the sensitivity panel by default."""
    return fit.fit(path, **({"draws": 8, "panel": False} | options))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_planted_law_is_recovered_from_a_file(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    table, path = simulated(), tmp_path / f"t.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    facts = fit.fit(path, holdout="largest", draws=32, json=tmp_path / "facts.json")
    for name, value in PLANTED.items():
        assert facts["parameters"][name] == pytest.approx(value, rel=1e-5)
    assert facts["points"] == 29
    assert json.loads((tmp_path / "facts.json").read_text())["parameters"] == facts["parameters"]
    assert re.search(r"\b29\b.*\b1\b", capsys.readouterr().out)


def test_a_sweep_folder_is_read_and_flagged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, row in enumerate(simulated(3e-3, seed=1).to_dict("records")):
        run(tmp_path, f"r{i:02}", **{name: row[name] for name in ("params_matmul", "tokens", "flops", "loss")})
    calls: list[str] = []
    for module, name in ((results, "read_run"), (flags, "find_flags")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=original, n=name: calls.append(n) or f(*a))
    fit.fit(tmp_path, draws=8, panel=False)
    assert (calls.count("read_run"), calls.count("find_flags")) == (30, 1)


def test_the_counting_convention_is_named_and_moves_the_law(tmp_path: Path) -> None:
    simulated().assign(params_total=lambda t: t["params_matmul"] + 3e7).to_csv(tmp_path / "t.csv", index=False)
    default = fit.fit(tmp_path / "t.csv", draws=8)
    total = fit.fit(tmp_path / "t.csv", params_column="params_total", draws=8)
    assert (default["params_column"], total["params_column"]) == ("params_matmul", "params_total")
    assert abs(total["parameters"]["alpha"] - default["parameters"]["alpha"]) > 0.02


def test_collect_writes_the_table_of_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tokens in (("b", 2e6), ("a", 1e6)):
        run(tmp_path / "s", name, tokens=tokens)
    run(tmp_path / "s", "c", status="failed", loss=float("nan"), tokens=4e6)
    (tmp_path / "s" / "runs" / "d").mkdir()
    collect.collect("s", out=tmp_path, json=tmp_path / "rows.json")
    assert pd.read_csv(tmp_path / "s" / "results.csv")["run_id"].tolist() == ["a", "b", "c"]
    assert [row["loss"] for row in json.loads((tmp_path / "rows.json").read_text())] == [2.0, 2.0, None]
    printed = capsys.readouterr().out
    assert re.search(r"\b2 done\b.*\b1 failed\b.*\b1\b", printed), "and one that has not ended"
    (tmp_path / "none" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "none" / "runs" / "a" / "metrics.jsonl").write_text('{"step": 1, "tokens": 8, "loss": 2.0}\n')
    with pytest.raises(TableError, match="none"):
        collect.collect("none", out=tmp_path)
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["runs"], "nothing is written"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delta": 0.0}, r"--delta 0\.0"),
        ({"draws": 1}, r"--draws 1\b.*\b2\b"),
        ({"level": 1.0}, r"--level 1\.0"),
        ({"params_column": "params_totl"}, r"params_totl.*params_total\b.*params_total\b"),
        ({"holdout": "large"}, r"--holdout large\b.*\blargest\b"),
        ({"columns": "params:N"}, "--columns params:N"),
        ({"weight_power": -1.0}, r"--weight-power -1\.0"),
        ({"law": "chinchila"}, r"\bchinchila\b.*\bchinchilla\b.*\bchinchilla\b.*\bchosen\b"),
        ({"fix": "E"}, r"--fix E\b.*E=1\.69,alpha=\.34"),
        ({"fix": "E=1.7,=2"}, r"--fix E=1\.7,=2"),
        ({"fix": "E=low"}, "--fix E=low"),
        ({"fix": "gama=1"}, r"chinchilla\b.*\bgama\b.* E, A, B, alpha, beta"),
        ({"fix": "alpha=-1"}, r"alpha = -1\b.*chinchilla"),
        ({"bound": "E=2"}, r"--bound E=2\b.*E=0\.5:2"),
        ({"bound": "E=1:high"}, "--bound E=high"),
        ({"bound": "E=2:1"}, r"\bE\b.*\b2\b.*\b1\b"),
        ({"where": "loss"}, r"--where loss\b.*=="),
        ({"where": "corpus==c4"}, r"--where corpus==c4.*\bcorpus\b"),
        ({"where": "tokens>1e12"}, r"--where tokens>1e12.*\btokens\b.* 1000000000\.0, "),
        ({"where": "tokens<1.1e9"}, r"\btokens\b.*\b1e\+09"),
        ({"holdout": "1e17"}, r"\b1\b.*params, tokens.*\b5\b.*\b6\b.*--holdout 1e17\b.*\b29\b"),
    ],
)
def test_wrong_options_write_nothing(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    simulated().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match=words):
        fit.fit(tmp_path / "t.csv", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_the_keys_of_the_json_are_those_that_scripts_read(
    path: Path, tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--law", "chinchilla", "--objective", "huber", "--delta", "1e-3", "--draws", "16", "--no-panel"]
    out = ["--out", str(tmp_path / "own.json"), "--json", str(tmp_path / "facts.json")]
    with pytest.raises(SystemExit) as process:
        cli.main(["fit", str(path), *flags, *out])
    assert process.value.code == 0
    facts = json.loads((tmp_path / "facts.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    points = select_points(table).table
    values = fit_law(chinchilla, points, points["loss"]).values
    assert facts["law"] == "chinchilla"
    assert set(facts["objective"]) == {"name", "delta", "value"}
    assert (facts["objective"]["name"], facts["objective"]["delta"]) == ("huber", 1e-3)
    assert facts["parameters"] == values
    assert facts["exponent_a"] == pytest.approx(values["beta"] / (values["alpha"] + values["beta"]))
    named = [*chinchilla.parameters, "exponent_a"]
    assert sorted(facts["standard_errors"]) == sorted(facts["intervals"]) == sorted(named)
    for name in named:
        low, high = facts["intervals"][name]
        assert low < high
        assert 0 < facts["standard_errors"][name] < high - low < 10 * facts["standard_errors"][name]
    assert (facts["bounds_hit"], facts["warnings"], facts["n"]) == ([], [], 30)
    assert facts["fit"] == str(tmp_path / "own.json")
    assert saved_fit.read_fit(tmp_path / "own.json").values == values
    printed = capsys.readouterr().out
    for name, value in values.items():
        assert f"{name} {value:.4g} ".split() in [line.split()[:2] for line in printed.splitlines()]


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    return np.where(np.abs(r) <= delta, r**2 / 2, delta * (np.abs(r) - delta / 2))


TERMS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "narrow": ({"objective": "huber"}, lambda p, y: huber(np.log(y / p), 1e-3)),
    "wide": ({"objective": "huber", "delta": 3e-3}, lambda p, y: huber(np.log(y / p), 3e-3)),
    "lad": ({"objective": "lad"}, lambda p, y: np.abs(np.log(y / p))),
    "mse_log": ({"objective": "mse_log"}, lambda p, y: np.log(y / p) ** 2),
    "mse": ({"objective": "mse"}, lambda p, y: (y - p) ** 2),
}


@pytest.fixture(scope="module")
def fits(path: Path) -> dict[str, dict[str, Any]]:
    return {name: quick(path, **options) for name, (options, _) in TERMS.items()}


@pytest.mark.parametrize("name", TERMS)
def test_an_objective_is_the_sum_of_its_terms_and_no_other_fit_has_less(
    fits: dict[str, dict[str, Any]], table: pd.DataFrame, name: str
) -> None:
    """Compares with values computed here from the parameters in the file, for each objective."""
    options, term = TERMS[name]
    n, d, y = (table[column].to_numpy() for column in ("params_matmul", "tokens", "loss"))

    def total(p: dict[str, float]) -> float:
        return float(term(p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"], y).sum())

    objective, least = fits[name]["objective"], total(fits[name]["parameters"])
    assert objective["name"] == options["objective"]
    assert objective["delta"] == {"narrow": 1e-3, "wide": 3e-3}.get(name)
    assert objective["value"] == pytest.approx(least, rel=1e-8)
    for other in TERMS:
        assert total(fits[other]["parameters"]) > least * (1 + 1e-8) or other == name


def test_what_is_fixed_is_held_exactly(path: Path, table: pd.DataFrame) -> None:
    facts = quick(path, fix="E=1.69, alpha=.34")
    assert (facts["parameters"]["E"], facts["parameters"]["alpha"]) == pytest.approx((1.69, 0.34), rel=1e-8)
    assert sorted(facts["fixed"]) == ["E", "alpha"]
    assert facts["intervals"]["E"] == pytest.approx([1.69, 1.69], rel=1e-8)
    assert facts["standard_errors"]["alpha"] == pytest.approx(0, abs=1e-8)
    points = select_points(table).table
    again = fit_law(chinchilla, points, points["loss"], fixed={"E": 1.69, "alpha": 0.34})
    assert facts["parameters"] == again.values
    assert facts["objective"]["value"] > quick(path)["objective"]["value"]


def test_a_bound_that_is_hit_is_reported_and_one_that_is_not_is_silent(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = quick(path, bound="E=0.5:1.5")
    assert facts["parameters"]["E"] == pytest.approx(1.5, rel=1e-8)
    assert facts["bounds_hit"] == ["E"]
    (note,) = [note for note in facts["warnings"] if re.search(r"\bE\b", note)]
    assert note in capsys.readouterr().out
    wide = quick(path, bound="E=0.5:3,beta=.1:.9")
    assert wide["bounds_hit"] == wide["warnings"] == []
    assert wide["parameters"] == pytest.approx(quick(path)["parameters"], rel=1e-6)


def test_where_keeps_rows_and_columns_are_renamed(tmp_path: Path, table: pd.DataFrame) -> None:
    renamed = table.rename(columns={"params_matmul": "N", "tokens": "D", "loss": "L"}).drop(columns="params_total")
    both = pd.concat([renamed.assign(corpus="c4"), renamed.assign(corpus="pile", L=9 - renamed["L"])])
    both.to_csv(tmp_path / "t.csv", index=False)
    facts = quick(tmp_path / "t.csv", columns="params=N,tokens=D,loss=L", where="corpus==c4 and D>=2e9")
    points = select_points(table[table["tokens"] >= 2e9]).table
    assert facts["n"] == len(points) == 24
    assert facts["parameters"] == fit_law(chinchilla, points, points["loss"]).values
    assert facts["params_column"] == "params"


def test_points_are_weighted_by_a_power_of_compute(path: Path, table: pd.DataFrame) -> None:
    facts = quick(path, weight_power=1.0)
    points = select_points(table).table
    again = fit_law(chinchilla, points, points["loss"], weights=compute_weights(points["flops"], 1.0))
    assert facts["parameters"] == again.values != quick(path)["parameters"]
    assert facts["weight_power"] == 1.0
    assert facts["objective"]["value"] == again.objective_value


def test_flags_go_together(path: Path, table: pd.DataFrame) -> None:
    facts = quick(path, objective="lad", weight_power=0.5, fix="alpha=.33", bound="E=.5:1.5", holdout="largest")
    points = select_points(table).table.iloc[:-1]
    weights = compute_weights(points["flops"], 0.5)
    options = {"weights": weights, "fixed": {"alpha": 0.33}, "bounds": {"E": (0.5, 1.5)}}
    assert facts["parameters"] == fit_law(chinchilla, points, points["loss"], lad, **options).values


def test_the_panel_and_the_back_test_are_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = quick(path, panel=True)
    printed = capsys.readouterr().out
    for variant in facts["sensitivity"]:
        assert variant["dial"] in printed
        assert f"{variant['beta']:.4g}" in printed
    (scored,) = facts["choice"]["candidates"]
    assert f"{scored['name']} {scored['score']:.2%}" in printed
    assert f"{facts['choice']['drift']:.2%}" in printed


Spoil = Callable[[pd.DataFrame], pd.DataFrame]


def entry(index: int, column: str, value: Any) -> Spoil:
    return lambda t: t.assign(**{column: t[column].astype(object).where(np.arange(len(t)) != index, value)})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.iloc[:5], [r"\b5\b.*params, tokens.*\b5\b.*\b6\b"]),
        (lambda t: t.iloc[[0] * 20], [r"\b1\b.*params, tokens.*\b5\b.*\b6\b"]),
        (lambda t: t.assign(params_matmul=1e8), [r"\b5\b.*params, tokens.*\b5\b.*\b6\b"]),
        (lambda t: t.assign(params_matmul=1e8, tokens=np.geomspace(1e9, 1e11, 30)), [r"\bparams\b.*1e\+08.*\b3\b"]),
        (lambda t: t.assign(tokens=2e9, params_matmul=np.geomspace(1e7, 1e9, 30)), [r"\btokens\b.*2e\+09.*\b3\b"]),
        (entry(3, "loss", -1.0), [r"row 4\b.*\b000000000003\b.*loss = -1\.0"]),
        (entry(3, "tokens", ""), [r"row 4\b.*\b000000000003\b.*tokens = nan"]),
        (entry(6, "tokens", np.inf), [r"row 7\b.*\b000000000006\b.*tokens = inf"]),
        (entry(29, "params_matmul", -5.0), [r"row 30\b.*\b00000000001d\b.*params_matmul = -5\.0"]),
        (entry(0, "loss", "high"), [r"row 1\b.*\b000000000000\b.*loss = high"]),
        (lambda t: t.assign(loss=np.nan), [r"\b6\b.*\b000000000000\b.*\bloss\b.*\b30 of 30\b"]),
        (lambda t: t.assign(tokens=t["tokens"] / 1e9),
            [r"\b000000000000\b.*\b000000000006\b.*\b25\b.*\btokens = 1\b", "billions"]),
        (lambda t: t.assign(status="failed"), [r"\b0\b.*params, tokens.*\b6\b.*\b30\b"]),
        (lambda t: t.rename(columns={"loss": "Loss"}), [r"\bloss\b", r"\bLoss\b.*\bLoss\b"]),
        (lambda t: t.iloc[:0], [r"\b0\b.*params, tokens.*\b5\b.*\b6\b"]),
    ],
)  # fmt: skip
def test_bad_tables_end_in_one_line_that_names_rows_and_columns(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str], spoil: Spoil, words: list[str]
) -> None:
    spoil(table).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(SystemExit) as process:
        cli.main(["fit", str(tmp_path / "t.csv"), "--draws", "8", "--no-panel"])
    assert process.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for word in words:
        assert re.search(word, output.err)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (lambda t: pd.concat([t, t.iloc[[4]]]), {}, r"\b000000000004\b.*\b000000000004\b"),
        (lambda t: t.drop(columns="run_id").iloc[[*range(30), 4]], {}, r"row 31\b.*row 5\b"),
        (entry(7, "loss", 3.5), {}, r"\b000000000007 \(\+"),
        (lambda t: t, {"fix": "E=2.3"}, r"\bE = 2\.3\b"),
        (entry(7, "tokens", 3e15), {}, r"\b000000000007\b.*\btokens\b"),
        (lambda t: t.assign(loss=np.exp(2 * t["loss"])), {}, "perplexity"),
        (lambda t: t.assign(tokens=20 * t["params_matmul"]), {}, r"\bN\b.*\bD\b"),
    ],
)
def test_odd_tables_are_fitted_with_a_warning_that_names_rows(
    tmp_path: Path,
    table: pd.DataFrame,
    capsys: pytest.CaptureFixture[str],
    spoil: Spoil,
    options: dict[str, Any],
    words: str,
) -> None:
    spoil(table).drop(columns="flops").to_csv(tmp_path / "t.csv", index=False)
    facts = quick(tmp_path / "t.csv", **options)
    warnings = [note for note in facts["warnings"] if re.search(words, note)]
    assert warnings, facts["warnings"]
    assert warnings[0] in capsys.readouterr().out
    assert all(np.isfinite(value) for value in facts["parameters"].values()), "and no silent NaN"
    assert saved_fit.read_fit(tmp_path / "fit.json").document["warnings"] == facts["warnings"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--law", "chinchila"], [r"\bchinchila\b.*\bchinchilla\b.*\bchinchilla\b"]),
        (["--objective", "hubr"], [r"--objective\b.*\bhuber\b"]),
        (["--objectiv", "huber"], [r"--objectiv\b", r"--objective\b"]),
        (["--where", "tokens>many"], ["--where tokens>many"]),
        (["--columns", "loss=L"], [r"--columns loss=L\b"]),
    ],
)
def test_wrong_flags_end_in_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as process:
        cli.main(["fit", str(path), *flags])
    assert process.value.code == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    for word in words:
        assert re.search(word, output)


def test_profile_intervals_are_given_on_request(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every free parameter has an interval beside the bootstrap's; an end that the points do not bound is null."""
    assert "profile_intervals" not in quick(path, fix="alpha=.34")
    facts = quick(path, fix="alpha=.34", profile=True)
    printed = capsys.readouterr().out
    intervals = json.loads(Path(facts["fit"]).read_text())["profile_intervals"]
    assert intervals == facts["profile_intervals"]
    assert set(intervals) == {"E", "A", "B", "beta"}
    for name, (low, high) in intervals.items():
        assert low < facts["parameters"][name] < high
        assert f"{low:.4g} to {high:.4g}" in printed


def test_names_with_brackets_and_commas_are_fitted_and_printed(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"params_matmul": "N[/x]", "loss": "loss, nats", "run_id": "[bold]"}
    path = tmp_path / "t.csv"
    table.drop(columns=["flops"], errors="ignore").rename(columns=names).to_csv(path, index=False)
    quick(path, columns="loss=loss, nats,run_id=[bold]", params_column="N[/x]", where='"loss, nats"<9')
    assert "N = N[/x]," in capsys.readouterr().out


def test_a_crashed_run_is_named_and_the_rest_is_fitted(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    table.assign(loss=table["loss"].where(table.index != 4), status="finished").to_csv(path, index=False)
    facts = quick(path)
    assert facts["points"] == 29
    (warning,) = [text for text in facts["warnings"] if "left out" in text]
    assert table["run_id"][4] in warning
    assert warning in capsys.readouterr().out
