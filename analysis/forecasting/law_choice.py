"""The choice of a law by back-test inside the points of a fit.

The runs of largest compute are held out. Every candidate (a law, an objective, and a weighting towards large compute)
is fitted to the rest and scored by its mean error on them; the best is then fitted to all points. The interval of its
forecasts (prediction_intervals) needs two more results: how often each candidate would have been best had the held-out
runs been others (a bootstrap), and how fast the errors grew with compute beyond the fit.

The settings (hold out the top 3x of compute; candidates; weightings) are ours. LOG.md says what else was tried, and
docs/coverage.md gives errors and coverage on every public table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting.fit import Objective, compute_weights, fit_each_weighting, huber, searched_points
from analysis.fitting.newton import LARGE_TABLE
from analysis.laws import Law, chinchilla
from analysis.laws.surface import interaction
from analysis.tables import results
from analysis.tables.cells import extend_to_cells

SCORING_FACTOR = 3.0  # candidates are scored on the runs above Cmax / 3
HOLDOUT_FACTORS = (2.0, 3.0, 5.0)  # runs above Cmax over each of these are held out in turn, to see how errors grow
NEAR_BEST = 2.0  # the error growth is the median over candidates whose score is within this factor of the best
RESAMPLES = 400  # of the held-out runs
WEIGHT_POWERS = (0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Candidate:
    """A law, its objective, and the power of compute by which its points are weighted."""

    law: Law
    objective: Objective
    weight_power: float

    @property
    def name(self) -> str:
        """The candidate in words, such as "chinchilla huber C^1"; no power where points weigh alike."""
        return f"{self.law.name} {self.objective.name}" + (f" C^{self.weight_power:g}" if self.weight_power else "")

    def weights(self, flops: np.ndarray, is_fitted: np.ndarray) -> np.ndarray:
        """Weight of each point, [points]: mean 1 over those that `is_fitted` marks, 0 on the others."""
        weights = np.zeros(len(flops))
        weights[is_fitted] = compute_weights(flops[is_fitted], self.weight_power)
        return weights


CANDIDATES = tuple(Candidate(law, huber(), power) for law in (chinchilla, interaction) for power in WEIGHT_POWERS)


@dataclass(frozen=True)
class Choice:
    """The results of the back-test, with the candidates in their order.

    scores: mean absolute log error on the held-out runs, [candidates]; NaN where no run could be held out.
    win_shares: share of resamples of the held-out runs in which each candidate scores best, [candidates], sum 1.
    error_growth: root mean square log error per e-fold of compute beyond the fit; NaN where no run could be held out.
    best_index: index of the best score; 0 where no run could be held out.
    """

    candidates: tuple[Candidate, ...]
    scores: np.ndarray
    win_shares: np.ndarray
    error_growth: float
    best_index: int

    @property
    def best(self) -> Candidate:
        """The candidate of the best score."""
        return self.candidates[self.best_index]

    @property
    def is_scored(self) -> bool:
        """Whether any run could be held out."""
        return bool(np.isfinite(self.scores).any())

    def to_json(self) -> str:
        """`facts` as text."""
        return json.dumps(self.facts())

    def facts(self) -> dict[str, Any]:
        """The results as JSON, under the keys that fit.json has."""
        rows = zip(self.candidates, self.scores, self.win_shares, strict=True)
        return {
            "chosen": self.best.name,
            "drift": None if np.isnan(self.error_growth) else self.error_growth,
            "candidates": [
                {"name": c.name, "score": float(s) if np.isfinite(s) else None, "wins": float(w)} for c, s, w in rows
            ],
        }


def choose(points: pd.DataFrame, candidates: Sequence[Candidate] = CANDIDATES, *, seed: int = 0) -> Choice:
    """Scores candidates on the points of largest compute and chooses the best.

    Candidates with too many parameters for the points are left out. Where no run can be held out, the first candidate
    is chosen, and the unweighted ones get equal shares of wins. Of a large table, a random sample is back-tested.

    Args:
      points: the laws' columns, flops, the response, and optionally cluster (runs of one trunk are resampled together).
      seed: of the resampling of held-out runs.
    """
    points = points.iloc[searched_points(len(points))].reset_index(drop=True) if len(points) > LARGE_TABLE else points
    num_cells = _count_cells(points, np.ones(len(points), bool))
    candidates = tuple(c for c in candidates if len(c.law.parameters) < num_cells) or tuple(candidates[:1])
    flops = points["flops"].to_numpy(float)
    # For each factor, the points to fit: those of at most Cmax / factor, if they determine every candidate.
    needed = max(len(candidate.law.parameters) for candidate in candidates) + 1
    beyond = {factor: flops > flops.max() / factor for factor in HOLDOUT_FACTORS}
    masks = {f: ~extend_to_cells(points, is_beyond, results.SURFACE_COLUMNS) for f, is_beyond in beyond.items()}
    masks = {
        f: is_fitted
        for f, is_fitted in masks.items()
        if _count_cells(points, is_fitted) >= needed and not is_fitted.all()
    }
    if not masks:
        unweighted = np.array([candidate.weight_power == 0 for candidate in candidates], float)
        shares = unweighted / max(unweighted.sum(), 1.0)
        return Choice(candidates, np.full(len(candidates), np.nan), shares, np.nan, 0)
    errors = {
        f: np.log(p / _response(points, candidates)) for f, p in predict_holdouts(points, candidates, masks).items()
    }
    scoring_factor = SCORING_FACTOR if SCORING_FACTOR in masks else min(masks, key=lambda f: abs(f - SCORING_FACTOR))
    held_out = beyond[scoring_factor]
    absolute_errors = np.abs(np.nan_to_num(errors[scoring_factor][:, held_out], nan=np.inf))  # [candidates, held out]
    scores = absolute_errors.mean(1)
    cluster = points["cluster"].to_numpy()[held_out] if "cluster" in points else np.arange(held_out.sum())
    near_best = np.flatnonzero(scores <= NEAR_BEST * scores.min())
    growth = float(np.median([_error_growth(errors, masks, beyond, flops, int(index)) for index in near_best]))
    shares = win_shares(absolute_errors, cluster, seed)
    return Choice(candidates, scores, shares, growth, int(np.argmin(scores)))


def predict_holdouts(
    points: pd.DataFrame, candidates: Sequence[Candidate], masks: Mapping[float, np.ndarray]
) -> dict[float, np.ndarray]:
    """Fits each candidate to the points of each mask; predictions at all points, [candidates, points] for each mask."""
    flops = points["flops"].to_numpy(float)
    predictions = {key: np.full((len(candidates), len(points)), np.nan) for key in masks}
    groups = {(c.law, c.objective): [] for c in candidates}
    for index, candidate in enumerate(candidates):
        groups[candidate.law, candidate.objective].append(index)
    for (law, objective), members in groups.items():  # one batch of fits for each law and objective
        rows = [(key, index) for key in masks for index in members]
        weights = np.stack([candidates[index].weights(flops, masks[key]) for key, index in rows])
        values, _ = fit_each_weighting(law, points, points[law.response].to_numpy(float), objective, weights)
        predicted = law({name: values[:, [i]] for i, name in enumerate(law.parameters)}, points)
        for (key, index), row in zip(rows, predicted, strict=True):
            predictions[key][index] = row
    return predictions


def _response(points: pd.DataFrame, candidates: Sequence[Candidate]) -> np.ndarray:
    return points[candidates[0].law.response].to_numpy(float)


def _count_cells(points: pd.DataFrame, is_fitted: np.ndarray) -> int:
    """Number of distinct (params, tokens) among the points that `is_fitted` marks."""
    return len(points.loc[is_fitted, ["params", "tokens"]].drop_duplicates())


def win_shares(errors: np.ndarray, cluster: np.ndarray, seed: int) -> np.ndarray:
    """Share of bootstrap resamples of the held-out runs in which each candidate's mean error is least: [candidates].

    Args:
      errors: absolute log errors, [candidates, held-out runs].
      cluster: cluster of each held-out run, resampled whole, [held-out runs].
      seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    _, member = np.unique(cluster, return_inverse=True)
    groups = int(member.max()) + 1
    # How often each run is drawn, [resamples, runs]; the candidate of least total error has the least mean.
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)[:, member]
    best = np.argmin(np.where(np.isfinite(errors), errors, 1e9) @ counts.T, axis=0)
    return np.bincount(best, minlength=len(errors)) / RESAMPLES


def _error_growth(
    errors: Mapping[float, np.ndarray],
    masks: Mapping[float, np.ndarray],
    beyond: Mapping[float, np.ndarray],
    flops: np.ndarray,
    index: int,
) -> float:
    """Error growth of one candidate over all hold-outs, per e-fold of compute.

    It is the root mean square of the log errors divided by that of the distances, in log compute, of the held-out runs
    from the largest fitted run.
    """
    error = distance = 0.0
    for factor, is_fitted in masks.items():
        held_out = beyond[factor]
        error += float(np.mean(errors[factor][index, held_out] ** 2))
        distance += float(np.mean(np.log(flops[held_out] / flops[is_fitted].max()) ** 2))
    return float(np.sqrt(error / distance))
