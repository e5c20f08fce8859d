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
# # Explore a sweep
#
# A sweep ends in one table with one row for each run. This notebook reads the table of the demo: 42 byte models of 11
# thousand to 217 thousand parameters, trained on the source code of Python's standard library ([how it was
# made](data/README.md)). It answers three questions to ask before fitting a law: what was varied, did every run end
# well, and which runs used their compute best?

# %%
import matplotlib as mpl
from matplotlib.figure import Figure

from analysis import load
from analysis.plots.style import LIGHT, colours_by_log, format_count, format_scientific, set_plain_ticks

runs = load("data/stdlib_cpu.parquet")
print(f"{len(runs)} runs, status {runs['status'].unique().tolist()}, {(runs['flags'] != '').sum()} of them flagged")
runs[["params_matmul", "tokens", "flops", "loss", "loss_stderr", "bits_per_byte", "learning_rate"]].describe().loc[
    ["min", "50%", "max"]
].map("{:.4g}".format)

# %% [markdown]
# ## What was varied
#
# There are six sizes and seven numbers of tokens. The loss is in nats per token on held-out files; a token is a byte
# here. It falls with more parameters (down a column) and with more text (along a row), least where the model is small.

# %%
runs.pivot(index="params_matmul", columns="tokens", values="loss").round(3)

# %% [markdown]
# ## How parameters are counted
#
# There are three counts of the parameters of one model. In tiny models the embedding is a large part, so an exponent in
# N depends on the count. A fit names the one it uses. The default is `params_matmul`, the parameters that a token is
# multiplied by.

# %%
counts = runs.groupby(["width", "depth"])[["params_total", "params_non_embedding", "params_matmul"]].first()
counts.sort_values("params_total")

# %% [markdown]
# ## What the sweep cost
#
# Runs of one size share a trunk, the stable phase of the learning-rate schedule: a shorter run branches off the longer
# one and has its own cooldown. `flops` is the cost of a run without sharing, `flops_spent` the compute that it added.

# %%
unshared, spent = runs["flops"].sum(), runs["flops_spent"].sum()
print(
    f"alone {format_scientific(unshared)} FLOPs, with shared trunks {format_scientific(spent)}: "
    f"{1 - spent / unshared:.0%} less"
)

# %% [markdown]
# ## Which size for which compute
#
# There is one line for each size. The thick line joins the runs that no cheaper run beats: without a law, they are the
# best known runs for a budget. It moves from small models to large ones as compute grows. Bars are 90 % intervals from
# the spread over held-out windows. Every run is measured on the same windows, so differences between runs are more
# certain than the bars show.

# %%
runs = runs.sort_values("flops")
best = runs[runs["loss"] == runs["loss"].cummin()]
sizes = sorted(runs["params_matmul"].unique())

with mpl.rc_context(LIGHT.settings):
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot(title="Each budget has its own best size")
    for size, colour in zip(sizes, colours_by_log(LIGHT, sizes, sizes), strict=True):
        line = runs[runs["params_matmul"] == size]
        bars = {"color": colour, "linewidth": 1, "marker": "o", "markersize": 5, "markeredgecolor": LIGHT.paper}
        axes.errorbar(line["flops"], line["loss"], yerr=1.645 * line["loss_stderr"], zorder=3, **bars)
        first = line.iloc[0]
        offset, side = ((7, 3), "left") if size == sizes[-1] else ((-6, -6), "right")
        name = {"textcoords": "offset points", "color": colour, "fontsize": 9, "ha": side}
        axes.annotate(format_count(size), (first["flops"], first["loss"]), offset, **name)
    axes.plot(best["flops"], best["loss"], color=LIGHT.accent, linewidth=5, alpha=0.35, zorder=2)
    middle = best.iloc[len(best) // 2]
    name = {"textcoords": "offset points", "color": LIGHT.accent, "ha": "right"}
    axes.annotate("best run so far", (middle["flops"], middle["loss"]), (-4, -20), **name)
    note = "a line a model size, in parameters\nbars: 90% intervals of the measured loss"
    axes.text(0.98, 0.95, note, transform=axes.transAxes, ha="right", va="top", fontsize=8.5)
    axes.set(xscale="log", yscale="log", xlabel="training compute (FLOPs)", ylabel="loss (nats per token)")
    axes.set_xlim(runs["flops"].min() / 1.5, runs["flops"].max() * 1.4)
    set_plain_ticks(axes)
    axes.xaxis.set_major_formatter(lambda value, _: format_scientific(value))
figure
