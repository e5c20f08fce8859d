"""Roads from training to accuracy: one law, or two in a row, compared by back-test and drawn together.

A road's last law is fitted to the accuracy itself, never to its logarithm, by squares weighted by the standard error:
runs at or below chance are evidence too, and a logarithm of what is left above chance would drop or magnify them. Not
in the design's list of modules: downstream.py judges tasks, this fits them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import intervals
from analysis.backtest import won
from analysis.fit import Objective, fit_rows, mse, mse_log, refit_from
from analysis.laws import Law, chinchilla
from analysis.laws.accuracy import (
    exponential_error,
    log_centred,
    log_centred_surface,
    sigmoid_accuracy,
    sigmoid_centred,
)

KNOWN = ("flops", "params", "tokens", "chance", "ceiling")  # what is known of a run before it is trained
CUTS = (2.0, 3.0, 5.0, 10.0, 30.0)  # runs above Cmax over these are held out in turn,
MOST_CUTS = 3  # as many of them, from the first, as
LEAST_HELD = 2  # hold out so many runs,
HELD_SHARE = 0.1  # and such a share of all
MISFIT = 0.01  # share of the way from chance to ceiling, closer than which no law is trusted to any accuracy
TINY = 1e-3  # the starts of some laws divide by the response
NOISE_DRAWS = 8  # measurements drawn for each draw of the laws
INSIDE = 1e-4  # how far from 0 and 1 a measurement's mean is kept


@dataclass(frozen=True)
class Step:
    """A law, and the column that it is to predict: `accuracy`, `error` (its rest), or what the next step reads."""

    law: Law
    response: str


@dataclass(frozen=True)
class Road:
    """Laws, one after the other: each reads what is known of a run, and what those before it predicted."""

    name: str
    steps: tuple[Step, ...]
    source: str

    @property
    def parameters(self) -> int:
        return sum(len(step.law.parameters) for step in self.steps)


COMPUTE = Road("compute", (Step(log_centred, "accuracy"),), "one step, arXiv 2512.08894, eq. 2")
SURFACE = Road("params and tokens", (Step(log_centred_surface, "accuracy"),), "one step, arXiv 2512.08894, eq. 4")
_BITS = Step(chinchilla, "bits_per_byte")
BITS = Road(
    "bits, sigmoid from chance to ceiling",
    (_BITS, Step(sigmoid_centred, "accuracy")),
    "two steps, Bhagia et al. 2024, levels held",
)
FREE_BITS = Road("bits, sigmoid", (_BITS, Step(sigmoid_accuracy, "accuracy")), "two steps, Bhagia et al. 2024")
LOSS = Road(
    "loss, exponential",
    (Step(chinchilla, "loss"), Step(exponential_error, "error")),
    "two steps, Gadre et al. 2024, eq. 5",
)
ROADS = (COMPUTE, SURFACE, BITS, FREE_BITS, LOSS)


@dataclass(frozen=True)
class Trial:
    """What hold-outs of the top of compute say of each road.

    scores: mean absolute error of the accuracy of held-out runs, [roads]; NaN where a road had too few runs.
    wins: how often each would be best had the held-out runs been others, [roads], sum 1.
    naive: the error of saying that nothing changes: the mean accuracy of the largest runs seen.
    chosen: index of the best.
    cuts: factors f for which runs above Cmax / f were held out.
    """

    roads: tuple[Road, ...]
    scores: np.ndarray
    wins: np.ndarray
    naive: float
    chosen: int
    cuts: tuple[float, ...]

    @property
    def best(self) -> Road:
        return self.roads[self.chosen]

    @property
    def error(self) -> float:
        return float(self.scores[self.chosen])


@dataclass(frozen=True)
class Drawn:
    """A road with its own values of each step, [1, parameters], and resampled ones, [draws, parameters]."""

    road: Road
    values: tuple[np.ndarray, ...]
    draws: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Model:
    """What accuracies are predicted from: the best road first, and those that might have won.

    dispersion: squared errors of the best road at its points over their variance, the larger of it and 1.
    questions: answers that an accuracy is the mean of; NaN where the table does not tell.
    misfit: variance of an accuracy beside that of its questions.
    """

    members: tuple[Drawn, ...]
    dispersion: float
    questions: float
    misfit: float
    warnings: tuple[str, ...]

    def predict(self, targets: pd.DataFrame) -> np.ndarray:
        """Accuracy by the best road, [targets]. targets: columns flops, params, tokens, chance, ceiling."""
        return predict(self.members[0].road, self.members[0].values, targets)[0]

    def intervals(
        self, targets: pd.DataFrame, level: float, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(low, high) of the law itself, and (low, high) of one measurement of a new run: [targets] each.

        The measurement has the binomial variance of as many questions as the points have, and that of the misfit, times
        the dispersion; its distribution is a beta, so that it ends at 0 and 1.
        """
        spread = np.concatenate([predict(member.road, member.draws, targets) for member in self.members])
        spread = spread[np.isfinite(spread).all(1)]
        centre = self.predict(targets)
        mean = np.clip(np.tile(spread, (NOISE_DRAWS, 1)), INSIDE, 1 - INSIDE)
        ends = mean * (1 - mean)
        binomial = ends / self.questions if np.isfinite(self.questions) else 0.0
        size = np.maximum(ends / (self.dispersion * (binomial + self.misfit)) - 1, INSIDE)
        seen = np.random.default_rng(seed).beta(mean * size, (1 - mean) * size)
        (low, high), (least, most) = (intervals.central(part, level) for part in (spread, seen))
        return np.minimum(low, centre), np.maximum(high, centre), np.minimum(least, centre), np.maximum(most, centre)


def fit(road: Road, points: pd.DataFrame, kept: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each step fitted cold to each row of kept runs: [rows, parameters] a step.

    Args:
      points: columns KNOWN, those that the steps predict, and their weights as `<column>_weight`.
      kept: [rows, points], 1 or how often a run counts, 0 to leave it out.
    """
    return tuple(
        fit_rows(step.law, points, _response(step, points), _objective(step), kept * _weight(step, points))[0]
        for step in road.steps
    )


def predict(road: Road, values: Sequence[np.ndarray], targets: pd.DataFrame) -> np.ndarray:
    """Accuracies between 0 and the ceiling, [rows, targets], of values [rows, parameters] a step."""
    known: dict[str, np.ndarray] = {name: targets[name].to_numpy(float) for name in KNOWN}
    for step, rows in zip(road.steps, values, strict=True):
        named = {name: rows[:, [i]] for i, name in enumerate(step.law.parameters)}
        known[step.response] = step.law(named, known)
    accuracy = 1 - known["error"] if "error" in known else known["accuracy"]
    return np.clip(accuracy, 0.0, known["ceiling"])


def feasible(roads: Sequence[Road], points: pd.DataFrame, kept: np.ndarray | None = None) -> tuple[Road, ...]:
    """Roads whose columns the points have, with more distinct cells than parameters at every step."""
    rows = points if kept is None else points[kept]
    return tuple(road for road in roads if all(_enough(step, rows) for step in road.steps))


def _enough(step: Step, rows: pd.DataFrame) -> bool:
    needed = [name for name in (*step.law.columns, step.response) if name != "error"]
    if not all(name in rows and rows[name].notna().all() for name in needed):
        return False
    return len(rows[list(step.law.columns)].drop_duplicates()) > len(step.law.parameters)


def trial(points: pd.DataFrame, roads: Sequence[Road], *, seed: int = 0) -> Trial:
    """Roads scored on tops of compute held out in turn, each fitted to the rest: the three smallest that hold enough.

    Where no cut leaves enough runs, the road with the fewest parameters is taken, unscored.
    """
    flops = points["flops"].to_numpy(float)
    cuts = {factor: flops <= flops.max() / factor for factor in CUTS}
    least = max(LEAST_HELD, int(HELD_SHARE * len(points)))
    able = {f: feasible(roads, points, kept) for f, kept in cuts.items() if np.sum(~kept) >= least}
    most = max(able.values(), key=len, default=())
    used = tuple(f for f, found in able.items() if found == most)[:MOST_CUTS]
    if not most:
        fewest = int(np.argmin([road.parameters for road in roads]))
        nothing = np.full(len(roads), np.nan)
        return Trial(tuple(roads), nothing, np.eye(len(roads))[fewest], np.nan, fewest, ())
    accuracy = points["accuracy"].to_numpy()
    kept = np.stack([cuts[f] for f in used])
    share = np.where(kept, 0.0, 1 / np.sum(~kept, axis=1, keepdims=True)) / len(used)
    scored = [road in most for road in roads]
    each = np.full((len(roads), len(points)), np.inf)
    for index in np.flatnonzero(scored).tolist():
        off = np.abs(predict(roads[index], fit(roads[index], points, kept.astype(float)), points) - accuracy)
        each[index] = np.sum(share * np.nan_to_num(off, nan=1.0), axis=0)
    scores = np.where(scored, each.sum(1), np.nan)
    held = share.sum(0) > 0
    top = [row & (flops > flops[row].max() / 3) for row in kept]
    steady = np.array([accuracy[seen].mean() for seen in top])
    naive = float(np.sum(share * np.abs(steady[:, None] - accuracy)))
    wins = won(each[:, held], points["cluster"].to_numpy()[held], seed)
    return Trial(tuple(roads), scores, wins, naive, int(np.nanargmin(scores)), used)


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
    return Model(tuple(members), dispersion, questions, misfit, tuple(dict.fromkeys(notes)))


def drawn(road: Road, points: pd.DataFrame, draws: int, seed: int) -> tuple[Drawn, str]:
    """A road fitted to points and to resamples of their trunks, and a warning where those are too few for that."""
    values = fit(road, points, np.ones((1, len(points))))
    widest = max((step.law for step in road.steps), key=lambda law: len(law.parameters))
    unit, note = intervals.clusters(points, len(widest.parameters))
    parts: list[tuple[np.ndarray, ...]] = []
    for times in intervals.resampled(points, widest, unit, draws=draws, seed=seed):
        parts.append(tuple(_again(step, start, points, times) for step, start in zip(road.steps, values, strict=True)))
    return Drawn(road, values, tuple(np.concatenate(rows) for rows in zip(*parts, strict=True))), note


def _again(step: Step, start: np.ndarray, points: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    starts = np.repeat(start, len(times), axis=0)
    weights = times * _weight(step, points)
    return refit_from(step.law, _objective(step), starts, points, _response(step, points), weights)[0]


def _response(step: Step, points: pd.DataFrame) -> np.ndarray:
    """What the step is fitted to; a share of exactly zero is moved up by less than any measurement resolves."""
    return np.maximum(points[step.response].to_numpy(float), TINY)


def _objective(step: Step) -> Objective:
    return mse if step.response in ("accuracy", "error") else mse_log


def _weight(step: Step, points: Mapping[str, pd.Series] | pd.DataFrame) -> np.ndarray:
    name = "accuracy" if step.response == "error" else step.response
    return np.asarray(points[f"{name}_weight"], float)
