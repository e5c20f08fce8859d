"""Prints and draws the results of benchmarks/fit.py."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

Facts = dict[str, Any]
OURS, THEIRS, FAINT = "#1c1d21", "#c2410c", "#b4b7bf"


def report(facts: Facts) -> str:
    """Every optimum, the resamples, both costs and memory, in lines."""
    optima, drawn, theirs = facts["optima"], facts["bootstrap"], facts["epoch"]
    starts_error = theirs["starts"] * theirs["seconds_a_start"]["standard_error"]
    draws_error = theirs["resamples"] * theirs["seconds_a_resample"]["standard_error"]
    each = 1e3 * drawn["seconds"] / drawn["draws"]
    lines = [f"{'table':<22}{'objective':<20}{'value':>16}{'over reference':>16}  reached  CPU-s"]
    for r in optima["rows"]:
        value, excess = f"{r['value']:.10g}", f"{r['value'] / r['reference'] - 1:.1e}"
        verdict = "yes" if r["reached"] else "NO"
        lines.append(f"{r['table']:<22}{r['objective']:<20}{value:>16}{excess:>16}  {verdict:<7}{r['seconds']:>7.3f}")
    lines += [
        f"optima reached: {optima['reached']} of {optima['count']}, {optima['seconds']:.2f} CPU-s",
        f"resamples: {drawn['draws']:,}, {drawn['seconds']:.2f} CPU-s, {each:.3f} ms each",
        f"  {drawn['checked']} of them refitted from every start: within 1e-6 of the better are "
        f"{drawn['ours_at_better']:.1%} of ours, {drawn['cold_at_better']:.1%} of the refitted; "
        f"ours at most {drawn['largest_excess']:.1e} above",
        f"ours in all: {facts['ours_seconds']:.2f} CPU-s, target {facts['target_seconds']:g}: "
        f"{'met' if facts['target_met'] else 'MISSED'}",
        f"  left out: import {facts['import_seconds']:.2f}, compile {facts['compile_seconds']:.2f}",
        f"Epoch's, measured: {theirs['starts_measured']} starts {theirs['starts_measured_seconds']:.2f} CPU-s "
        f"({theirs['share_at_optimum']:.1%} at the optimum, {theirs['share_within_1_percent']:.1%} within 1 %), "
        f"{theirs['resamples_measured']} resamples {theirs['resamples_measured_seconds']:.2f} CPU-s",
        f"Epoch's, extrapolated: {theirs['starts']:,} starts {theirs['starts_seconds_extrapolated']:.0f} "
        f"+- {starts_error:.0f} CPU-s, {theirs['resamples']:,} resamples "
        f"{theirs['resamples_seconds_extrapolated']:.0f} +- {draws_error:.0f} CPU-s",
    ]
    for task, r in facts["tasks"].items():
        lines.append(f"{task}: {r['ours']:.3g} against {r['epoch']:.4g} CPU-s, ratio {r['ratio']:.0f}")
    for name, part in facts["memory"].items():
        peak = f"peak {part['peak_mib']:.0f} MiB ({part['peak_before_mib']:.0f} before)"
        lines.append(f"memory, {part[name]:,} {name}: {peak}, {part['seconds']:.1f} CPU-s")
    return "\n".join(lines)


def figure(facts: Facts) -> Figure:
    """CPU-seconds of each task on a log axis, ours and Epoch's, with the ratio between."""
    about, theirs = facts["about"], facts["epoch"]
    with mpl.rc_context({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}):
        canvas = Figure(figsize=(7.2, 3.0), layout="constrained")
        axes = canvas.subplots()
        for i, row in enumerate(facts["tasks"].values()):
            ours, epoch = row["ours"], row["epoch"]

            def note(x: float, text: str, offset: tuple[int, int], place: str, i: int = i) -> None:
                axes.annotate(text, (x, i), offset, textcoords="offset points", ha=place, va="center")

            axes.plot([ours, epoch], [i, i], color=FAINT, linewidth=2, zorder=1)
            axes.plot(ours, i, "o", color=OURS, markersize=8, label="ours")
            axes.plot(epoch, i, "s", color=THEIRS, markerfacecolor="white", markersize=8, label="Epoch's procedure")
            note(ours, f"{ours:.2g} s", (-8, 0), "right")
            note(epoch, f"{epoch:.3g} s", (8, 0), "left")
            note((ours * epoch) ** 0.5, f"{row['ratio']:.0f} times", (0, 7), "center")
        labels = [task.replace("; ", ";\n").replace(" and ", "\nand ") for task in facts["tasks"]]
        axes.set(xscale="log", yticks=range(len(labels)), yticklabels=labels, xlabel="CPU-seconds, without compilation")
        axes.set(xlim=(axes.get_xlim()[0] / 4, axes.get_xlim()[1] * 4), ylim=(len(labels) - 0.5, -0.6))
        axes.tick_params(axis="y", length=0)
        axes.legend(*(part[:2] for part in axes.get_legend_handles_labels()), frameon=False, loc="lower left")
        draws = theirs["resamples_measured"]
        counts = f"Epoch's: extrapolated from {theirs['starts_measured']} starts and {draws} resamples"
        where = f"{about['cpu']}, {about['cores']} cores, {about['date']}"
        axes.set_title(f"{counts}\n{where}", loc="left", fontsize=9)
    return canvas
