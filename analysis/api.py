"""The functions that a notebook imports, as in `from analysis import load, fit, forecast, plot`.

    runs = load("runs.csv", columns={"params": "N", "tokens": "D"})
    law = fit(runs)
    plot(law)

Tables are DataFrames. A fit prints itself and has to_json(). The verbs on the command line call the same functions.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis.design.next_runs import Design, design_cells
from analysis.errors import TableError
from analysis.fitting import compute_optimal
from analysis.fitting.objective import Objective, huber, lad, mse, mse_log
from analysis.forecasting import extrapolation, saved_fit, sensitivity
from analysis.forecasting.saved_fit import FitSettings, SavedFit
from analysis.laws import Law, chinchilla, get_law
from analysis.plots import fit as fit_plot
from analysis.plots.style import LIGHT
from analysis.tables import flags, results
from analysis.tables.where import filter_rows

ObjectiveName = Literal["huber", "lad", "mse_log", "mse"]


def load(path: str | Path, *, columns: Mapping[str, str] | None = None, where: str = "") -> pd.DataFrame:
    """A sweep folder, or a file of analysis.tables.table_files, as a table. The runs of a sweep folder are flagged.

    Args:
      columns: our name -> name in the file, as in {"params": "N", "tokens": "D", "loss": "L"}.
      where: rows to keep, as in "corpus==c4 and flops<1e21". Empty: all rows.
    Raises:
      TableError: no such file, column or row.
    """
    return filter_rows(flags.read_flagged_table(Path(path), columns), where)


def load_with_origin(
    path: str | Path, *, columns: Mapping[str, str] | None = None, where: str = ""
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(table, origin): `load`, and what fit.json records of where a table comes from: its path, the sha256 of all its
    rows, columns and where."""
    path = Path(path)
    # the hash of a folder is that of its rows before columns are mapped, that of a file that of its bytes
    all_rows = flags.read_flagged_table(path, None if path.is_dir() else columns)
    origin = {
        "path": str(path),
        "sha256": results.hash_source(path, all_rows),
        "columns": columns or {},
        "where": where,
    }
    table = results.rename_columns(all_rows, path, columns) if path.is_dir() else all_rows
    return filter_rows(table, where), origin


def objective(name: ObjectiveName, delta: float = 1e-3) -> Objective:
    """The objective of a fit by its name. delta: residual, in log loss, at which the Huber loss turns from quadratic to
    linear; the others ignore it."""
    return huber(delta) if name == "huber" else {"lad": lad, "mse_log": mse_log, "mse": mse}[name]


def fit(
    table: pd.DataFrame,
    law: Law | str = chinchilla,
    settings: FitSettings | None = None,
    *,
    params_column: str | None = None,
    panel: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> SavedFit:
    """Fits a law to a table: its parameters with intervals, warnings, and what a forecast needs.

    Args:
      law: a law, its name, or "chosen" to have it chosen by back-test.
      settings: objective, weighting, fixed parameters, bounds, hold-out, draws; their law is replaced by `law`.
      params_column: the count of parameters to fit against. Default: `params` if the table has it, else params_matmul.
      panel: also refit with other counts, windows, objectives and weights, to show how far the results depend on them.
      origin: where the table comes from, as `load_with_origin` returns it. Default: only the hash of the table's rows.
    Raises:
      TableError: a table that cannot be fitted, or settings that do not go with the law.
    """
    named_law = None if law == "chosen" else find_law(law) if isinstance(law, str) else law
    settings = replace(settings or FitSettings(), law=named_law)
    shape = named_law or chinchilla
    free = len(shape.parameters) - len(settings.fixed)
    points = results.select_points(
        table, params_column, parameters=free, columns=shape.columns, response=shape.response
    )
    try:
        built = saved_fit.build_saved_fit(points, settings, origin or {"path": "", "sha256": results.hash_table(table)})
    except TableError:
        raise
    except ValueError as error:
        raise TableError(str(error)) from None
    return sensitivity.add_panel(built, table) if panel and sensitivity.supports_panel(built) else built


def find_law(name: str) -> Law:
    """The law of a name. Raises TableError, which suggests the nearest name, if there is none."""
    try:
        return get_law(name)
    except KeyError as error:
        raise TableError(f"law {name}: {error.args[0]}; or chosen") from None


def forecast(law: SavedFit, params: ArrayLike, tokens: ArrayLike) -> pd.DataFrame:
    """Predicts the losses of runs: one row each, with columns predicted, low and high in nats per token. Warns of runs
    far outside those of the fit, or in other units.

    params, tokens: numbers or arrays that broadcast with one another.
    """
    rows = _forecast_rows(law, params, tokens)
    for note in extrapolation.describe_targets(law.points, rows)["warnings"]:
        warnings.warn(note, stacklevel=2)
    return pd.DataFrame(rows)


def _forecast_rows(law: SavedFit, params: ArrayLike, tokens: ArrayLike) -> list[dict[str, Any]]:
    n, d = (np.ravel(part) for part in np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (params, tokens))))
    return law.forecast(pd.DataFrame({"params": n, "tokens": d}))


def frontier(law: SavedFit, flops: ArrayLike) -> pd.DataFrame:
    """The compute-optimal run of each budget with its forecast: one row each, with columns flops, params, tokens,
    predicted, low, high and level.

    flops: budgets, 6 params tokens.

    Raises TableError for a law that is not one of loss in params and tokens.
    """
    if law.law.columns != results.SURFACE_COLUMNS or law.law.response != "loss":
        raise TableError(f"{law.law.name}: a frontier needs a law of loss in params and tokens, as chinchilla is")
    budgets = np.atleast_1d(np.asarray(flops, np.float64))
    params, tokens = compute_optimal.optimal_allocation(law.law, law.values, budgets)
    columns = ["params", "tokens", "predicted", "low", "high", "level"]
    return pd.DataFrame(_forecast_rows(law, params, tokens))[columns].assign(flops=budgets)


MAX_EXTRAPOLATION, FRONTIER_POINTS = 1e6, 257
"""`compute_to_reach` searches up to so many times the largest run's compute, on a grid of so many budgets."""


def compute_to_reach(law: SavedFit, loss: float) -> pd.DataFrame:
    """The least compute whose compute-optimal run reaches a loss: one row with columns flops, params, tokens, low,
    high.

    low and high are the FLOPs at which the lower and the upper end of the forecast's interval first reach the loss;
    high is infinite if that takes more than MAX_EXTRAPOLATION times the largest run's compute. (Ours: the band of the
    frontier, read at a given loss.)

    loss: nats per token.

    Raises TableError for a loss that the law does not reach in that range, or a law without a frontier.
    """
    flops_of_runs = 6 * law.points["params"] * law.points["tokens"]
    budgets = np.geomspace(flops_of_runs.min() / 10, flops_of_runs.max() * MAX_EXTRAPOLATION, FRONTIER_POINTS)
    path = frontier(law, budgets)
    worst, best = path["predicted"].to_numpy()[[0, -1]].tolist()
    if not best <= loss <= worst:
        raise TableError(f"loss {loss:g}: compute-optimal runs of this law go from {worst:.4g} down to {best:.4g}")
    flops, low, high = (_crossing(path["flops"], path[name], loss) for name in ("predicted", "low", "high"))
    run = frontier(law, flops)[["flops", "params", "tokens"]]
    return run.assign(low=low, high=high, level=law.document["level"])


def _crossing(flops: pd.Series, loss: pd.Series, target: float) -> float:
    """FLOPs at which a curve first comes down to the target; infinite if it never does."""
    first = int(np.argmax(loss.to_numpy() <= target))
    if loss.iloc[first] > target:
        return float("inf")
    pair = slice(max(first - 1, 0), first + 1)
    # np.interp needs ascending x: both losses negated; linear in log FLOPs between the two grid points
    return float(np.exp(np.interp(-target, -loss.iloc[pair], np.log(flops.iloc[pair]))))


def design(runs: pd.DataFrame, budget: float, law: Law | str = chinchilla, **options: Any) -> Design:
    """Proposes the runs to train next, with `budget` FLOPs, so that a forecast becomes more certain. options: see
    analysis.design.next_runs.design_cells."""
    return design_cells(runs, budget, find_law(law) if isinstance(law, str) else law, **options)


def plot(law: SavedFit, figure: str = "loss_by_tokens") -> Figure:
    """One of the figures of a fit, by its name in analysis.plots.fit.FIGURES. Raises TableError for another name, or a
    figure that this fit does not have."""
    if figure not in fit_plot.FIGURES:
        raise TableError(f"no figure is named {figure!r}; there are {', '.join(fit_plot.FIGURES)}")
    if figure not in fit_plot.available_figures(law):
        raise TableError("figure sensitivity: this fit has no sensitivity panel; fit it with panel=True")
    return fit_plot.FIGURES[figure](law, LIGHT)


def _png(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """(PNG of a figure at twice NOTEBOOK_DPI, the size in CSS pixels at which to show it)."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=2 * NOTEBOOK_DPI)
    width, height = (round(inches * NOTEBOOK_DPI) for inches in figure.get_size_inches())
    return content.getvalue(), {"width": width, "height": height}


NOTEBOOK_DPI = 96


def _show_in_notebooks() -> None:
    """Registers a formatter, so that a notebook cell that ends in a figure shows it. pyplot would do that, but is not
    imported here."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        formatter = shell.display_formatter.formatters["image/png"]
        if Figure not in formatter.type_printers:
            formatter.for_type(Figure, _png)


_show_in_notebooks()
