from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection

from analysis.forecasting.backtest import CHOSEN
from analysis.plots import backtest
from tests.support.figure_style import follows_the_style


@pytest.fixture
def found() -> pd.DataFrame:
    """Two cuts, two laws: the chosen one errs by 1 and 4 %, the other by 2 and 8 %; one run of six lies outside."""
    rows = []
    for factor, error in ((3.0, 0.01), (10.0, 0.04)):
        for law, times in (("chinchilla huber", 2.0), (CHOSEN, 1.0)):
            for at, sign in enumerate((1, -1, 1)):
                predicted = 2.0 * (1 + sign * times * error)
                width = 0.001 if (factor, at, law) == (10.0, 0, CHOSEN) else 0.2
                rows.append(
                    {"factor": factor, "law": law, "run_id": f"r{at}", "flops": 1e12 * (at + 1), "limit": 3e12 / factor}
                    | {
                        "measured": 2.0,
                        "predicted": predicted,
                        "low_90": predicted - width,
                        "high_90": predicted + width,
                    }
                )
    return pd.DataFrame(rows)


def test_errors_are_measured_over_predicted_with_their_interval(found: pd.DataFrame) -> None:
    figure = backtest.forecast_errors(found)
    follows_the_style(figure, held_out=True)
    axes = figure.axes[0]
    chosen = found[found["law"] == CHOSEN].sort_values("flops")
    dots = next(c for c in axes.collections if isinstance(c, PathCollection))
    expected = np.column_stack([chosen["flops"] / chosen["limit"], 100 * (2.0 / chosen["predicted"] - 1)])
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), expected)
    bars = next(c for c in axes.collections if isinstance(c, LineCollection))
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends[:, 0], 100 * (chosen["low_90"] / chosen["predicted"] - 1))
    assert re.search(r"\b83%.*\b6\b", figure.get_supxlabel())


def test_laws_stand_side_by_side_at_their_mean_error(found: pd.DataFrame) -> None:
    figure = backtest.errors_by_law(found)
    follows_the_style(figure)
    axes = figure.axes[0]
    means = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines if line.get_label()[0] != "_"}
    np.testing.assert_allclose(means[CHOSEN], [1.0, 4.0])
    np.testing.assert_allclose(means["chinchilla huber"], [2.0, 8.0])
    assert [text.get_text() for text in axes.texts] == [CHOSEN, "chinchilla"], "named at their ends, from below"
