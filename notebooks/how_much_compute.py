# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How much compute do I need?
#
# For a target loss this notebook computes how much compute, how large a model and how much text it takes, how certain
# that is, what it would cost, and which runs to train next for a more certain answer. It uses the demo's small models
# ([how they were made](data/README.md)); the steps are the same for other sweeps.

# %%
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import compute_to_reach, fit, frontier, load
from analysis.api import design
from analysis.plots.style import LIGHT, format_count, format_scientific, set_plain_ticks
from scaling.accounting.counts import peak_flops

runs = load("data/stdlib_cpu.parquet")
law = fit(runs, "chosen")
law

# %% [markdown]
# ## The least compute for a loss
#
# The answer is on the compute-optimal frontier of the law, where C = 6 N D. `low` and `high` are the FLOPs at which the
# lower and the upper end of the forecast's 90 % interval reach the loss. `inf` means that the upper end never reaches
# it: from these runs, the loss may be unreachable.

# %%
best = runs["loss"].min()
targets = [round(best - step, 2) for step in (0.03, 0.07, 0.12)]
answers = pd.concat([compute_to_reach(law, loss).assign(loss=loss) for loss in targets], ignore_index=True)
answers["times_the_largest_run"] = answers["flops"] / (6 * runs["params_matmul"] * runs["tokens"]).max()
answers.set_index("loss").map("{:.3g}".format)

# %% [markdown]
# ## How long that takes on hardware
#
# These seconds are computed, not measured: FLOPs divided by 40 % of the peak rate of a chip. Models as small as these
# reach far less than 40 % on an accelerator. `scaling cost SIZE` prints the whole calculation for a model of your own.

# %%
chips = {"A100": "A100", "H100": "H100", "TPU v5e": "TPU v5 lite"}
rates = {name: 0.4 * peak_flops(kind, "bfloat16") for name, kind in chips.items()}
seconds = pd.DataFrame({f"{name}, s": answers["flops"] / rate for name, rate in rates.items()})
seconds.set_index(answers["loss"]).map("{:.2g}".format)

# %% [markdown]
# ## Which runs to train next
#
# These are the runs that lower the standard error of the forecast for the second target most, within as much compute as
# the sweep has cost so far. `standard_error` is that of the forecast's log loss after this run and those above it.

# %%
aim = answers.iloc[1]
plan = design(runs, runs["flops_spent"].sum(), law.law, target=(aim["params"], aim["tokens"]), cells=4)
before = plan.proposal.standard_errors[0]
print(f"standard error of the forecast {before:.1%} now, {plan.cells['standard_error'].iloc[-1]:.1%} after these")
plan.cells.map("{:.3g}".format)

# %% [markdown]
# ## The answer as a figure

# %%
done = 6 * runs["params_matmul"] * runs["tokens"]
ranges = np.geomspace(done.min() / 1.3, 5 * answers["flops"].iloc[-1], 80)
line = frontier(law, ranges)
with mpl.rc_context(LIGHT.settings):
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot(title="Compute for a loss, along the compute-optimal frontier")
    axes.fill_between(ranges, line["low"], line["high"], color=LIGHT.accent, alpha=0.14, linewidth=0)
    axes.plot(ranges, line["predicted"], color=LIGHT.accent, linewidth=1.8)
    axes.scatter(done, runs["loss"], s=20, color=LIGHT.ink, alpha=0.6, linewidths=0)
    axes.set(xscale="log", yscale="log", xlabel="training compute (FLOPs, 6 N D)", ylabel="loss (nats per token)")
    axes.set(xlim=(ranges[0], ranges[-1]), ylim=(0.9 * targets[-1], 1.05 * runs["loss"].max()))
    for row in answers.itertuples():
        axes.plot([row.low, min(row.high, 2 * ranges[-1])], [row.loss] * 2, color=LIGHT.ink, linewidth=1.3)
        axes.plot(row.flops, row.loss, "D", color=LIGHT.paper, markeredgecolor=LIGHT.ink, markersize=6)
        text = f"{row.loss:g}: {format_count(row.params)} parameters, {format_count(row.tokens)} tokens"
        axes.annotate(text, (row.low, row.loss), (-6, 0), textcoords="offset points", ha="right", va="center")
    level = f"{law.document['level']:.0%} intervals"
    note = f"dots: runs of the sweep\nband and bars: {level}\nbar to the edge: no upper end"
    axes.text(0.98, 0.95, note, transform=axes.transAxes, ha="right", va="top", fontsize=8.5)
    set_plain_ticks(axes)
    axes.xaxis.set_major_formatter(lambda value, _: format_scientific(value))
figure
