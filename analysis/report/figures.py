"""The figures of a report, and the caption of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import backtest, curve_collapse, fit, learning_rates
from analysis.plots.style import Theme
from analysis.report.evidence import Evidence

CAPTIONS = {
    "loss_by_tokens": "Each curve is the fitted law at one model size; points are runs.",
    "loss_by_params": "Each curve is the fitted law at one horizon of training tokens; points are runs.",
    "surface": "Lines join sizes and horizons of equal loss. The best split of each budget lies on the orange line.",
    "isoflop": "At a fixed budget the best size lies at the minimum of its curve.",
    "frontier": "The size that reaches the lowest loss for its compute. Where it leaves the dots, it extrapolates.",
    "residuals": "A trend here means that the law's form is wrong for these runs, or that it weighs some more.",
    "sensitivity": "A dot outside the shaded interval: that convention matters more than the noise.",
    "backtest_errors": "A good law scatters about zero at any distance; a drift to one side is its form failing.",
    "backtest_laws": "The chosen law knows nothing of the runs above the cut; the others are taken for granted.",
    "rates_tried": "A minimum inside its curve was found; one at an end was not.",
    "rates_used": "Learning rates copied from one size to all others are why small laws fail.",
    "loss_curves": "Training loss as it was logged, smoothed over a tenth of each run.",
    "collapse": "Reduced loss over what the others' trend expects at the end. Cells trained alike lie on one another.",
    "downstream_by_compute": "Runs with their standard error; where a task rises, its law with interval.",
    "downstream_by_bits": "The second of two steps: from the bits per byte of the right answer to accuracy.",
    "downstream_signal": "A task whose models differ by less than their noise says nothing about scale.",
}

DrawFigure = Callable[[Theme], Figure]


def available_figures(evidence: Evidence) -> dict[str, DrawFigure]:
    """The functions that draw the figures for which the evidence has data, by name."""
    figures: dict[str, DrawFigure] = {
        name: partial(fit.FIGURES[name], evidence.fit) for name in fit.available_figures(evidence.fit)
    }
    if not evidence.backtest.empty:
        figures["backtest_errors"] = partial(backtest.forecast_errors, evidence.backtest)
        figures["backtest_laws"] = partial(backtest.errors_by_law, evidence.backtest)
    if evidence.rate_law is not None:
        figures["rates_tried"] = partial(learning_rates.rate_scans, evidence.rate_law)
    if (used := _rates_used(evidence)) is not None:
        figures["rates_used"] = partial(learning_rates.rates_of_runs, used, evidence.rate_law)
    if evidence.collapse is not None:
        figures["loss_curves"] = partial(curve_collapse.curves, evidence.collapse, off=evidence.off_collapse)
        figures["collapse"] = partial(curve_collapse.normalised_curves, evidence.collapse, off=evidence.off_collapse)
    if evidence.studies:
        from analysis.plots import downstream

        figures["downstream_by_compute"] = partial(downstream.by_compute, evidence.studies)
        if any(study.bits_model is not None for study in evidence.studies):
            figures["downstream_by_bits"] = partial(downstream.by_bits, evidence.studies)
        if downstream.with_known_noise(evidence.studies):
            figures["downstream_signal"] = partial(downstream.signal_to_noise, evidence.studies)
    return figures


def _rates_used(evidence: Evidence) -> pd.DataFrame | None:
    """Columns params and learning_rate of the finished runs; None if the table lacks one."""
    column = evidence.fit.document["params_column"]
    if not {column, "learning_rate"} <= set(evidence.done_rows):
        return None
    used = evidence.done_rows[[column, "learning_rate"]].set_axis(["params", "learning_rate"], axis=1)
    used = used.apply(pd.to_numeric, errors="coerce").replace(float("inf"), float("nan")).dropna()
    used = used[(used["learning_rate"] > 0) & (used["params"] > 0)]
    return None if used.empty else used
