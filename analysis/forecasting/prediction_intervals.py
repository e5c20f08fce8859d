"""Prediction intervals: bootstrap over runs, law choice, growth of error with compute, and the noise of one run.

A draw picks a candidate by how often it won the back-test, and one of its bootstrap refits. The draws are then scaled
to spread as the errors of the back-test grew with compute, up without limit and down to half: bootstrap alone takes the
form of the law for granted, and its nominal 90 % bands hold a fifth of the runs beyond 10x compute. The noise of a
single run is added last. Method: ours.

Not in the design's list of modules: intervals.py resamples, backtest.py chooses, and this joins them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting import bootstrap
from analysis.fitting.fit import Fit, fit_each_weighting, refit_from_starts
from analysis.forecasting.law_choice import Candidate, Choice
from analysis.laws import Columns, Law, get_law

MIN_SCALE = 0.5  # what the spread of the draws may be scaled down to, where the back-test saw smaller errors
SHRINK_DISTANCE = float(np.log(3))  # e-folds of compute beyond the fit over which that becomes allowed
MIN_SAMPLES = 8192  # draws of parameters and noise together, at least


@dataclass(frozen=True)
class LawDraws:
    """Bootstrap draws of one candidate's law: [draws, parameters]."""

    law: Law
    draws: np.ndarray


@dataclass(frozen=True)
class PredictiveDistribution:
    """What a forecast needs beside its law.

    members: draws, in proportion to how often each candidate won.
    noise: log measured over predicted, one a fitted point, widened for the freedom that the fit used up.
    probabilities: of each entry of noise to be the next run's: the weights of the points.
    error_growth: root mean square log error per e-fold of compute beyond `max_flops`; NaN when unknown.
    max_flops: largest training FLOPs that were fitted; infinite where the points have none.
    """

    members: tuple[LawDraws, ...]
    noise: np.ndarray
    probabilities: np.ndarray
    error_growth: float
    max_flops: float

    def facts(self, digits: int) -> dict[str, Any]:
        """As JSON; `restore` reads it back."""

        def short(values: np.ndarray) -> Any:
            return [short(v) if np.ndim(v) else float(f"{v:.{digits}g}") for v in values]

        members = [{"law": member.law.name, "draws": short(member.draws)} for member in self.members]
        drift = None if np.isnan(self.error_growth) else self.error_growth
        noise = {"noise": short(self.noise), "chances": short(self.probabilities)}
        limit = self.max_flops if np.isfinite(self.max_flops) else None
        return {"members": members, **noise, "drift": drift, "limit": limit}

    def log_predictions(self, columns: Columns) -> np.ndarray:
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
        spread = self.log_predictions(columns)
        spread = spread[np.isfinite(spread).all(1)]
        centred = spread - np.median(spread, axis=0)
        beyond = np.maximum(np.log(np.atleast_1d(np.asarray(flops, float)) / self.max_flops), 0.0)
        width = np.maximum(np.std(centred, axis=0), 1e-12)
        seen = width if np.isnan(self.error_growth) else self.error_growth * beyond
        centred = centred * np.maximum(seen / width, 1 - (1 - MIN_SCALE) * np.minimum(beyond / SHRINK_DISTANCE, 1.0))
        generator = np.random.default_rng(seed)
        repeats = max(1, -(-MIN_SAMPLES // len(centred)))
        noise = generator.choice(self.noise, (repeats, *centred.shape), p=self.probabilities)
        low, high = bootstrap.central_interval((centred + noise).reshape(-1, centred.shape[1]), level)
        return predicted * np.exp(np.minimum(low, 0.0)), predicted * np.exp(np.maximum(high, 0.0))


def build_predictive(
    fit: Fit, own: Candidate, points: pd.DataFrame, choice: Choice, *, draws: int, seed: int
) -> PredictiveDistribution:
    """The predictive distribution of a fit of `own` to points: columns of the laws, flops, response, cluster, run_id.

    The fit's own candidate takes part with the share of the best: a law named by hand is always among the draws.
    """
    shares = dict(zip(choice.candidates, map(float, choice.win_shares), strict=True))
    shares[own] = max(shares.values())
    total = sum(shares.values())
    counts = {c: round(draws * share / total) for c, share in shares.items()}
    members = []
    for law, objective in dict.fromkeys((c.law, c.objective) for c in counts):
        alike = {c: n for c, n in counts.items() if (c.law, c.objective) == (law, objective) and n}
        if alike:
            members.append(_draw_law(fit, own, alike, points, seed))
    flops = points["flops"].to_numpy(float)
    noise = _run_noise(fit, points, own.weights(flops, np.ones(len(points), bool)))
    return PredictiveDistribution(tuple(members), *noise, choice.error_growth, float(flops.max()))


def predictive_without_rivals(
    fit: Fit, points: pd.DataFrame, draws: np.ndarray, weights: np.ndarray
) -> PredictiveDistribution:
    """Of a law that has no rivals to be chosen from: its own draws and the noise of a run."""
    limit = float(points["flops"].max()) if "flops" in points else np.inf
    return PredictiveDistribution((LawDraws(fit.law, draws),), *_run_noise(fit, points, weights), np.nan, limit)


def predictive_from_facts(facts: dict[str, Any]) -> PredictiveDistribution:
    """Inverse of Predictive.facts."""
    members = tuple(LawDraws(get_law(member["law"]), np.array(member["draws"])) for member in facts["members"])
    chances = np.array(facts["chances"])
    drift = np.nan if facts["drift"] is None else facts["drift"]
    limit = np.inf if facts["limit"] is None else facts["limit"]
    return PredictiveDistribution(members, np.array(facts["noise"]), chances / chances.sum(), drift, limit)


def _run_noise(fit: Fit, points: pd.DataFrame, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals widened for the freedom that the fit used up, and the chance of each: the weights of the points."""
    freedom = max(len(points) - len(fit.law.parameters) + len(fit.fixed), 1)
    noise = fit.residuals(points, points[fit.law.response].to_numpy(float)) * np.sqrt(len(points) / freedom)
    return noise, weights / weights.sum()


def _draw_law(fit: Fit, own: Candidate, counts: Mapping[Candidate, int], points: pd.DataFrame, seed: int) -> LawDraws:
    """Bootstrap draws of candidates of one law and objective, each from its own fit: the fit itself, or a cold one."""
    first = next(iter(counts))
    law, objective = first.law, first.objective
    response, flops = points[law.response].to_numpy(float), points["flops"].to_numpy(float)
    weights = np.stack([c.weights(flops, np.ones(len(points), bool)) for c in counts])
    starts, _ = fit_each_weighting(law, points, response, objective, weights)
    starts = np.stack([fit.vector() if c == own else start for c, start in zip(counts, starts, strict=True)])
    unit, _ = bootstrap.choose_clusters(points, len(law.parameters))
    which = np.repeat(np.arange(len(counts)), list(counts.values()))
    box = fit.box if law is fit.law else None
    draws, done = [], 0
    for times in bootstrap.draw_weight_blocks(points, law, unit, draws=len(which), seed=seed):
        block = which[done : done + len(times)]
        refitted = refit_from_starts(law, objective, starts[block], points, response, weights[block] * times, box)
        draws.append(refitted[0])
        done += len(times)
    return LawDraws(law, np.concatenate(draws))
