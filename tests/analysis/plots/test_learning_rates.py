from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from analysis.fitting import learning_rate_law
from analysis.plots import learning_rates
from tests.support import reported as made
from tests.support.figure_style import follows_the_style


def test_the_interval_is_that_of_a_line_in_logs() -> None:
    law = learning_rate_law.fit_rate_law(learning_rate_law.find_scans(made.scan_table()))
    x, y = np.log([s.params for s in law.scans]), np.log([s.best for s in law.scans])
    line = stats.linregress(x, y)
    at = np.log(1e6)
    residual = np.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / (len(x) - 2))
    error = residual * np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)) * stats.t.ppf(0.95, 2)
    low, high = learning_rates.rate_interval(law, 1e6)
    middle = line.intercept + line.slope * at
    np.testing.assert_allclose([low, high], np.exp([middle - error, middle + error]))


def test_the_runs_are_shown_without_scans_too() -> None:
    runs = pd.DataFrame({"params": [1e4, 1e5], "learning_rate": [1e-3, 1e-3]})
    figure = learning_rates.rates_of_runs(runs, None)
    follows_the_style(figure, intervals=False)
    np.testing.assert_allclose(np.asarray(figure.axes[0].collections[0].get_offsets()), runs)


def test_two_scans_have_no_interval_to_show() -> None:
    law = learning_rate_law.fit_rate_law(
        learning_rate_law.find_scans(made.scan_table()[lambda t: t["params_matmul"] < 5e4])
    )
    follows_the_style(learning_rates.rate_scans(law), intervals=False)
    runs = pd.DataFrame({"params": [1e4], "learning_rate": [1e-2]})
    follows_the_style(learning_rates.rates_of_runs(runs, law), intervals=False)
