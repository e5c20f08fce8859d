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
# Loss falls smoothly with scale; accuracy on a task may not. For every task in a table this notebook tests whether
# accuracy rises with scale, which law describes it best, and whether that law forecasts runs that were held out. A task
# may have no trend.
#
# The table is the demo's ([how it was made](data/README.md)): byte models of 11 thousand to 217 thousand parameters,
# each evaluated by `scaling eval` on some hundred multiple-choice questions a task. The questions of `cloze` and
# `closers` come from held-out text of their corpus; those of the other tasks are synthetic.

# %%
import pandas as pd

from analysis import load, studies
from analysis.plots.downstream import by_compute, signal_to_noise

runs = load("data/stdlib_cpu.parquet")
holdout_flops = "3e12"  # runs with at least this compute are in no verdict, choice of law, fit or interval
task_studies = studies(runs, holdout=holdout_flops, draws=200)

# %% [markdown]
# ## Which tasks have a trend
#
# A task gets a law only if its accuracy rises with compute (Kendall's tau, with a permutation test) and if its spread
# over the runs is larger than chance alone gives equally good models.

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
    for study in task_studies
}
pd.DataFrame.from_dict(verdicts, orient="index").round(3)

# %%
signal_to_noise(task_studies)

# %% [markdown]
# ## Which law
#
# A one-step law predicts accuracy from compute, or from parameters and tokens. A two-step law first predicts the loss,
# or the bits per byte of the right answer, and then accuracy from that. Each task takes the law that best forecasts the
# fitted runs of most compute in a back-test. `error` is the mean absolute error of those forecasts, in accuracy.
# `naive` is that of the forecast that nothing changes: the mean accuracy of the largest runs seen, those within 3x of
# the largest.

# %%
rising = [study for study in task_studies if study.accuracy_forecast is not None]
laws = {
    (study.task, scored["name"]): {"error": scored["error"], "wins": scored["wins"]}
    for study in rising
    for scored in study.facts()["backtest"]["roads"]
}
print("naive:", {study.task: round(study.facts()["backtest"]["naive"], 3) for study in rising})
pd.DataFrame.from_dict(laws, orient="index").round(3)

# %% [markdown]
# ## The held-out runs
#
# `low` and `high` are the 90 % prediction interval for the measurement of one new run, including the sampling error of
# its questions.

# %%
checked = pd.concat([study.held_out.assign(task=study.task) for study in rising])
columns = ["params", "flops", "accuracy", "predicted", "low", "high", "inside"]
print(f"{checked['inside'].sum()} of {len(checked)} measurements inside")
checked.set_index("task")[columns].map(lambda value: value if isinstance(value, bool) else f"{value:.3g}")

# %% [markdown]
# ## Accuracy against compute
#
# Diamonds are the held-out runs. Do not quote a law whose interval soon spans the whole range.

# %%
by_compute(rising)
