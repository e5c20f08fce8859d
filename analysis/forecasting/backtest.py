"""Back-tests of the whole method: forecasts of runs that the fit did not see (`scaling backtest`, `scaling coverage`).

For a factor f, the runs of at most Cmax / f are fitted and the others are forecast. The law `chosen` is chosen,
weighted and given its intervals from the fitted runs alone. Beside it stand laws named beforehand, with intervals from
their bootstrap alone, as is usual in print. `law_choice` is another back-test, inside the fitted runs, which chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting import bootstrap
from analysis.fitting.fit import fit_law
from analysis.forecasting.law_choice import CANDIDATES, Candidate, choose
from analysis.forecasting.prediction_intervals import build_predictive
from analysis.tables import results
from analysis.tables.cells import extend_to_cells

LEVELS = (0.8, 0.9)
FACTORS = (3.0, 10.0, 30.0)
CHOSEN = "chosen"
PLAIN = tuple(candidate for candidate in CANDIDATES if candidate.weight_power == 0)


def backtest(
    points: pd.DataFrame,
    factors: Sequence[float] = FACTORS,
    plain: Sequence[Candidate] = PLAIN,
    candidates: Sequence[Candidate] = CANDIDATES,
    *,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores forecasts of the runs of largest compute: one row per factor and law.

    Columns: factor, law, n_train, n_test, mean_relative_error, rmsle, bias (mean log error), coverage of each level's
    intervals, half width of the 90 % intervals in log loss, and choice, the candidate that `chosen` chose.

    Args:
      points: columns params, tokens, flops, loss, run_id and cluster: `results.select_points(...).table`.
      factors: runs of at most Cmax / factor are fitted. A factor that leaves too few of them is left out.
      plain: laws named beforehand, with intervals from their bootstrap.
      candidates: those from which `chosen` chooses.
      draws: number of bootstrap draws.
    """
    forecasts = backtest_forecasts(points, factors, plain, candidates, draws=draws, seed=seed)
    parts = forecasts.groupby(["factor", "law"], sort=False) if len(forecasts) else ()
    return pd.DataFrame([{"factor": factor, "law": law} | _score_forecasts(part) for (factor, law), part in parts])


def backtest_forecasts(
    points: pd.DataFrame,
    factors: Sequence[float] = FACTORS,
    plain: Sequence[Candidate] = PLAIN,
    candidates: Sequence[Candidate] = CANDIDATES,
    *,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Forecasts the runs of largest compute: one row for each factor, law and run above the cut, perhaps none.

    Columns: factor, law, run_id, params, tokens, flops; limit, training FLOPs of the largest fitted run; measured,
    predicted, and the ends of each level's interval, as in low_90 and high_90 (nats per token); n_train; choice, the
    candidate that `chosen` chose, "" for the other laws. Arguments as for `backtest`.
    """
    parts = []
    for factor in factors:
        is_test = (points["flops"] > points["flops"].max() / factor).to_numpy()
        # The other rows and seeds of the runs above the cut are left out of the fit, and are no test of a forecast.
        is_train = ~extend_to_cells(points, is_test, results.SURFACE_COLUMNS)
        train, test = points[is_train].reset_index(drop=True), points[is_test].reset_index(drop=True)
        needed = max(len(candidate.law.parameters) for candidate in (*plain, *candidates)) + 1
        if test.empty or len(train[["params", "tokens"]].drop_duplicates()) < needed:
            continue
        forecasts = [(candidate.name, *_forecast_plain(train, test, candidate, draws, seed), "") for candidate in plain]
        forecasts.append((CHOSEN, *_forecast_chosen(train, test, candidates, draws, seed)))
        for law, predicted, intervals, choice in forecasts:
            ends = {
                f"{end}_{level * 100:.0f}": interval[side]
                for level, interval in zip(LEVELS, intervals, strict=True)
                for side, end in enumerate(("low", "high"))
            }
            rows = test[["run_id", "params", "tokens", "flops"]].assign(factor=factor, law=law, **ends, choice=choice)
            limit = float(train["flops"].max())
            parts.append(rows.assign(limit=limit, measured=test["loss"], predicted=predicted, n_train=len(train)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


Intervals = list[tuple[np.ndarray, ...]]
"""(low, high) for each of LEVELS, [test runs] each."""


def _forecast_plain(
    train: pd.DataFrame, test: pd.DataFrame, candidate: Candidate, draws: int, seed: int
) -> tuple[np.ndarray, Intervals]:
    weights = candidate.weights(train["flops"].to_numpy(float), np.ones(len(train), bool))
    fit = fit_law(candidate.law, train, train["loss"], candidate.objective, weights=weights)
    unit, _ = bootstrap.choose_clusters(train, len(fit.law.parameters))
    bootstrap_values = bootstrap.bootstrap(fit, train, train["loss"], unit, weights=weights, draws=draws, seed=seed)
    values = {name: bootstrap_values[:, [i]] for i, name in enumerate(fit.law.parameters)}
    spread = fit.law(values, test)
    return fit.predict(test), [
        bootstrap.central_interval(spread[np.isfinite(spread).all(1)], level) for level in LEVELS
    ]


def _forecast_chosen(
    train: pd.DataFrame, test: pd.DataFrame, candidates: Sequence[Candidate], draws: int, seed: int
) -> tuple[np.ndarray, Intervals, str]:
    choice = choose(train, candidates, seed=seed)
    best = choice.best
    weights = best.weights(train["flops"].to_numpy(float), np.ones(len(train), bool))
    fit = fit_law(best.law, train, train["loss"], best.objective, weights=weights)
    predictive = build_predictive(fit, best, train, choice, draws=draws, seed=seed)
    predicted = fit.predict(test)
    return (
        predicted,
        [predictive.interval(predicted, test, test["flops"], level, seed=seed) for level in LEVELS],
        best.name,
    )


def _score_forecasts(rows: pd.DataFrame) -> dict[str, Any]:
    """The scores of one law's forecasts at one factor: a row of `backtest`."""
    measured, predicted = rows["measured"].to_numpy(), rows["predicted"].to_numpy()
    error = np.log(predicted / measured)
    inside = {
        f"coverage_{l}": float(np.mean((rows[f"low_{l}"] <= measured) & (measured <= rows[f"high_{l}"])))
        for l in (f"{level * 100:.0f}" for level in LEVELS)
    }
    choice = str(rows["choice"].iloc[0])
    return {
        "n_train": int(rows["n_train"].iloc[0]),
        "n_test": len(rows),
        "mean_relative_error": float(np.mean(np.abs(predicted / measured - 1))),
        "rmsle": float(np.sqrt(np.mean(error**2))),
        "bias": float(np.mean(error)),
        **inside,
        "half_width_90": float(np.median(np.log(rows["high_90"] / rows["low_90"]) / 2)),
        **({"choice": choice} if choice else {}),
    }
