"""The package in a notebook: `from analysis import load, fit, forecast, plot`.

    runs = load("runs.csv", columns={"params": "N", "tokens": "D"})
    law = fit(runs)
    plot(law)

Tables are DataFrames, in and out; every result prints itself and has to_json(). Not in the design's list of modules:
the verbs on the command line call the same functions.
"""

from __future__ import annotations

import io
import sys
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
from analysis.forecasting import saved_fit, sensitivity
from analysis.forecasting.saved_fit import FitSettings, SavedFit
from analysis.laws import Law, chinchilla, get_law
from analysis.plots import fit as fit_plot
from analysis.plots.style import LIGHT
from analysis.tables import results
from analysis.tables import where as clauses

ObjectiveName = Literal["huber", "lad", "mse_log", "mse"]


def load(path: str | Path, *, columns: Mapping[str, str] | None = None, where: str = "") -> pd.DataFrame:
    """A sweep folder, CSV, Parquet or JSONL file as a table.

    Args:
      columns: canonical name -> name in the file, as in {"params": "N", "tokens": "D", "loss": "L"}.
      where: rows to keep, as in "corpus==c4 and flops<1e21".
    Raises:
      TableError: no such file, column or row.
    """
    return clauses.filter_rows(results.read_table(Path(path), columns), where)


def objective(name: ObjectiveName, delta: float = 1e-3) -> Objective:
    """An objective by its name; delta is the width of Huber's quadratic zone, in log loss."""
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
    """A law fitted to a table, with intervals, warnings and what a forecast needs.

    Args:
      law: a law, its name, or "chosen" to have it chosen by back-test.
      settings: objective, weighting, held parameters, bounds, hold-out, draws; its law is replaced by `law`.
      params_column: which count of parameters to fit against.
      panel: also fit otherwise, to show how exponents and forecast move.
      origin: path and sha256 of the table, columns and where of `load`; its rows are hashed unless given.
    Raises:
      TableError: a table that cannot be fitted, or settings that do not go with the law.
    """
    chosen = None if law == "chosen" else find_law(law) if isinstance(law, str) else law
    settings = replace(settings or FitSettings(), law=chosen)
    shape = chosen or chinchilla
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
    """A law by its name. Raises TableError, with the nearest name."""
    try:
        return get_law(name)
    except KeyError as error:
        raise TableError(f"law {name}: {error.args[0]}; or chosen") from None


def forecast(law: SavedFit, params: ArrayLike, tokens: ArrayLike) -> pd.DataFrame:
    """What a fit says of runs that nobody has trained: predicted, low, high (nats per token), a row each.

    params and tokens: numbers, or lists of them that broadcast.
    """
    n, d = (np.ravel(part) for part in np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (params, tokens))))
    return pd.DataFrame(law.forecast(pd.DataFrame({"params": n, "tokens": d})))


def frontier(law: SavedFit, flops: ArrayLike) -> pd.DataFrame:
    """The compute-optimal run of each budget in FLOPs, 6 params tokens, as `forecast` has it, a row each.

    Raises TableError for a law not of loss in params and tokens.
    """
    if law.law.columns != results.SURFACE_COLUMNS or law.law.response != "loss":
        raise TableError(f"{law.law.name}: a frontier needs a law of loss in params and tokens, as chinchilla is")
    budgets = np.atleast_1d(np.asarray(flops, np.float64))
    params, tokens = compute_optimal.optimal_allocation(law.law, law.values, budgets)
    return forecast(law, params, tokens)[["params", "tokens", "predicted", "low", "high", "level"]].assign(
        flops=budgets
    )


MAX_EXTRAPOLATION, FRONTIER_POINTS = 1e6, 257


def compute_to_reach(law: SavedFit, loss: float) -> pd.DataFrame:
    """The least compute whose compute-optimal run reaches a loss, in one row: flops, params, tokens, low, high.

    low and high: the FLOPs at which the lower and the upper end of the forecast's interval first reach the loss; high
    is infinite where that is not within 1e6 times the largest run's compute (ours: the band read sideways).
    Raises TableError for a loss that the law reaches nowhere in that range, or a law without a frontier.
    """
    done = 6 * law.points["params"] * law.points["tokens"]
    along = frontier(law, np.geomspace(done.min() / 10, done.max() * MAX_EXTRAPOLATION, FRONTIER_POINTS))
    worst, best = along["predicted"].to_numpy()[[0, -1]].tolist()
    if not best <= loss <= worst:
        raise TableError(f"loss {loss:g}: compute-optimal runs of this law go from {worst:.4g} down to {best:.4g}")
    flops, low, high = (_crossing(along["flops"], along[name], loss) for name in ("predicted", "low", "high"))
    run = frontier(law, flops)[["flops", "params", "tokens"]]
    return run.assign(low=low, high=high, level=law.document["level"])


def _crossing(flops: pd.Series, loss: pd.Series, target: float) -> float:
    """FLOPs at which a curve first comes down to the target; infinite where it never does."""
    at = int(np.argmax(loss.to_numpy() <= target))
    if loss.iloc[at] > target:
        return float("inf")
    pair = slice(max(at - 1, 0), at + 1)
    return float(np.exp(np.interp(-target, -loss.iloc[pair], np.log(flops.iloc[pair]))))


def design(runs: pd.DataFrame, budget: float, law: Law | str = chinchilla, **options: Any) -> Design:
    """The runs to train next for a forecast, for so many FLOPs. Options: see analysis.design.next_runs.design_cells."""
    return design_cells(runs, budget, find_law(law) if isinstance(law, str) else law, **options)


def plot(law: SavedFit, figure: str = "loss_by_tokens") -> Figure:
    """One of the figures of a fit, by name (analysis.plots.fit.FIGURES). Raises TableError for another name or law."""
    if figure not in fit_plot.FIGURES:
        raise TableError(f"no figure is named {figure!r}; there are {', '.join(fit_plot.FIGURES)}")
    if figure not in fit_plot.drawable(law):
        raise TableError("the figure sensitivity shows the panel of a fit, which this one lacks: fit with panel=True")
    return fit_plot.FIGURES[figure](law, LIGHT)


def _png(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """A figure as a notebook shows it: twice the resolution, at its own size."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=2 * NOTEBOOK_DPI)
    width, height = (round(inches * NOTEBOOK_DPI) for inches in figure.get_size_inches())
    return content.getvalue(), {"width": width, "height": height}


NOTEBOOK_DPI = 96


def _show_in_notebooks() -> None:
    """A cell that ends in a figure shows it, where pyplot, which would see to that, has not been asked for."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        formatter = shell.display_formatter.formatters["image/png"]
        if Figure not in formatter.type_printers:
            formatter.for_type(Figure, _png)


_show_in_notebooks()
