"""Which road to accuracy to believe: a back-test among them, and what they predict together.

Not in the design's list of modules: roads.py fits one, this chooses among several, as backtest.py does for losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.downstream.accuracy_models import Drawn, Road, drawn, feasible, fit, predict
from analysis.downstream.trend import visible
from analysis.fitting import bootstrap
from analysis.forecasting.law_choice import win_shares

CUTS = (2.0, 3.0, 5.0, 10.0, 30.0)  # runs above Cmax over these are held out in turn,
MOST_CUTS = 3  # as many of them, from the first, as
LEAST_HELD = 2  # hold out so many runs,
HELD_SHARE = 0.1  # and such a share of all
MISFIT = 0.01  # share of the way from chance to ceiling, closer than which no law is trusted to any accuracy
NOISE_DRAWS = 8  # measurements drawn for each draw of the laws
INSIDE = 1e-4  # how far from 0 and 1 a measurement's mean is kept


@dataclass(frozen=True)
class Trial:
    """What hold-outs of the top of compute say of each road.

    scores: mean absolute error of the accuracy of held-out runs, [roads]; NaN where a road had too few runs.
    wins: how often each would be best had the held-out runs been others, [roads], sum 1.
    naive: the error of saying that nothing changes: the mean accuracy of the largest runs seen.
    drift: root mean square error of the best road, measurement apart, per e-fold of compute beyond the runs it saw; 0
      where none could be held out.
    chosen: index of the best.
    cuts: factors f for which runs above Cmax / f were held out.
    """

    roads: tuple[Road, ...]
    scores: np.ndarray
    wins: np.ndarray
    naive: float
    drift: float
    chosen: int
    cuts: tuple[float, ...]

    @property
    def best(self) -> Road:
        return self.roads[self.chosen]

    @property
    def error(self) -> float:
        return float(self.scores[self.chosen])


@dataclass(frozen=True)
class Model:
    """What accuracies are predicted from: the best road first, and those that might have won.

    dispersion: squared errors of the best road at its points over their variance, the larger of it and 1.
    questions: answers that an accuracy is the mean of; NaN where the table does not tell.
    misfit: variance of an accuracy beside that of its questions.
    drift, limit: what the back-test missed by, per e-fold of compute beyond `limit`, the largest run.
    """

    members: tuple[Drawn, ...]
    dispersion: float
    questions: float
    misfit: float
    drift: float
    limit: float
    warnings: tuple[str, ...]

    def predict(self, targets: pd.DataFrame) -> np.ndarray:
        """Accuracy by the best road, [targets]. targets: columns flops, params, tokens, chance, ceiling."""
        return predict(self.members[0].road, self.members[0].values, targets)[0]

    def intervals(
        self, targets: pd.DataFrame, level: float, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(low, high) of the law itself, and (low, high) of one measurement of a new run: [targets] each.

        Beyond the largest run, the draws are spread to what the back-test missed by, where they are closer together.
        The measurement has the binomial variance of as many questions as the points have, and that of the misfit, times
        the dispersion; its distribution is a beta, so that it ends at 0 and 1.
        """
        spread = np.concatenate([predict(member.road, member.draws, targets) for member in self.members])
        spread = self._spread_further(spread[np.isfinite(spread).all(1)], targets, seed)
        centre = self.predict(targets)
        mean = np.clip(np.tile(spread, (NOISE_DRAWS, 1)), INSIDE, 1 - INSIDE)
        ends = mean * (1 - mean)
        binomial = ends / self.questions if np.isfinite(self.questions) else 0.0
        size = np.maximum(ends / (self.dispersion * (binomial + self.misfit)) - 1, INSIDE)
        seen = np.random.default_rng(seed).beta(mean * size, (1 - mean) * size)
        (low, high), (least, most) = (bootstrap.central_interval(part, level) for part in (spread, seen))
        return np.minimum(low, centre), np.maximum(high, centre), np.minimum(least, centre), np.maximum(most, centre)

    def _spread_further(self, spread: np.ndarray, targets: pd.DataFrame, seed: int) -> np.ndarray:
        further = np.maximum(np.log(targets["flops"].to_numpy(float) / self.limit), 0.0)
        lacking = np.sqrt(np.maximum((self.drift * further) ** 2 - spread.var(0), 0.0))
        moved = spread + lacking * np.random.default_rng(seed).normal(size=(len(spread), 1))
        return np.clip(moved, 0.0, targets["ceiling"].to_numpy(float))


def trial(points: pd.DataFrame, roads: Sequence[Road], *, seed: int = 0) -> Trial:
    """Roads scored on tops of compute held out in turn, each fitted to the rest: the three smallest that hold enough.

    A cut leaves enough when the runs below it still show a rise, since nobody would forecast one from runs that show
    none. Where no cut does, the road with the fewest parameters is taken, unscored, and all are as likely.
    """
    flops = points["flops"].to_numpy(float)
    cuts = {factor: flops <= flops.max() / factor for factor in CUTS}
    least = max(LEAST_HELD, int(HELD_SHARE * len(points)))
    fair = {f: kept for f, kept in cuts.items() if np.sum(~kept) >= least and np.sum(kept) > LEAST_HELD}
    able = {f: feasible(roads, points, kept) for f, kept in fair.items() if visible(points[kept])}
    most = max(able.values(), key=len, default=())
    used = tuple(f for f, found in able.items() if found == most)[:MOST_CUTS]
    if not most:
        fewest = int(np.argmin([road.parameters for road in roads]))
        nothing = np.full(len(roads), np.nan)
        return Trial(tuple(roads), nothing, np.full(len(roads), 1 / len(roads)), np.nan, 0.0, fewest, ())
    accuracy = points["accuracy"].to_numpy()
    kept = np.stack([cuts[f] for f in used])
    share = np.where(kept, 0.0, 1 / np.sum(~kept, axis=1, keepdims=True)) / len(used)
    off = np.full((len(roads), *kept.shape), np.inf)
    for index in (index for index, road in enumerate(roads) if road in most):
        predicted = predict(roads[index], fit(roads[index], points, kept.astype(float)), points)
        off[index] = np.nan_to_num(np.abs(predicted - accuracy), nan=1.0)
    each = np.sum(np.where(share > 0, share * np.where(share > 0, off, 0.0), 0.0), axis=1)
    each[~np.isfinite(off).all((1, 2))] = np.inf
    scores = np.where(np.isfinite(each).all(1), each.sum(1), np.nan)
    chosen = int(np.nanargmin(scores))
    held = share.sum(0) > 0
    top = [row & (flops > flops[row].max() / 3) for row in kept]
    steady = np.array([accuracy[seen].mean() for seen in top])
    naive = float(np.sum(share * np.abs(steady[:, None] - accuracy)))
    wins = win_shares(each[:, held], points["cluster"].to_numpy()[held], seed)
    noise = np.asarray(points["standard_error"], float) ** 2 if "standard_error" in points else 0.0
    missed = np.sum(np.where(kept, 0.0, share * (off[chosen] ** 2 - noise)))
    further = np.log(flops / np.array([[flops[row].max()] for row in kept]))
    drift = np.sqrt(max(missed, 0.0) / np.sum(share * further**2))
    return Trial(tuple(roads), scores, wins, naive, float(drift), chosen, used)


def model(points: pd.DataFrame, found: Trial, *, questions: float, draws: int = 400, seed: int = 0) -> Model:
    """Every road that ever won, fitted to all points and to resamples of their trunks, the same in all its steps."""
    shares = found.wins.copy()
    shares[found.chosen] = max(shares[found.chosen], shares.max())
    counts = np.round(draws * shares / shares.sum()).astype(int)
    counts[found.chosen] = max(counts[found.chosen], 2)
    order = sorted(np.flatnonzero(counts), key=lambda index: index != found.chosen)
    members, notes = [], []
    for index in order:
        member, note = drawn(found.roads[index], points, int(counts[index]), seed)
        members.append(member)
        notes += [note] if note else []
    best = members[0]
    missed = points["accuracy"].to_numpy() - predict(best.road, best.values, points)[0]
    freedom = max(len(points) - best.road.parameters, 1)
    misfit = float((MISFIT * (points["ceiling"] - points["chance"]).iloc[0]) ** 2)
    errors = np.asarray(points["standard_error"], float) if "standard_error" in points else np.zeros(len(points))
    dispersion = max(float(np.sum(missed**2 / (errors**2 + misfit)) / freedom), 1.0)
    notes += [] if found.cuts else ["no back-test: no cut in compute leaves enough runs that rise; every law counts"]
    notes += [f"bound hit: {name}; the runs ask for a value outside the law's range" for name in _bounds_hit(best)]
    limit = float(points["flops"].max())
    return Model(tuple(members), dispersion, questions, misfit, found.drift, limit, tuple(dict.fromkeys(notes)))


def _bounds_hit(own: Drawn) -> list[str]:
    return [
        name
        for step, rows in zip(own.road.steps, own.values, strict=True)
        for name, value in zip(step.law.parameters, rows[0], strict=True)
        if any(abs(value - bound) <= 1e-6 * abs(bound) for bound in step.law.bounds[name])
    ]
