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
# # Replicate Chinchilla
#
# Besiroglu et al. 2024 ([arXiv 2404.10102](https://arxiv.org/abs/2404.10102)) read the 245 runs behind Chinchilla's
# third approach off its figure, refitted the law, and found other values than Hoffmann et al. 2022 had printed. This
# notebook recomputes their numbers under each objective that could have produced them, and plots the consequence: how
# many tokens per parameter are compute-optimal.
#
# **It needs one file that is not in this repository:** a table of 245 rows from their repository. The next cell reads
# it from `shared/data` beside the checkout, or else downloads it at a pinned commit to `out/public` and checks its
# sha256. Without the file and without a network, that cell fails and says where to put the file.

# %%
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import fit, load
from analysis.plots.style import LIGHT, format_count, format_scientific, set_plain_ticks
from analysis.replicate.chinchilla import STUDY
from analysis.replicate.fetch import fetch_files

shared = Path("../../shared/data") / STUDY.folder / "svg_extracted_data.csv"
file = shared if shared.exists() else fetch_files(STUDY, Path("../out/public"))[0]

# %% [markdown]
# ## Published, ours, difference, verdict
#
# The verdict `not an optimum` marks published values at which the objective they should minimise is higher than at
# ours. What the paper prints as a Huber fit is the solution of least absolute deviations, to five digits.

# %%
rows = pd.DataFrame(STUDY.run(file.parent))
rows[["quantity", "published", "ours", "difference", "verdict"]].round(5)

# %%
for note in rows["note"].unique():
    if note:
        print(f"- {note}")

# %% [markdown]
# ## How many tokens per parameter
#
# The three approaches of Hoffmann et al. do not agree. With the third, as printed (E = 1.69, A = 406.4, B = 410.7,
# alpha = .34, beta = .28), the number of tokens per parameter grows with compute; with the first two, and for
# Chinchilla itself, it is about 20. The refit gives about 20 as well. It leaves out the five highest losses, as
# Besiroglu et al. do.

# %%
points = load(file, columns={"params": "Model Size", "flops": "Training FLOP"})
points["tokens"] = points["flops"] / (6 * points["params"])
points = points[points["loss"] < points["loss"].nlargest(5).min()]
law = fit(points)
law.parameters.round(4)

# %%
budgets = np.geomspace(1e18, 1e26, 60)
names = ("E", "A", "B", "alpha", "beta")
ours = dict(zip(names, law.draws.T[..., None], strict=True))
printed = dict(zip(names, (1.69, 406.4, 410.7, 0.34, 0.28), strict=True))


def tokens_per_parameter(p: dict, flops: np.ndarray) -> np.ndarray:
    """Tokens per parameter of the compute-optimal run: Hoffmann et al. 2022, eq. 4, with C = 6 N D."""
    a = p["beta"] / (p["alpha"] + p["beta"])
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    return flops / 6 / (g * (flops / 6) ** a) ** 2


with mpl.rc_context(LIGHT.settings):
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot(title="Chinchilla's table refitted: about twenty tokens a parameter")
    low, high = np.quantile(tokens_per_parameter(ours, budgets), [0.05, 0.95], axis=0)
    refit, hoffmann = tokens_per_parameter(law.values, budgets), tokens_per_parameter(printed, budgets)
    axes.fill_between(budgets, low, high, color=LIGHT.accent, alpha=0.16, linewidth=0)
    axes.plot(budgets, refit, color=LIGHT.accent, linewidth=1.8)
    axes.plot(budgets, hoffmann, color=LIGHT.ink, linewidth=1.4, linestyle=(0, (5, 2)))
    axes.plot(6 * 70e9 * 1.4e12, 20, "D", color=LIGHT.paper, markeredgecolor=LIGHT.ink, markersize=7, zorder=4)
    axes.axvspan(points["flops"].min(), points["flops"].max(), color=LIGHT.faint, alpha=0.2, linewidth=0)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="training compute (FLOPs, 6 N D)",
        ylabel="compute-optimal tokens a parameter",
    )
    axes.set(xlim=(budgets[0], budgets[-1]))
    note = {"textcoords": "offset points", "fontsize": 9}
    axes.annotate(
        "Hoffmann et al. 2022, approach 3 as printed", (budgets[40], hoffmann[40]), (-5, 4), ha="right", **note
    )
    axes.annotate("refit, 90% interval", (budgets[-1], refit[-1]), (-6, -14), ha="right", color=LIGHT.accent, **note)
    axes.annotate("Chinchilla 70B", (6 * 70e9 * 1.4e12, 20), (8, 6), **note)
    axes.annotate("runs fitted", (points["flops"].min(), 1), (5, -13), xycoords=("data", "axes fraction"), **note)
    set_plain_ticks(axes)
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.xaxis.set_major_formatter(lambda value, _: format_scientific(value))
figure
