"""Summarises and draws the results of benchmarks/design.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.plots.style import LIGHT

COLOURS = {
    "random": "#8b8f98",
    "isoflop": "#CC79A7",
    "cheapest": "#E69F00",
    "v": "#56B4E9",
    "v-cost": "#0072B2",
    "v-cost, no drift": "#009E73",
}
"""Of each policy: from Okabe and Ito's palette, which most colour-blind readers can tell apart; random is grey."""
SHOWN = ("simulated, chinchilla", "simulated, wrong law", "public, chinchilla", "public, interaction")


def summary(records: pd.DataFrame) -> list[dict[str, Any]]:
    """Over the tables of a group, one entry a policy and share: errors are means over seeds, then geometric means over
    tables, whose errors differ manifold; quartiles are over both. Tables whose first cells cost more than the least
    share are left out, so that every entry is over the same ones."""
    part = records[records["policy"] != "all"]
    reach = part.groupby(["group", "table"])["share"].transform("min")
    part = part[reach == part["share"].min()].merge(_whole(records), on=["group", "table"])
    entries = []
    for (group, policy, share), cell in part.groupby(["group", "policy", "share"], sort=False):
        means = cell.groupby("table")[["error", "whole"]].mean()
        error, whole = np.exp(np.log(means).mean())
        low, high = np.quantile(cell["error"], [0.25, 0.75])
        entry = {"group": group, "policy": policy, "share": share, "tables": len(means), "error": float(error)}
        entry |= {"quartiles": [float(low), float(high)], "whole": float(whole), "ratio": float(error / whole)}
        reached = int((means["error"] <= means["whole"]).sum())
        entries.append(entry | {"reached": reached, "cells": float(cell["cells"].mean())})
    return entries


def tables(records: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry a public table and law: error of all candidates, and each policy's mean over seeds by share."""
    entries = []
    public = records[records["group"].str.startswith("public")]
    whole = _whole(records).set_index(["group", "table"])["whole"]
    for (group, table), part in public.groupby(["group", "table"], sort=False):
        cells = int(part.loc[part["policy"] == "all", "cells"].iloc[0])
        means = part[part["policy"] != "all"].groupby(["policy", "share"], sort=False)["error"].mean()
        errors = {p: {str(s): float(means[p, s]) for q, s in means.index if q == p} for p in COLOURS}
        entries.append({"group": group, "table": table, "cells": cells, "whole": float(whole[group, table])} | errors)
    return entries


def _whole(records: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of the error of all candidates: columns group, table, whole."""
    every = records[records["policy"] == "all"]
    return every.groupby(["group", "table"], sort=False)["error"].mean().rename("whole").reset_index()


def figure(facts: Mapping[str, Any], groups: Sequence[str] = SHOWN) -> Figure:
    """Error against share of the cost, one panel a group, one line a policy, quartiles shaded."""
    with mpl.rc_context(LIGHT.settings):
        figure_of_groups = Figure(figsize=(4.1 * len(groups), 4.4), layout="constrained")
        for axes, group in zip(figure_of_groups.subplots(1, len(groups)), groups, strict=True):
            panel(axes, [entry for entry in facts["summary"] if entry["group"] == group], group)
        return figure_of_groups


def panel(axes: Axes, entries: Sequence[Mapping[str, Any]], group: str) -> None:
    ends = []
    for policy in COLOURS:
        of_policy = [entry for entry in entries if entry["policy"] == policy]
        if not of_policy:
            continue
        x, y = (100 * np.array([entry[key] for entry in of_policy]) for key in ("share", "error"))
        low, high = 100 * np.array([entry["quartiles"] for entry in of_policy]).T
        designed = policy.startswith("v")
        axes.plot(x, y, color=COLOURS[policy], linewidth=2.4 if designed else 1.4, zorder=3 if designed else 2)
        axes.fill_between(x, low, high, color=COLOURS[policy], alpha=0.13, linewidth=0)
        ends.append((np.log(y[-1]), policy))
    whole = 100 * entries[0]["whole"]
    axes.axhline(whole, color=LIGHT.ink, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.text(1.0, whole, "all candidates", va="bottom", fontsize=8.5)
    axes.set(
        xscale="log", yscale="log", title=group, xlabel="share of the cost of all candidates (%)", xlim=(0.95, 160)
    )
    axes.set_ylabel("error of the forecast (%)")
    axes.set_xticks([1, 2, 5, 10, 20, 50])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    gap, label_height = 0.045 * np.diff(np.log(axes.get_ylim()))[0], -np.inf
    for height, policy in sorted(ends):
        label_height = max(height, label_height + gap)
        axes.text(53, np.exp(label_height), policy, color=COLOURS[policy], fontsize=8.5, va="center", fontweight="bold")


def short(value: Any) -> Any:
    """Numbers to four digits."""
    if isinstance(value, dict):
        return {key: short(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [short(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
