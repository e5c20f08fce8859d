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
# The runs of the demo sweep ([how they were made](data/README.md)) less the largest; a law fitted to the rest; a
# forecast for the one left out, with an interval; then the measured loss beside it. The first fit of a kind compiles
# for some seconds.

# %%
import pandas as pd

from analysis import fit, forecast, load, plot
from analysis.forecasting.saved_fit import FitSettings

runs = load("data/stdlib_cpu.parquet")

# %% [markdown]
# ## Chinchilla's form, as it is usually fitted
#
# `holdout="largest"` leaves out the run with the most compute. Warnings are part of the result.

# %%
usual = fit(runs, "chinchilla", FitSettings(holdout="largest"))
usual

# %% [markdown]
# ## The form and weighting chosen by back-test
#
# `"chosen"` holds out the top of compute once more, inside the runs that are left, and takes the law and the weighting
# towards large compute that forecast it best. `wins` is how often each came first over resamples of the runs.

# %%
law = fit(runs, "chosen", FitSettings(holdout="largest"), panel=True)
rivals = pd.DataFrame(law.document["choice"]["candidates"])
law

# %%
rivals

# %% [markdown]
# ## How much is convention
#
# The same runs fitted otherwise: another count of parameters, another window of compute, another objective. The shaded
# band is the 90 % interval of the fit above. A dot outside it is a convention that matters more than the noise.

# %%
plot(law, "sensitivity")

# %% [markdown]
# ## The forecast
#
# Of the run that was left out, by both fits, and of a run with ten times its parameters and ten times its tokens, which
# nobody has trained: its interval is wide, and says so.

# %%
largest = law.held_out.iloc[0]
n, d = largest["params"] * pd.Series([1, 10]), largest["tokens"] * pd.Series([1, 10])
said = pd.concat([forecast(usual, n, d).assign(fit="usual"), forecast(law, n, d).assign(fit="chosen")])
said["measured"] = [largest["loss"], None] * 2
said["error"] = said["predicted"] / said["measured"] - 1
said[["fit", "params", "tokens", "predicted", "low", "high", "measured", "error"]].round(4)

# %%
plot(law, "loss_by_tokens")
