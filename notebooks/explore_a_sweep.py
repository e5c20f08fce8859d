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
# A sweep ends in one table, a row a run. This notebook reads the table of the demo: 42 byte models of 11 thousand to
# 217 thousand parameters, trained on the source code of Python's standard library ([how it was made](data/README.md)).
# It asks what one should ask before any law is fitted: what was varied, did every run end well, and which runs were the
# best use of their compute?

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
# Six sizes, seven horizons. The loss is in nats per token on held-out files; a token is a byte here. Down a column more
# parameters help, along a row more text does: least where the model is small.

# %%
runs.pivot(index="params_matmul", columns="tokens", values="loss").round(3)

# %% [markdown]
# ## How a parameter is counted
#
# The same model has three sizes. Tiny models spend much of theirs on the embedding, so an exponent in N depends on
# which count is used. A fit names its own: `params_matmul` unless told otherwise, the numbers that a token is
# multiplied by.

# %%
counts = runs.groupby(["width", "depth"])[["params_total", "params_non_embedding", "params_matmul"]].first()
counts.sort_values("params_total")

# %% [markdown]
# ## What was paid
#
# Horizons of one size share a trunk: a shorter run branches off the longer one and cools down on its own. `flops` is
# what a run would have cost alone, `flops_spent` what was added for it.

# %%
alone, spent = runs["flops"].sum(), runs["flops_spent"].sum()
print(
    f"alone {format_scientific(alone)} FLOPs, with shared trunks {format_scientific(spent)}: "
    f"{1 - spent / alone:.0%} less"
)

# %% [markdown]
# ## Which size for which compute
#
# A line a size; the thick one joins the runs that no cheaper run beats, which is the best that a sweep can say about a
# budget without a law. It moves from small models to large ones as compute grows. Bars are 90 % intervals from the
# spread over held-out windows. Every run is measured on the same windows, so differences are surer than the bars.

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
