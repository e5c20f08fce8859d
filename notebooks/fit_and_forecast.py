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
# # Fit a law, forecast a run
#
# This notebook leaves out the largest run of the demo sweep ([how the runs were made](data/README.md)), fits a law to
# the rest, forecasts the loss of the largest run with an interval, and compares it with the measured loss. The first
# fit of each kind compiles for some seconds.

# %%
import pandas as pd

from analysis import fit, forecast, load, plot
from analysis.forecasting.saved_fit import FitSettings

runs = load("data/stdlib_cpu.parquet")

# %% [markdown]
# ## Chinchilla's law, as it is usually fitted
#
# `holdout="largest"` leaves out the run with the most compute. Warnings are part of the result.

# %%
usual = fit(runs, "chinchilla", FitSettings(holdout="largest"))
usual

# %% [markdown]
# ## The law and the weighting chosen by back-test
#
# `"chosen"` holds out the runs of most compute among those that are left, and takes the law and the weighting towards
# large compute that forecast them best. `wins` is the share of resamples of the runs in which a candidate came first.

# %%
law = fit(runs, "chosen", FitSettings(holdout="largest"), panel=True)
candidates = pd.DataFrame(law.document["choice"]["candidates"])
law

# %%
candidates

# %% [markdown]
# ## How much depends on convention
#
# The figure shows fits to the same runs with another count of parameters, another range of compute, or another
# objective. The shaded band is the 90 % interval of the fit above. A dot outside it is a convention that matters more
# than the noise.

# %%
plot(law, "sensitivity")

# %% [markdown]
# ## The forecast
#
# Both fits forecast the run that was left out, and a run with ten times its parameters and ten times its tokens, which
# was not trained and whose interval is wide.

# %%
largest = law.held_out.iloc[0]
n, d = largest["params"] * pd.Series([1, 10]), largest["tokens"] * pd.Series([1, 10])
forecasts = pd.concat([forecast(usual, n, d).assign(fit="usual"), forecast(law, n, d).assign(fit="chosen")])
forecasts["measured"] = [largest["loss"], None] * 2
forecasts["error"] = forecasts["predicted"] / forecasts["measured"] - 1
forecasts[["fit", "params", "tokens", "predicted", "low", "high", "measured", "error"]].round(4)

# %%
plot(law, "loss_by_tokens")
