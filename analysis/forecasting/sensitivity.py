"""The panel beside every fit: how its exponents and its forecast move when it is fitted otherwise.

The same runs give a compute-optimal exponent of .37, .54 or .70 by the counting of parameters alone, and the objective
moves beta more than its interval does. So every fit is shown with its neighbours: another counting of parameters,
another window of compute, its outliers left out, another objective, points weighted towards large compute.

Not in the design's list of modules: it is neither an interval nor a choice of law; it says what the conventions are
worth.
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

OUTLIER_SIGMAS = 5.0  # robust standard deviations beyond which a point is left out of one variant
FORECAST_FACTOR = 10.0  # the forecast is for a compute-optimal run with this many times the largest run's FLOPs


@dataclass(frozen=True)
class Variant:
    """One way to fit the same runs: what is changed, and to what."""

    kind: str
    setting: str
    points: pd.DataFrame
    is_kept: np.ndarray
    """Which points count: those left out have weight 0."""
    objective: Objective
    weight_power: float

    @property
    def weights(self) -> np.ndarray:
        weights = np.zeros(len(self.points))
        weights[self.is_kept] = compute_weights(self.points["flops"][self.is_kept], self.weight_power)
        return weights


def supports_panel(built: SavedFit) -> bool:
    """Surfaces of loss in params and tokens; other laws have no such dials."""
    return built.law.columns == results.SURFACE_COLUMNS and built.law.response == "loss"


def add_panel(built: SavedFit, rows: pd.DataFrame) -> SavedFit:
    """The same fit with the panel in its document. rows: the table it was fitted from, with every counting."""
    return SavedFit({**built.document, "sensitivity": build_panel(built, rows)})


def build_panel(built: SavedFit, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a variant, the fit itself first: alpha, beta, exponent_a, E, forecast (nats per token), n.

    The forecast is of a compute-optimal run at ten times the FLOPs of the largest run fitted, sized by that variant. A
    variant that has too few points is left out.
    """
    law, target = built.law, FORECAST_FACTOR * float(built.points["flops"].max())
    variants = [
        v
        for v in _variants(built, rows)
        if len(v.points.loc[v.is_kept, list(law.columns)].drop_duplicates()) > len(law.parameters)
    ]
    values = _fit_variants(built, variants)
    return [
        {"dial": v.kind, "setting": v.setting}
        | _variant_row(law, dict(zip(law.parameters, row, strict=True)), v, target)
        for v, row in zip(variants, values, strict=True)
    ]


def _fit_variants(built: SavedFit, variants: Sequence[Variant]) -> np.ndarray:
    """Values of each variant, [variants, parameters]: those of the same points and objective are fitted together."""
    law = built.law
    held = {name: built.values[name] for name in built.document["fixed"]}
    found = np.full((len(variants), len(law.parameters)), np.nan)
    found[0] = [built.values[name] for name in law.parameters]
    groups: dict[tuple[int, Objective], list[int]] = {}
    for index, variant in enumerate(variants[1:], 1):
        groups.setdefault((id(variant.points), variant.objective), []).append(index)
    for (_, objective), members in groups.items():
        points = variants[members[0]].points
        weights = np.stack([variants[index].weights for index in members])
        found[members], _ = fit_each_weighting(law, points, points["loss"], objective, weights, fixed=held)
    return found


def _variants(built: SavedFit, rows: pd.DataFrame) -> Iterator[Variant]:
    own = built.document["objective"]
    objectives = {o.name: o for o in (huber(own["delta"] or 1e-3), lad, mse_log, mse)}
    counting, power = built.document["params_column"], float(built.document["weight_power"])
    every = np.ones(len(built.points), bool)
    base = Variant("as fitted", counting, built.points, every, objectives[own["name"]], power)
    yield base
    for column in sorted(str(name) for name in rows if str(name).startswith("params") and name != counting):
        try:
            recounted = results.select_points(rows, column).table
        except TableError:
            continue
        same = recounted[recounted["run_id"].isin(built.points["run_id"])].reset_index(drop=True)
        yield replace(base, kind="counting", setting=column, points=same, is_kept=np.ones(len(same), bool))
    flops = built.points["flops"].to_numpy()
    for name, kept in (("upper half of compute", flops >= np.median(flops)), ("lower half", flops <= np.median(flops))):
        yield replace(base, kind="window", setting=name, is_kept=kept)
    residuals = built.residuals
    scale = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    sound = np.abs(residuals - np.median(residuals)) <= OUTLIER_SIGMAS * scale
    if not sound.all():
        yield replace(base, kind="outliers", setting=f"{(~sound).sum()} left out", is_kept=sound)
    for objective in (*objectives.values(), huber(1e-2)):
        if objective != base.objective:
            setting = objective.name + (f" {objective.delta:g}" if objective.delta else "")
            yield replace(base, kind="objective", setting=setting, objective=objective)
    for value in (0.0, 0.5, 1.0):
        if value != power:
            yield replace(base, kind="weighting", setting=f"C^{value:g}", weight_power=value)


def _variant_row(law: Law, values: Mapping[str, float], variant: Variant, target: float) -> dict[str, Any]:
    points = variant.points
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
    """The panel for a terminal."""
    heads = ("alpha", "beta", "exponent_a", "E", "forecast")
    shown = Table("fitted otherwise", "", *heads, "n", box=None, pad_edge=False)
    for row in rows:
        numbers = ("-" if row[name] is None else f"{row[name]:.4g}" for name in heads)
        shown.add_row(row["dial"], row["setting"], *numbers, str(row["n"]))
    shown.caption = (
        f"forecast: loss of the compute-optimal run at {FORECAST_FACTOR:g}x the largest run's FLOPs, nats per token"
    )
    return shown
