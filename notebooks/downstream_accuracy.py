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
# # Downstream accuracy
#
# Loss falls smoothly; what a model can do need not. This notebook asks of every task in a table whether accuracy rises
# with scale at all, by which law, and whether that law forecasts runs that it has not seen. "No trend" is an answer.
#
# The table is the demo's ([how it was made](data/README.md)): byte models of 11 thousand to 217 thousand parameters,
# each asked some hundred multiple-choice questions a task by `scaling eval`. `cloze` and `closers` are made from
# held-out text of their corpus, the others are made up.

# %%
import pandas as pd

from analysis import load, studies
from analysis.plots.downstream import by_compute, signal_to_noise

runs = load("data/stdlib_cpu.parquet")
held_out = "3e12"  # FLOPs from which on runs are held out of everything: verdict, choice of law, fit, interval
found = studies(runs, holdout=held_out, draws=200)

# %% [markdown]
# ## Which tasks say anything
#
# A task is given a law only if accuracy rises with compute (Kendall's tau, with a permutation test) and its spread over
# the runs is more than equally good models would show by chance.

# %%
verdicts = {
    study.task: {
        "chance": study.chance,
        "best": study.points["accuracy"].max(),
        "tau": study.trend.tau,
        "p": study.trend.p,
        "signal over noise": study.trend.ratio,
        "needed": study.trend.ratio_needed,
        "verdict": study.verdict,
    }
    for study in found
}
pd.DataFrame.from_dict(verdicts, orient="index").round(3)

# %%
signal_to_noise(found)

# %% [markdown]
# ## Which law
#
# One step (accuracy from compute, or from parameters and tokens) or two (first the loss, or the bits per byte of the
# right answer, then accuracy from that). Each task takes the one that forecasts the top of its own compute best;
# `error` is the mean distance of those forecasts, in accuracy, and `naive` that of saying that nothing changes: of the
# mean accuracy of the largest runs seen, those within 3x of the largest.

# %%
rising = [study for study in found if study.accuracy_forecast is not None]
laws = {
    (study.task, scored["name"]): {"error": scored["error"], "wins": scored["wins"]}
    for study in rising
    for scored in study.facts()["backtest"]["roads"]
}
print("naive:", {study.task: round(study.facts()["backtest"]["naive"], 3) for study in rising})
pd.DataFrame.from_dict(laws, orient="index").round(3)

# %% [markdown]
# ## The runs that no law has seen
#
# `low` and `high` are the 90 % interval for one new run's measurement, the luck of its questions included.

# %%
checked = pd.concat([study.held_out.assign(task=study.task) for study in rising])
columns = ["params", "flops", "accuracy", "predicted", "low", "high", "inside"]
print(f"{checked['inside'].sum()} of {len(checked)} measurements inside")
checked.set_index("task")[columns].map(lambda value: value if isinstance(value, bool) else f"{value:.3g}")

# %% [markdown]
# ## Accuracy against compute
#
# Diamonds are the runs held out. A law with an interval that soon spans everything is a law that should not be quoted.

# %%
by_compute(rising)
