"""Prediction intervals of the loss of one new run.

They combine four uncertainties. A draw picks a candidate law with the probability that it wins the back-test
(law_choice) and one of its bootstrap refits. The spread of the draws is then scaled to the growth of the back-test's
errors with compute: up without limit, down to half. The noise of a single run is added last. The scaling is needed
because a bootstrap assumes the form of the law: its nominal 90 % bands contain a fifth of the runs beyond 10x compute.
The method is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting import bootstrap
from analysis.fitting.fit import Fit, fit_each_weighting, law_box, refit_from_starts
from analysis.fitting.newton import LARGE_TABLE
from analysis.fitting.one_step import one_step_draws
from analysis.forecasting.law_choice import Candidate, Choice
from analysis.laws import Columns, Law, get_law

MIN_SCALE = 0.5  # least factor by which the spread of the draws is scaled down, where the back-test had smaller errors
SHRINK_DISTANCE = float(np.log(3))  # e-folds of compute beyond the fit at which that factor is first allowed in full
MAX_TARGETS = 1024  # targets whose combinations are in memory at once
MIN_SAMPLES = 8192  # fewest combinations of a draw with a noise value that an interval is taken from


@dataclass(frozen=True)
class LawDraws:
    """Bootstrap draws of a law's parameters: [draws, parameters]."""

    law: Law
    draws: np.ndarray


@dataclass(frozen=True)
class PredictiveDistribution:
    """The distribution of the loss of new runs, around a forecast.

    members: draws of each law, their number in proportion to its share of wins.
    noise: log of measured over predicted of each fitted point, widened for the degrees of freedom that the fit used.
    probabilities: of each entry of noise: the weights of the points, sum 1.
    error_growth: root mean square log error per e-fold of compute beyond `max_flops`; NaN when unknown.
    max_flops: training FLOPs of the largest fitted run; infinite where the points have no flops.
    """

    members: tuple[LawDraws, ...]
    noise: np.ndarray
    probabilities: np.ndarray
    error_growth: float
    max_flops: float

    def facts(self, digits: int) -> dict[str, Any]:
        """The distribution as JSON, numbers to `digits` digits; `predictive_from_facts` reads it back."""

        def rounded(values: np.ndarray) -> Any:
            return [rounded(v) if np.ndim(v) else float(f"{v:.{digits}g}") for v in values]

        members = [{"law": member.law.name, "draws": rounded(member.draws)} for member in self.members]
        drift = None if np.isnan(self.error_growth) else self.error_growth
        noise = {"noise": rounded(self.noise), "chances": rounded(self.probabilities)}
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
        """The interval of the measured loss of ONE new run at each target, of nominal probability `level`.

        Args:
          predicted: the forecast, [targets], which the interval always contains.
          columns: the laws' columns at the targets, [targets] each.
          flops: training FLOPs of each target, [targets].
          seed: of the draws of noise.
        Returns:
          low and high, [targets] each.
        """
        predicted = np.atleast_1d(np.asarray(predicted, float))
        if len(predicted) > MAX_TARGETS:
            x = {name: np.asarray(columns[name], float) for m in self.members for name in m.law.columns}
            flops, ends = np.asarray(flops, float), []
            for first in range(0, len(predicted), MAX_TARGETS):
                block = slice(first, first + MAX_TARGETS)
                part = {name: column[block] for name, column in x.items()}
                ends.append(self.interval(predicted[block], part, flops[block], level, seed=seed + first))
            low, high = (np.concatenate(parts) for parts in zip(*ends, strict=True))
            return low, high
        draws = self.log_predictions(columns)  # [draws, targets]
        draws = draws[np.isfinite(draws).all(1)]
        deviations = draws - np.median(draws, axis=0)
        e_folds = np.maximum(np.log(np.atleast_1d(np.asarray(flops, float)) / self.max_flops), 0.0)
        draws_std = np.maximum(np.std(deviations, axis=0), 1e-12)
        backtest_std = draws_std if np.isnan(self.error_growth) else self.error_growth * e_folds
        # The factor may fall to MIN_SCALE only far enough beyond the fit; at the fit itself it is at least 1.
        least_scale = 1 - (1 - MIN_SCALE) * np.minimum(e_folds / SHRINK_DISTANCE, 1.0)
        deviations = deviations * np.maximum(backtest_std / draws_std, least_scale)
        generator = np.random.default_rng(seed)
        repeats = max(1, -(-MIN_SAMPLES // len(deviations)))  # rounded up
        noise = generator.choice(self.noise, (repeats, *deviations.shape), p=self.probabilities)
        low, high = bootstrap.central_interval((deviations + noise).reshape(-1, deviations.shape[1]), level)
        return predicted * np.exp(np.minimum(low, 0.0)), predicted * np.exp(np.maximum(high, 0.0))


def build_predictive(
    fit: Fit, candidate: Candidate, points: pd.DataFrame, choice: Choice, *, draws: int, seed: int
) -> PredictiveDistribution:
    """The predictive distribution of a fit whose law has rivals.

    The fit's own candidate gets the largest share of wins, so that a law that the user named is always among the draws.

    Args:
      candidate: the candidate of the fit.
      points: the laws' columns, flops, the response, cluster and run_id.
      draws: number of bootstrap draws over all candidates.
    """
    shares = dict(zip(choice.candidates, map(float, choice.win_shares), strict=True))
    shares[candidate] = max(shares.values())
    total = sum(shares.values())
    counts = {c: round(draws * share / total) for c, share in shares.items()}
    members = []
    for law, objective in dict.fromkeys((c.law, c.objective) for c in counts):
        group = {c: n for c, n in counts.items() if (c.law, c.objective) == (law, objective) and n}
        if group:
            members.append(_draw_law(fit, candidate, group, points, seed))
    flops = points["flops"].to_numpy(float)
    noise = _run_noise(fit, points, candidate.weights(flops, np.ones(len(points), bool)))
    return PredictiveDistribution(tuple(members), *noise, choice.error_growth, float(flops.max()))


def predictive_without_rivals(
    fit: Fit, points: pd.DataFrame, draws: np.ndarray, weights: np.ndarray
) -> PredictiveDistribution:
    """The predictive distribution of a law without rivals: its own bootstrap draws, and the noise of one run."""
    max_flops = float(points["flops"].max()) if "flops" in points else np.inf
    return PredictiveDistribution((LawDraws(fit.law, draws),), *_run_noise(fit, points, weights), np.nan, max_flops)


def predictive_from_facts(facts: dict[str, Any]) -> PredictiveDistribution:
    """Reads what PredictiveDistribution.facts wrote."""
    members = tuple(LawDraws(get_law(member["law"]), np.array(member["draws"])) for member in facts["members"])
    chances = np.array(facts["chances"])
    error_growth = np.nan if facts["drift"] is None else facts["drift"]
    max_flops = np.inf if facts["limit"] is None else facts["limit"]
    noise, probabilities = np.array(facts["noise"]), chances / chances.sum()
    return PredictiveDistribution(members, noise, probabilities, error_growth, max_flops)


def _run_noise(fit: Fit, points: pd.DataFrame, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals, widened for the degrees of freedom that the fit used, and their probabilities: the points' weights.
    Of a large table, a sample."""
    freedom = max(len(points) - len(fit.law.parameters) + len(fit.fixed), 1)
    noise = fit.residuals(points, points[fit.law.response].to_numpy(float)) * np.sqrt(len(points) / freedom)
    probabilities = weights / weights.sum()
    if len(noise) <= LARGE_TABLE:
        return noise, probabilities
    sample = np.random.default_rng(0).choice(noise, LARGE_TABLE, p=probabilities)
    return sample, np.full(LARGE_TABLE, 1 / LARGE_TABLE)


def _draw_law(
    fit: Fit, candidate: Candidate, counts: Mapping[Candidate, int], points: pd.DataFrame, seed: int
) -> LawDraws:
    """Bootstrap draws of candidates that share a law and an objective; `counts` says how many of each.

    A candidate is refitted from its own fit: from `fit` if it is `candidate`, else from a new one.
    """
    first = next(iter(counts))
    law, objective = first.law, first.objective
    response, flops = points[law.response].to_numpy(float), points["flops"].to_numpy(float)
    weights = np.stack([c.weights(flops, np.ones(len(points), bool)) for c in counts])
    starts, _ = fit_each_weighting(law, points, response, objective, weights, refine=False)
    starts = np.stack([fit.vector() if c == candidate else start for c, start in zip(counts, starts, strict=True)])
    unit, _ = bootstrap.choose_clusters(points, len(law.parameters))
    which = np.repeat(np.arange(len(counts)), list(counts.values()))
    box = fit.box if law is fit.law else None
    if len(points) > LARGE_TABLE:
        box = box or law_box(law, {}, {})
        parts = [
            one_step_draws(
                *(law, objective, starts[i], points, response, weights[i], unit, box),
                draws=count,
                seed=seed + i,
                refine=c != candidate,
            )
            for i, (c, count) in enumerate(counts.items())
        ]
        return LawDraws(law, np.concatenate(parts))
    draws, num_done = [], 0
    for times in bootstrap.draw_weight_blocks(points, law, unit, draws=len(which), seed=seed):
        block = which[num_done : num_done + len(times)]
        refitted = refit_from_starts(law, objective, starts[block], points, response, weights[block] * times, box)
        draws.append(refitted[0])
        num_done += len(times)
    return LawDraws(law, np.concatenate(draws))
