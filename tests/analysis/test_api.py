from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import api, compute_to_reach, fit, forecast, frontier, load, plot
from analysis.errors import TableError
from analysis.fitting import bootstrap
from analysis.fitting.fit import fit_law, lad, mse_log
from analysis.fitting.fit import huber as huber_objective
from analysis.forecasting import saved_fit
from analysis.forecasting.saved_fit import FitSettings, SavedFit
from analysis.laws import Law, chinchilla, get_law, surface
from analysis.tables import results, table_checks
from analysis.tables.results import select_points
from tests.conftest import simulated

pytestmark = pytest.mark.usefixtures("no_rivals")
QUICK = FitSettings(draws=16, seed=2)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated(3e-3, seed=1)


@pytest.fixture(scope="module")
def built(table: pd.DataFrame) -> SavedFit:
    return fit(table, settings=QUICK)


def test_three_lines_from_a_csv_to_a_figure(tmp_path: Path) -> None:
    renamed = {"params_matmul": "N", "tokens": "D", "loss": "L"}
    simulated(3e-3).rename(columns=renamed)[["N", "D", "L"]].to_csv(tmp_path / "runs.csv", index=False)
    runs = load(tmp_path / "runs.csv", columns={"params": "N", "tokens": "D", "loss": "L"})
    law = fit(runs, settings=QUICK)
    figure = plot(law)
    assert isinstance(figure, Figure)
    assert "tokens" in figure.axes[0].get_xlabel()
    assert law.document["params_column"] == "params"


def test_load_keeps_the_rows_asked_for(tmp_path: Path, table: pd.DataFrame) -> None:
    table.assign(corpus=["a", "b"] * 15).to_csv(tmp_path / "t.csv", index=False)
    kept = load(tmp_path / "t.csv", where="corpus==b and tokens>=2e9")
    assert isinstance(kept, pd.DataFrame)
    assert (kept["corpus"] == "b").all()
    assert len(kept) == ((np.arange(30) % 2 == 1) & (table["tokens"] >= 2e9)).sum()
    with pytest.raises(TableError, match=r"--where corpus==c\b.*\bcorpus\b.* a, b"):
        load(tmp_path / "t.csv", where="corpus==c")


def test_a_fit_is_that_of_the_estimator_with_the_spread_of_its_bootstrap(table: pd.DataFrame, built: SavedFit) -> None:
    points = select_points(table).table
    alone = fit_law(chinchilla, points, points["loss"])
    assert built.values == alone.values
    assert built.document["objective"]["value"] == alone.objective_value
    draws = bootstrap.bootstrap(alone, points, points["loss"], points["cluster"], draws=16, seed=2)
    np.testing.assert_allclose(built.draws, draws, rtol=1e-8)
    rows = built.parameters
    assert rows.index.tolist() == [*chinchilla.parameters, "exponent_a"]
    assert rows.columns.tolist() == ["value", "standard_error", "low", "high"]
    for i, name in enumerate(chinchilla.parameters):
        expected = [alone.values[name], np.std(draws[:, i], ddof=1), *np.quantile(draws[:, i], [0.05, 0.95])]
        assert rows.loc[name].tolist() == pytest.approx(expected, rel=1e-7)
    a = draws[:, 4] / (draws[:, 3] + draws[:, 4])
    values = alone.values
    expected = [values["beta"] / (values["alpha"] + values["beta"]), np.std(a, ddof=1), *np.quantile(a, [0.05, 0.95])]
    assert rows.loc["exponent_a"].tolist() == pytest.approx(expected, rel=1e-7)


def test_level_seed_and_draws_are_those_of_the_settings(table: pd.DataFrame, built: SavedFit) -> None:
    other = fit(table, settings=FitSettings(draws=24, seed=3, level=0.5))
    assert other.draws.shape == (24, 5)
    assert other.values == built.values
    assert not np.array_equal(other.draws[:16], built.draws)
    rows = other.parameters
    assert rows.loc["alpha", ["low", "high"]].tolist() == pytest.approx(
        np.quantile(other.draws[:, 3], [0.25, 0.75]), rel=1e-8
    )
    target = pd.DataFrame({"params": [1e9], "tokens": [1e11]})
    assert other.forecast(target)[0]["level"] == 0.5
    wide, narrow = (f.forecast(target)[0] for f in (built, other))
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]


def test_a_forecast_is_one_row_of_the_law_in_its_band(built: SavedFit) -> None:
    row = forecast(built, 2e9, 6e10)
    assert isinstance(row, pd.DataFrame)
    assert len(row) == 1
    x = {"params": np.array([2e9]), "tokens": np.array([6e10])}
    predicted = chinchilla(built.values, x)
    low, high = built.predictive.interval(predicted, x, 6 * x["params"] * x["tokens"], 0.9, seed=2)
    assert row.loc[0, ["params", "tokens", "predicted", "low", "high"]].tolist() == pytest.approx(
        [2e9, 6e10, predicted[0], low[0], high[0]], rel=1e-8
    )
    assert low[0] < predicted[0] < high[0]
    assert row.loc[0, "measured"] is None


def test_every_result_prints_itself(built: SavedFit, table: pd.DataFrame) -> None:
    lines = repr(built).splitlines()
    assert lines[0] == built.describe()
    for name, value in built.parameters["value"].items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert f"{value:.4g}" in line.split()
    objective = f"{built.document['objective']['value']:.6g}"
    pattern = rf"^30\b.*\bhuber {re.escape(objective)}.*\b90%"
    assert any(re.search(pattern, line) for line in lines)
    odd = fit(table.assign(loss=table["loss"].where(table.index != 3, 4.0)), settings=QUICK)
    (warning,) = [note for note in odd.document["warnings"] if "000000000003" in note]
    assert warning in repr(odd)
    assert len(repr(built)) < 2000, "no draws, no points"


def test_to_json_is_the_whole_fit(built: SavedFit, tmp_path: Path) -> None:
    document = json.loads(built.to_json())
    assert document == json.loads(saved_fit.write_fit(built, tmp_path / "fit.json").read_text())
    again = SavedFit(document)
    assert repr(again) == repr(built)
    pd.testing.assert_frame_equal(forecast(again, 2e9, 6e10), forecast(built, 2e9, 6e10), check_exact=True)
    assert document["table"] == {"path": "", "sha256": results.hash_table(simulated(3e-3, seed=1))}
    assert not {"draws", "points", "predictive"} & set(built.facts())


def test_objectives_by_name() -> None:
    assert api.objective("huber", 1e-2) == huber_objective(1e-2)
    assert api.objective("huber") == huber_objective(1e-3)
    assert (api.objective("lad"), api.objective("mse_log")) == (lad, mse_log)
    assert not api.objective("mse").is_log


@pytest.mark.parametrize(
    ("law", "settings", "words"),
    [
        ("chinchila", QUICK, r"\bchinchila\b.*\bchinchilla\b.*\bchinchilla\b.*\bchosen\b"),
        ("chinchilla", FitSettings(fixed={"gama": 1.0}), r"chinchilla\b.*\bgama\b.* E, A, B, alpha, beta"),
        ("chinchilla", FitSettings(fixed={"alpha": -1.0}), r"alpha = -1\b.*chinchilla"),
        ("chinchilla", FitSettings(bounds={"beta": (2.0, 1.0)}), r"beta\b.*\b2\b.*\b1\b"),
        ("data_constrained", QUICK, "unique_tokens"),
        ("m2", QUICK, r"\bx, y\b"),
    ],
)
def test_what_does_not_go_together_is_a_table_error(
    table: pd.DataFrame, law: str, settings: FitSettings, words: str
) -> None:
    with pytest.raises(TableError, match=words):
        fit(table, law, settings)


@pytest.fixture(scope="module")
def curve() -> SavedFit:
    """A law of one column that is neither params nor tokens."""
    x = np.geomspace(1, 1e3, 20)
    noise = np.exp(np.random.default_rng(0).normal(0, 1e-3, 20))
    return fit(pd.DataFrame({"x": x, "y": (0.5 + 2 * x**-0.5) * noise}), "m2", FitSettings(draws=8, holdout="largest"))


def test_a_curve_is_fitted_and_says_what_it_cannot_do(curve: SavedFit) -> None:
    assert curve.values == pytest.approx({"e": 0.5, "b": 2.0, "c": 0.5}, rel=0.02)
    assert curve.document["n"] == 19
    assert curve.held_out["x"].tolist() == pytest.approx([1e3])
    assert curve.document["choice"] is None
    assert curve.parameters.index.tolist() == ["e", "b", "c"]
    assert re.search(r"^19\b", repr(curve), re.M)
    again = SavedFit(json.loads(curve.to_json()))
    assert (again.law.name, again.predictive.max_flops) == ("m2", np.inf)
    with pytest.raises(TableError, match=r"\bm2\b.*\bx\b"):
        forecast(curve, 1e9, 1e10)
    with pytest.raises(TableError, match=r"\bm2\b.*\bparams\b.*\btokens\b"):
        plot(curve)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [(FitSettings(weight_power=1.0), "--weight-power 1"), (FitSettings(holdout="1e20"), "--holdout 1e20")],
)
def test_a_table_without_flops_has_no_window_in_them(settings: FitSettings, flag: str) -> None:
    table = pd.DataFrame({"x": np.geomspace(1, 1e3, 20), "y": np.linspace(3, 1, 20)})
    with pytest.raises(TableError, match=rf"{flag}\b.*\bflops\b"):
        fit(table, "m2", settings)


def test_one_value_of_a_curves_column_is_refused() -> None:
    table = pd.DataFrame({"x": [3.0, 3.001, 3.002, 3.003, 3.004], "y": np.linspace(3, 1, 5)})
    with pytest.raises(TableError, match=r"\bx\b.*\b3\b.*\b3\.004"):
        fit(table, "m2", QUICK)


def test_another_response_is_forecast_and_compared() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e8, 1e10, 4), np.geomspace(1e9, 1e11, 4)))
    rates = 1.8 * n**-0.713 * d**0.307 * np.exp(np.random.default_rng(0).normal(0, 0.05, 16))
    table = pd.DataFrame({"params": n, "tokens": d, "learning_rate": rates})
    law = get_law("learning_rate")
    built = fit(table, law, FitSettings(draws=8, holdout="largest"))
    (row,) = built.forecast(built.held_out)
    assert row["measured"] == rates[-1]
    assert row["predicted"] == pytest.approx(rates[-1], rel=0.3)
    assert row["relative_error"] == pytest.approx(row["predicted"] / rates[-1] - 1, rel=1e-8)
    assert abs(row["relative_error"]) > 1e-3
    assert built.document["units"]["learning_rate"] == "peak learning rate"


def test_plot_draws_any_figure_by_its_name(built: SavedFit) -> None:
    assert isinstance(plot(built, "residuals"), Figure)
    with pytest.raises(TableError, match=r"sensitivity.*panel=True"):
        plot(built, "sensitivity")
    with pytest.raises(TableError, match=r"loss_by_token\b.*loss_by_tokens"):
        plot(built, "loss_by_token")


def test_a_panel_is_made_when_asked_for(table: pd.DataFrame, built: SavedFit) -> None:
    assert "sensitivity" not in built.document
    shown = fit(table, settings=FitSettings(draws=8), panel=True)
    rows = shown.document["sensitivity"]
    assert isinstance(plot(shown, "sensitivity"), Figure)
    assert rows[0]["alpha"] == built.values["alpha"]
    assert len({row["dial"] for row in rows}) >= 5


def test_the_counting_asked_for_is_fitted(table: pd.DataFrame) -> None:
    built = fit(table.assign(params_total=table["params_matmul"] * 2), settings=QUICK, params_column="params_total")
    assert built.document["params_column"] == "params_total"
    assert built.points["params"].max() == 2e9
    with pytest.raises(TableError, match=r"params_totl.*params_total\b.*params_total\b"):
        fit(table, settings=QUICK, params_column="params_totl")


def test_a_law_may_be_given_as_an_object(table: pd.DataFrame, built: SavedFit) -> None:
    assert isinstance(chinchilla, Law)
    assert fit(table, chinchilla, QUICK).values == built.values
    assert api.find_law("over_training") is surface.over_training


def test_warnings_of_points_come_with_the_fit(table: pd.DataFrame) -> None:
    copied = pd.concat([table, table.iloc[[4, 5]]], ignore_index=True)
    built = fit(copied, settings=QUICK)
    assert built.document["warnings"][0] == table_checks.check_points(select_points(copied))[0]
    assert {"000000000004", "000000000005"} == set(re.findall(r"\b\d{12}\b", built.document["warnings"][0]))


def test_a_notebook_needs_few_names_and_no_training_code(tmp_path: Path) -> None:
    """`forecast` is the function, though a module has its name."""
    program = (
        "import sys\n"
        "from analysis import fit, forecast, load, plot\n"
        "import analysis\n"
        "print(all(map(callable, (fit, forecast, load, plot))), sorted(analysis.__all__))\n"
        "print([m for m in ('flax', 'scaling', 'sweeps', 'orbax', 'optax', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    names = [
        "compute_to_reach",
        "decision_accuracy",
        "fit",
        "forecast",
        "frontier",
        "load",
        "load_evaluations",
        "load_metrics",
        "plot",
        "studies",
        "study",
    ]
    assert done.stdout.splitlines() == [f"True {names}", "[]"]


def test_forecasts_of_several_runs_are_a_row_each(built: SavedFit) -> None:
    rows = forecast(built, [1e9, 2e9], 6e10)
    assert rows["params"].tolist() == [1e9, 2e9]
    assert rows["tokens"].tolist() == [6e10, 6e10]
    assert rows.loc[1, "predicted"] == forecast(built, 2e9, 6e10).loc[0, "predicted"]


def test_the_frontier_is_where_no_other_split_of_the_budget_is_forecast_lower(built: SavedFit) -> None:
    best = frontier(built, [1e20, 1e22])
    np.testing.assert_allclose(6 * best["params"] * best["tokens"], [1e20, 1e22], rtol=1e-8)
    for factor in (0.9, 1.1):
        other = forecast(built, best["params"] * factor, best["tokens"] / factor)
        assert (other["predicted"] > best["predicted"]).all()
    assert (best["low"] < best["predicted"]).all()
    assert (best["predicted"] < best["high"]).all()


def test_compute_for_a_loss_is_the_frontier_read_sideways(built: SavedFit) -> None:
    want = float(frontier(built, 1e22).loc[0, "predicted"])
    row = compute_to_reach(built, want).iloc[0]
    assert row["flops"] == pytest.approx(1e22, rel=1e-3)
    assert row["low"] < row["flops"] < row["high"]
    ends = frontier(built, [row["low"], row["high"]])
    assert ends.loc[0, "low"] == pytest.approx(want, rel=2e-3)
    assert ends.loc[1, "high"] == pytest.approx(want, rel=2e-3)
    with pytest.raises(TableError, match=r"\b0\.5\b.*\b1\.[67]"):
        compute_to_reach(built, 0.5)


def test_an_interval_that_never_comes_down_has_no_upper_end(built: SavedFit) -> None:
    done = 6 * built.points["params"] * built.points["tokens"]
    furthest = float(frontier(built, done.max() * 1e6).loc[0, "predicted"])
    assert compute_to_reach(built, furthest * 1.001).loc[0, "high"] == np.inf


def test_a_frontier_needs_a_law_of_params_and_tokens(curve: SavedFit) -> None:
    with pytest.raises(TableError, match=r"\bm2\b.*\bparams\b.*\btokens\b"):
        frontier(curve, 1e20)


def test_a_cell_that_ends_in_a_figure_shows_it_without_pyplot() -> None:
    pytest.importorskip("IPython")
    code = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
from matplotlib.figure import Figure
import analysis.api
data, metadata = shell.display_formatter.format(Figure(figsize=(2, 1)))
assert data["image/png"][:4] == b"\\x89PNG", data
assert metadata["image/png"] == {"width": 192, "height": 96}, metadata
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
