"""`scaling backtest` and `scaling coverage`: forecasts of runs that the fit did not see, scored.

For a factor f the fit sees runs of at most Cmax / f and forecasts the rest. The chosen law is chosen, weighted and
given its interval from the runs below the cut alone. Plain laws stand beside it with the bands that their bootstrap
gives, which is what is usually printed.

Not in the design's list of modules: backtest.py chooses inside a fit's points; this judges the whole from outside.
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
    """One row a factor and law: n_train, n_test, mean_relative_error, rmsle, bias (mean log error), coverage of bands.

    Args:
      points: columns params, tokens, flops, loss, run_id and cluster: `results.select_points(...).table`.
      factors: the fit sees runs of at most Cmax / factor. A factor that leaves too few is left out.
      plain: laws taken for granted, each with its bootstrap's band.
      candidates: what the chosen law is chosen from.
    """
    found = backtest_forecasts(points, factors, plain, candidates, draws=draws, seed=seed)
    parts = found.groupby(["factor", "law"], sort=False) if len(found) else ()
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
    """What `backtest` scores: a row for each factor, law and run above the cut, perhaps none.

    Columns: factor, law, run_id, params, tokens, flops; limit, the most training FLOPs that the law was fitted to;
    measured, predicted, and low and high of each level's band, as in low_90 (nats per token); n_train; choice, what
    `chosen` chose, "" for the others.
    """
    parts = []
    for factor in factors:
        cut = points["flops"] <= points["flops"].max() / factor
        train, test = points[cut].reset_index(drop=True), points[~cut].reset_index(drop=True)
        needed = max(len(candidate.law.parameters) for candidate in (*plain, *candidates)) + 1
        if test.empty or len(train[["params", "tokens"]].drop_duplicates()) < needed:
            continue
        made = [(candidate.name, *_forecast_plain(train, test, candidate, draws, seed), "") for candidate in plain]
        made.append((CHOSEN, *_forecast_chosen(train, test, candidates, draws, seed)))
        for law, predicted, bands, choice in made:
            ends = {
                f"{end}_{level * 100:.0f}": band[side]
                for level, band in zip(LEVELS, bands, strict=True)
                for side, end in enumerate(("low", "high"))
            }
            rows = test[["run_id", "params", "tokens", "flops"]].assign(factor=factor, law=law, **ends, choice=choice)
            limit = float(train["flops"].max())
            parts.append(rows.assign(limit=limit, measured=test["loss"], predicted=predicted, n_train=len(train)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


Bands = list[tuple[np.ndarray, ...]]


def _forecast_plain(
    train: pd.DataFrame, test: pd.DataFrame, candidate: Candidate, draws: int, seed: int
) -> tuple[np.ndarray, Bands]:
    weights = candidate.weights(train["flops"].to_numpy(float), np.ones(len(train), bool))
    fit = fit_law(candidate.law, train, train["loss"], candidate.objective, weights=weights)
    unit, _ = bootstrap.choose_clusters(train, len(fit.law.parameters))
    resampled = bootstrap.bootstrap(fit, train, train["loss"], unit, weights=weights, draws=draws, seed=seed)
    values = {name: resampled[:, [i]] for i, name in enumerate(fit.law.parameters)}
    spread = fit.law(values, test)
    return fit.predict(test), [
        bootstrap.central_interval(spread[np.isfinite(spread).all(1)], level) for level in LEVELS
    ]


def _forecast_chosen(
    train: pd.DataFrame, test: pd.DataFrame, candidates: Sequence[Candidate], draws: int, seed: int
) -> tuple[np.ndarray, Bands, str]:
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
    """Of one law's forecasts at one factor."""
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
