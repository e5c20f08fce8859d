"""The sensitivity panel of a fit: its exponents and its forecast when the same runs are fitted in other ways.

The way of counting parameters alone moves the compute-optimal exponent of the same runs between .37 and .70, and the
objective moves beta by more than the width of its interval. So every fit is shown beside its variants: with another
count of parameters, another window of compute, without outliers, with another objective, with points weighted towards
large compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from analysis.errors import TableError
from analysis.fitting import compute_optimal
from analysis.fitting.fit import Objective, compute_weights, fit_each_weighting, huber, lad, mse, mse_log
from analysis.forecasting.saved_fit import SavedFit
from analysis.laws import Law
from analysis.tables import results

OUTLIER_SIGMAS = 5.0  # residuals beyond so many robust standard deviations are left out in one variant
FORECAST_FACTOR = 10.0  # the forecast is of a compute-optimal run with this many times the largest run's FLOPs


@dataclass(frozen=True)
class Variant:
    """One way to fit the same runs: the kind of change, the setting, and what is fitted."""

    kind: str
    setting: str
    points: pd.DataFrame
    is_kept: np.ndarray
    """Whether each point is fitted, [points]."""
    objective: Objective
    weight_power: float

    @property
    def weights(self) -> np.ndarray:
        """Weight of each point, [points]; 0 for those left out."""
        weights = np.zeros(len(self.points))
        weights[self.is_kept] = compute_weights(self.points["flops"][self.is_kept], self.weight_power)
        return weights


def supports_panel(saved: SavedFit) -> bool:
    """Whether a fit can have a panel: only laws of loss in params and tokens can."""
    return saved.law.columns == results.SURFACE_COLUMNS and saved.law.response == "loss"


def add_panel(saved: SavedFit, rows: pd.DataFrame) -> SavedFit:
    """Returns the fit with a panel in its document.

    rows: the table that the fit was made from, with all its columns that count parameters.
    """
    return SavedFit({**saved.document, "sensitivity": build_panel(saved, rows)})


def build_panel(saved: SavedFit, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per variant, the fit itself first, with dial (the kind of change), setting, alpha, beta, exponent_a, E,
    forecast, and n, the number of points.

    The forecast (nats per token) is of the run that the variant deems compute-optimal at ten times the FLOPs of the
    largest fitted run. A variant with too few points is left out.
    """
    law, target = saved.law, FORECAST_FACTOR * float(saved.points["flops"].max())
    variants = [
        v
        for v in _variants(saved, rows)
        if len(v.points.loc[v.is_kept, list(law.columns)].drop_duplicates()) > len(law.parameters)
    ]
    values = _fit_variants(saved, variants)
    return [
        {"dial": v.kind, "setting": v.setting}
        | _variant_row(law, dict(zip(law.parameters, row, strict=True)), v, target)
        for v, row in zip(variants, values, strict=True)
    ]


def _fit_variants(saved: SavedFit, variants: Sequence[Variant]) -> np.ndarray:
    """Parameter values of each variant, [variants, parameters]; variants of the same points and objective are fitted in
    one batch."""
    law = saved.law
    fixed = {name: saved.values[name] for name in saved.document["fixed"]}
    values = np.full((len(variants), len(law.parameters)), np.nan)
    values[0] = [saved.values[name] for name in law.parameters]
    groups: dict[tuple[int, Objective], list[int]] = {}
    for index, variant in enumerate(variants[1:], 1):
        groups.setdefault((id(variant.points), variant.objective), []).append(index)
    for (_, objective), members in groups.items():
        points = variants[members[0]].points
        weights = np.stack([variants[index].weights for index in members])
        values[members], _ = fit_each_weighting(law, points, points["loss"], objective, weights, fixed=fixed)
    return values


def _variants(saved: SavedFit, rows: pd.DataFrame) -> Iterator[Variant]:
    """Yields the fit as it is, then each variant."""
    own_objective = saved.document["objective"]
    objectives = {o.name: o for o in (huber(own_objective["delta"] or 1e-3), lad, mse_log, mse)}
    own_column, own_power = saved.document["params_column"], float(saved.document["weight_power"])
    all_points = np.ones(len(saved.points), bool)
    base = Variant("as fitted", own_column, saved.points, all_points, objectives[own_objective["name"]], own_power)
    yield base
    for column in sorted(str(name) for name in rows if str(name).startswith("params") and name != own_column):
        try:
            recounted = results.select_points(rows, column).table
        except TableError:
            continue
        same_runs = recounted[recounted["run_id"].isin(saved.points["run_id"])].reset_index(drop=True)
        yield replace(base, kind="counting", setting=column, points=same_runs, is_kept=np.ones(len(same_runs), bool))
    flops = saved.points["flops"].to_numpy()
    for name, is_in_window in (
        ("upper half of compute", flops >= np.median(flops)),
        ("lower half", flops <= np.median(flops)),
    ):
        yield replace(base, kind="window", setting=name, is_kept=is_in_window)
    residuals = saved.residuals
    # 1.4826 times the median absolute deviation estimates the standard deviation of normal noise.
    scale = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    is_inlier = np.abs(residuals - np.median(residuals)) <= OUTLIER_SIGMAS * scale
    if not is_inlier.all():
        yield replace(base, kind="outliers", setting=f"{(~is_inlier).sum()} left out", is_kept=is_inlier)
    for objective in (*objectives.values(), huber(1e-2)):
        if objective != base.objective:
            setting = objective.name + (f" {objective.delta:g}" if objective.delta else "")
            yield replace(base, kind="objective", setting=setting, objective=objective)
    for value in (0.0, 0.5, 1.0):
        if value != own_power:
            yield replace(base, kind="weighting", setting=f"C^{value:g}", weight_power=value)


def _variant_row(law: Law, values: Mapping[str, float], variant: Variant, target: float) -> dict[str, Any]:
    """A row of the panel, without dial and setting. target: FLOPs of the forecast run."""
    points = variant.points
    # The points' own ratio of 6 N D to training FLOPs, which depends on how N is counted, makes the budget comparable.
    budget = target * float(np.median(6 * points["params"] * points["tokens"] / points["flops"]))
    params, tokens = compute_optimal.optimal_allocation(law, values, budget)
    middle = float(np.exp(np.mean(np.log(points["flops"]))))
    named = {name: float(values[name]) if name in values else None for name in ("alpha", "beta", "E")}
    return named | {
        "exponent_a": float(compute_optimal.allocation_exponent(law, values, middle)),
        "forecast": float(law(values, {"params": params, "tokens": tokens})),
        "n": int(variant.is_kept.sum()),
    }


def panel_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The panel as a table for a terminal."""
    heads = ("alpha", "beta", "exponent_a", "E", "forecast")
    shown = Table("variant", "", *heads, "n", box=None, pad_edge=False)
    for row in rows:
        numbers = ("-" if row[name] is None else f"{row[name]:.4g}" for name in heads)
        shown.add_row(row["dial"], row["setting"], *numbers, str(row["n"]))
    shown.caption = (
        f"forecast: loss of the compute-optimal run at {FORECAST_FACTOR:g}x the largest run's FLOPs, nats per token"
    )
    return shown
