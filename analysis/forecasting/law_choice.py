"""Laws chosen by back-test, and how far their forecasts were off.

Inside the points of a fit, the top of compute is held out in turn: every candidate (a law, an objective, a weighting
towards large compute) is fitted to the rest and scored by its mean error there. The winner is refitted to all. Three
things are kept beside it, because a forecast's interval needs them: how often each candidate would have won had the
held-out runs been others, how fast the errors grew with compute beyond the fit, and the noise of a single run.

The settings (hold out the top 3x; candidates; weightings) are ours. LOG.md says what else was tried; the documents give
the errors and the coverage on every public table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting.fit import Objective, compute_weights, fit_each_weighting, huber
from analysis.laws import Law, chinchilla
from analysis.laws.surface import interaction

SCORING_FACTOR = 3.0  # the top of compute by which candidates are scored: above Cmax / 3
HOLDOUT_FACTORS = (2.0, 3.0, 5.0)  # the tops that are held out in turn to see how errors grow
NEAR_BEST = 2.0  # candidates whose score is within this factor of the best have a say in how errors grow
RESAMPLES = 400  # resamples of the held-out runs
WEIGHT_POWERS = (0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Candidate:
    """A law with its objective, and the power of compute that weights its points."""

    law: Law
    objective: Objective
    weight_power: float

    @property
    def name(self) -> str:
        return f"{self.law.name} {self.objective.name}" + (f" C^{self.weight_power:g}" if self.weight_power else "")

    def weights(self, flops: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Weight of each point, mean 1 over the kept ones, 0 elsewhere."""
        weights = np.zeros(len(flops))
        weights[kept] = compute_weights(flops[kept], self.weight_power)
        return weights


CANDIDATES = tuple(Candidate(law, huber(), power) for law in (chinchilla, interaction) for power in WEIGHT_POWERS)


@dataclass(frozen=True)
class Choice:
    """What hold-outs inside the points say of each candidate.

    scores: mean absolute log error on the held-out top, [candidates]; NaN where none could be held out.
    win_shares: how often each candidate scores best when the held-out runs are resampled, [candidates], sum 1.
    error_growth: root mean square log error per e-fold of compute beyond the fit; NaN where none could be held out.
    best_index: index of the best score; 0 where none could be held out.
    """

    candidates: tuple[Candidate, ...]
    scores: np.ndarray
    win_shares: np.ndarray
    error_growth: float
    best_index: int

    @property
    def best(self) -> Candidate:
        return self.candidates[self.best_index]

    @property
    def is_scored(self) -> bool:
        return bool(np.isfinite(self.scores).any())

    def to_json(self) -> str:
        return json.dumps(self.facts())

    def facts(self) -> dict[str, Any]:
        rows = zip(self.candidates, self.scores, self.win_shares, strict=True)
        return {
            "chosen": self.best.name,
            "drift": None if np.isnan(self.error_growth) else self.error_growth,
            "candidates": [
                {"name": c.name, "score": float(s) if np.isfinite(s) else None, "wins": float(w)} for c, s, w in rows
            ],
        }


def choose(points: pd.DataFrame, candidates: Sequence[Candidate] = CANDIDATES, *, seed: int = 0) -> Choice:
    """Scores candidates on the top of compute inside the points.

    Where the points are too few for any of them to be held out, the first candidate is taken, and the unweighted ones
    count as equally likely.

    Args:
      points: columns of the laws, flops, the response, and cluster if there (runs of a trunk are resampled together).
    """
    cells = _count_cells(points, np.ones(len(points), bool))
    candidates = tuple(c for c in candidates if len(c.law.parameters) < cells) or tuple(candidates[:1])
    flops = points["flops"].to_numpy(float)
    needed = max(len(candidate.law.parameters) for candidate in candidates) + 1
    masks = {factor: flops <= flops.max() / factor for factor in HOLDOUT_FACTORS}
    masks = {f: kept for f, kept in masks.items() if _count_cells(points, kept) >= needed and not kept.all()}
    if not masks:
        plain = np.array([candidate.weight_power == 0 for candidate in candidates], float)
        return Choice(candidates, np.full(len(candidates), np.nan), plain / max(plain.sum(), 1.0), np.nan, 0)
    errors = {
        f: np.log(p / _response(points, candidates)) for f, p in predict_holdouts(points, candidates, masks).items()
    }
    scored = SCORING_FACTOR if SCORING_FACTOR in masks else min(masks, key=lambda f: abs(f - SCORING_FACTOR))
    held = ~masks[scored]
    each = np.abs(np.nan_to_num(errors[scored][:, held], nan=np.inf))
    scores = each.mean(1)
    wins = win_shares(each, points["cluster"].to_numpy()[held] if "cluster" in points else np.arange(held.sum()), seed)
    near = scores <= NEAR_BEST * scores.min()
    rates = [_error_growth(errors, masks, flops, int(index)) for index in np.flatnonzero(near)]
    return Choice(candidates, scores, wins, float(np.median(rates)), int(np.argmin(scores)))


def predict_holdouts(
    points: pd.DataFrame, candidates: Sequence[Candidate], masks: Mapping[float, np.ndarray]
) -> dict[float, np.ndarray]:
    """Each candidate fitted to the points of each mask: predictions at every point, [candidates, points] a mask."""
    flops = points["flops"].to_numpy(float)
    found = {key: np.full((len(candidates), len(points)), np.nan) for key in masks}
    groups = {(c.law, c.objective): [] for c in candidates}
    for index, candidate in enumerate(candidates):
        groups[candidate.law, candidate.objective].append(index)
    for (law, objective), members in groups.items():
        rows = [(key, index) for key in masks for index in members]
        weights = np.stack([candidates[index].weights(flops, masks[key]) for key, index in rows])
        values, _ = fit_each_weighting(law, points, points[law.response].to_numpy(float), objective, weights)
        predicted = law({name: values[:, [i]] for i, name in enumerate(law.parameters)}, points)
        for (key, index), row in zip(rows, predicted, strict=True):
            found[key][index] = row
    return found


def _response(points: pd.DataFrame, candidates: Sequence[Candidate]) -> np.ndarray:
    return points[candidates[0].law.response].to_numpy(float)


def _count_cells(points: pd.DataFrame, kept: np.ndarray) -> int:
    return len(points.loc[kept, ["params", "tokens"]].drop_duplicates())


def win_shares(each: np.ndarray, cluster: np.ndarray, seed: int) -> np.ndarray:
    """Share of resamples of the held-out runs in which each candidate's mean error is least: [candidates].

    Args:
      each: absolute errors, [candidates, held-out runs].
      cluster: what is resampled whole, one a held-out run.
    """
    generator = np.random.default_rng(seed)
    _, member = np.unique(cluster, return_inverse=True)
    groups = int(member.max()) + 1
    drawn = generator.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)[:, member]
    best = np.argmin(np.where(np.isfinite(each), each, 1e9) @ drawn.T, axis=0)
    return np.bincount(best, minlength=len(each)) / RESAMPLES


def _error_growth(
    errors: Mapping[float, np.ndarray], masks: Mapping[float, np.ndarray], flops: np.ndarray, index: int
) -> float:
    """Root mean square of one candidate's errors over that of their distances in log compute, over every hold-out."""
    error = distance = 0.0
    for factor, kept in masks.items():
        error += float(np.mean(errors[factor][index, ~kept] ** 2))
        distance += float(np.mean(np.log(flops[~kept] / flops[kept].max()) ** 2))
    return float(np.sqrt(error / distance))
