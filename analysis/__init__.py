"""Laws fitted to tables of runs. Imports neither flax nor training code. See analysis.api."""

import analysis.forecast  # noqa: F401  # the module first, so that its name is then the function's
from analysis.api import fit, forecast, load, plot

__all__ = ["fit", "forecast", "load", "plot"]
