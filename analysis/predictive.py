"""Prediction intervals: bootstrap over runs, law choice, growth of error with compute, and the noise of one run.

A draw picks a candidate by how often it won the back-test, and one of its bootstrap refits. Where the back-test saw
errors grow faster with compute than these draws spread, the draws are widened to match: bootstrap alone takes the form
of the law for granted, and its nominal 90 % bands hold a few runs in a hundred beyond 10x compute. The noise of a
single run is then added. Method: ours.

Not in the design's list of modules: intervals.py resamples, backtest.py chooses, and this joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import intervals
from analysis.backtest import Candidate, Choice
from analysis.fit import Fit, fit_law
from analysis.laws import Columns, Law

REPEATS = 8192  # draws of parameters and noise together, at least


@dataclass(frozen=True)
class Member:
    """Bootstrap draws of one candidate's law: [draws, parameters]."""

    law: Law
    draws: np.ndarray


@dataclass(frozen=True)
class Predictive:
    """What a forecast needs beside its law.

    members: draws, in proportion to how often each candidate won.
    noise: log measured over predicted, one a fitted point, widened for the freedom that the fit used up.
    chances: of each entry of noise to be the next run's: the weights of the points.
    drift: root mean square log error per e-fold of compute beyond `limit`; NaN when unknown.
    limit: largest training FLOPs that were fitted.
    """

    members: tuple[Member, ...]
    noise: np.ndarray
    chances: np.ndarray
    drift: float
    limit: float

    def spread(self, columns: Columns) -> np.ndarray:
        """Log predictions of every draw at each target: [draws, targets]."""
        parts = []
        for member in self.members:
            values = {name: member.draws[:, [i]] for i, name in enumerate(member.law.parameters)}
            x = {name: np.atleast_1d(np.asarray(columns[name], float)) for name in member.law.columns}
            parts.append(np.log(member.law(values, x)))
        return np.concatenate(parts)

    def interval(
        self, predicted: np.ndarray, columns: Columns, flops: Any, level: float, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the measured loss of ONE new run at each target should fall, with nominal probability `level`.

        Args:
          predicted: the forecast itself, [targets]: the band is laid around it.
          flops: training FLOPs of each target.
        """
        spread = self.spread(columns)
        spread = spread[np.isfinite(spread).all(1)]
        centred = spread - np.median(spread, axis=0)
        beyond = np.maximum(np.log(np.atleast_1d(np.asarray(flops, float)) / self.limit), 0.0)
        seen = 0.0 if np.isnan(self.drift) else self.drift * beyond
        width = np.maximum(np.std(centred, axis=0), 1e-12)
        centred = centred * np.maximum(seen / width, 1.0)
        generator = np.random.default_rng(seed)
        repeats = max(1, -(-REPEATS // len(centred)))
        noise = generator.choice(self.noise, (repeats, *centred.shape), p=self.chances)
        low, high = intervals.central((centred + noise).reshape(-1, centred.shape[1]), level)
        return predicted * np.exp(np.minimum(low, 0.0)), predicted * np.exp(np.maximum(high, 0.0))


def build(fit: Fit, own: Candidate, points: pd.DataFrame, choice: Choice, *, draws: int, seed: int) -> Predictive:
    """The predictive distribution of a fit of `own` to points: columns of the laws, flops, response, cluster, run_id.

    The fit's own candidate takes part with the share of the best: a law named by hand is always among the draws.
    """
    response, flops = points[fit.law.response].to_numpy(float), points["flops"].to_numpy(float)
    shares = {own: float(choice.wins.max())} | dict(zip(choice.candidates, choice.wins, strict=True))
    total = sum(shares.values())
    counts = {c: round(draws * share / total) for c, share in shares.items()}
    members = [
        _member(fit if c == own else _fitted(c, points), c, points, count, seed) for c, count in counts.items() if count
    ]
    weights = own.weights(flops, np.ones(len(points), bool))
    effective = weights.sum() ** 2 / (weights**2).sum()
    freedom = max(effective - len(fit.law.parameters), 1.0)
    noise = fit.residuals(points, response) * np.sqrt(effective / freedom)
    return Predictive(tuple(members), noise, weights / weights.sum(), choice.drift, float(flops.max()))


def _fitted(candidate: Candidate, points: pd.DataFrame) -> Fit:
    law = candidate.law
    weights = candidate.weights(points["flops"].to_numpy(float), np.ones(len(points), bool))
    return fit_law(law, points, points[law.response].to_numpy(float), candidate.objective, weights=weights)


def _member(fit: Fit, candidate: Candidate, points: pd.DataFrame, draws: int, seed: int) -> Member:
    unit, _ = intervals.clusters(points, len(fit.law.parameters))
    response = points[fit.law.response].to_numpy(float)
    weights = candidate.weights(points["flops"].to_numpy(float), np.ones(len(points), bool))
    return Member(fit.law, intervals.bootstrap(fit, points, response, unit, weights=weights, draws=draws, seed=seed))
