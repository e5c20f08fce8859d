"""Does a task say anything of these models: is its spread more than its noise, and does its accuracy rise with compute?

Not in the design's list of modules: downstream.py fits laws, and this says which tasks have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, studentized_range

Verdict = Literal["rises", "saturated", "no trend", "too noisy"]

SIGNIFICANCE = 0.05  # how often noise alone passes either test
MAX_PERMUTATIONS = 1999  # orders of the runs tried at most
MAX_PAIR_COMPARISONS = 2e8  # comparisons of pairs made at most
MAX_HIDDEN_RISE = (
    0.25  # share of the way from chance to ceiling: a rise that a test may not miss and still say "no trend"
)
SATURATED_SHARE = 0.95  # mean share of that way over the top of compute, at which a task has nothing more to tell
TOP_FACTOR = 3.0  # the top of compute: above Cmax / 3
LAST_CHECKPOINTS = 5  # checkpoints of a run whose scatter is its noise
MIN_DEGREES_OF_FREEDOM = 3  # degrees of freedom that a scatter needs to be believed
NOISE_UNKNOWN = "the table has no standard errors, and too few seeds of one cell"


@dataclass(frozen=True)
class Trend:
    """The verdict on one task and the two tests behind it. Accuracies are shares of right answers.

    signal: highest minus lowest accuracy of the runs.
    noise: standard deviation of one run's accuracy, the largest of the estimates that the table allows; NaN if unknown.
    noise_source: which estimate that is.
    ratio_needed: signal over noise that as many equally good models exceed in one table out of 20.
    tau: Kendall's tau-b of accuracy with training FLOPs.
    p: share of random orders of the runs with a tau at least as high.
    """

    verdict: Verdict
    reason: str
    signal: float
    noise: float
    noise_source: str
    ratio_needed: float
    tau: float
    p: float

    @property
    def ratio(self) -> float:
        """Signal over noise; NaN where the noise is unknown."""
        return self.signal / self.noise


def judge(points: pd.DataFrame, checkpoints: pd.DataFrame | None = None, *, seed: int = 0) -> Trend:
    """The verdict on one task.

    Signal and noise are those of Heineman et al. 2025 ("Signal and Noise"): the largest difference between models, over
    the standard deviation of one. Theirs divides both by the mean accuracy, which cancels. Their noise is the scatter
    of a run's last checkpoints; here it is the largest of the measurement's standard error, that scatter, and the
    scatter of seeds. The threshold is ours: the studentised range of as many equally good models. Where the table tells
    of no noise, the order of the runs alone decides.

    Args:
      points: columns flops, params, tokens, settings (alike for seeds of a cell), cluster, accuracy, standard_error,
        chance, ceiling.
      checkpoints: columns run_id, tokens, accuracy of the same task at several checkpoints of some runs.
    """
    accuracy, flops = points["accuracy"].to_numpy(), points["flops"].to_numpy()
    noise, noise_source = _largest_noise(points, checkpoints)
    signal = float(np.ptp(accuracy))
    needed = _ratio_needed(len(points))
    tau, p, p_falls = kendall_test(flops, accuracy, points["cluster"].to_numpy(), seed=seed)
    trend = Trend("rises", "", signal, noise, noise_source, needed, tau, p)
    room = float((points["ceiling"] - points["chance"]).iloc[0])
    verdict, reason = _verdict(trend, points, room, p_falls)
    reason += "" if np.isfinite(noise) else f"; noise unknown: {NOISE_UNKNOWN}"
    return Trend(verdict, reason, signal, noise, noise_source, needed, tau, p)


def _verdict(trend: Trend, points: pd.DataFrame, room: float, p_falls: float) -> tuple[Verdict, str]:
    share = ((points["accuracy"] - points["chance"]) / room).to_numpy()
    top = points["flops"].to_numpy() > points["flops"].max() / TOP_FACTOR
    order = f"Kendall's tau {trend.tau:+.2f}, p = {trend.p:.2g}"
    weak = trend.ratio < trend.ratio_needed
    spread = f"spread {trend.signal:.3f} is {trend.ratio:.1f} times the noise, {trend.ratio_needed:.1f} needed"
    if share.max() <= 0:
        return "no trend", "no run is above chance"
    if share[top].mean() >= SATURATED_SHARE:
        return "saturated", f"the largest runs are at {share[top].mean():.0%} of the way from chance to the ceiling"
    if trend.p >= SIGNIFICANCE:
        hidden = trend.ratio_needed * trend.noise / room
        if weak and hidden > MAX_HIDDEN_RISE:
            return "too noisy", f"{spread}; noise could hide a rise of {hidden:.0%} of the way from chance to ceiling"
        falls = "accuracy falls with compute" if p_falls < SIGNIFICANCE else "accuracy does not rise with compute"
        return "no trend", f"{falls}: {order}"
    if weak:
        return "too noisy", f"{spread}; {order}"
    return "rises", order


def rise_is_visible(points: pd.DataFrame) -> bool:
    """Whether a rise can be seen in some of a task's runs, by quicker tests than those of a verdict: their spread, and
    the usual approximation of Kendall's test."""
    accuracy = points["accuracy"].to_numpy()
    noise, _ = _largest_noise(points, None)
    found = kendalltau(points["flops"].to_numpy(), accuracy, alternative="greater")
    weak = np.ptp(accuracy) <= _ratio_needed(len(points)) * noise  # not where the noise is unknown
    return bool(not weak and found.pvalue < SIGNIFICANCE)


def _ratio_needed(models: int) -> float:
    """What the spread of so many equally good models exceeds once in 20 tables, over their noise."""
    return float(studentized_range.ppf(1 - SIGNIFICANCE, models, np.inf))


def kendall_test(
    flops: np.ndarray, accuracy: np.ndarray, cluster: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float]:
    """(tau-b of accuracy with compute; shares of random orders with at least as much, and with at most as much).

    Runs of one trunk share its luck, so an order is made by exchanging whole trunks of one length, and then the runs
    within each: what would be as likely if compute did nothing. The count includes the order at hand.
    """
    signs_x, signs_y = (np.sign(np.subtract.outer(v, v)).astype(np.float32) for v in (flops, accuracy))
    scale = float(np.sqrt((signs_x**2).sum() * (signs_y**2).sum()))
    if scale == 0:
        return 0.0, 1.0, 1.0
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(cluster == name) for name in pd.unique(cluster)]
    seen = float((signs_x * signs_y).sum())
    repeats = int(np.clip(MAX_PAIR_COMPARISONS / len(flops) ** 2, 199, MAX_PERMUTATIONS))
    orders = _permutations(generator, members, len(flops), repeats)
    drawn = np.array([np.vdot(signs_x, signs_y[np.ix_(order, order)]) for order in orders])
    near = 1e-6 * scale
    at_least, at_most = np.sum(drawn >= seen - near), np.sum(drawn <= seen + near)
    return seen / scale, float(1 + at_least) / (1 + repeats), float(1 + at_most) / (1 + repeats)


def _permutations(generator: np.random.Generator, members: list[np.ndarray], count: int, repeats: int) -> np.ndarray:
    """Which run's accuracy each run is given, [repeats, runs]."""
    orders = np.empty((repeats, count), int)
    for length in sorted({len(runs) for runs in members}):
        alike = np.stack([runs for runs in members if len(runs) == length])
        whole = generator.permuted(np.tile(np.arange(len(alike)), (repeats, 1)), axis=1)
        orders[:, alike] = generator.permuted(alike[whole], axis=2)
    return orders


def _largest_noise(points: pd.DataFrame, checkpoints: pd.DataFrame | None) -> tuple[float, str]:
    """The largest of what is known of the standard deviation of one run's accuracy, and what it is; NaN where nothing
    is."""
    known = {"standard error": float(np.median(points["standard_error"])) if "standard_error" in points else 0.0}
    cells = points.groupby([name for name in ("params", "tokens", "settings") if name in points])["accuracy"]
    known["scatter of seeds"] = _pooled_deviation([group.to_numpy() for _, group in cells])
    if checkpoints is not None and len(checkpoints):
        runs = checkpoints.sort_values("tokens", kind="stable").groupby("run_id")
        known["scatter of checkpoints"] = _pooled_deviation(
            [_detrend(run.tail(LAST_CHECKPOINTS)) for _, run in runs], 2
        )
    name = max(known, key=lambda key: known[key])
    return (known[name], name) if known[name] > 0 else (np.nan, "unknown")


def _detrend(run: pd.DataFrame) -> np.ndarray:
    """Accuracy less a straight line in log tokens."""
    x, y = np.log(run["tokens"].to_numpy(float)), run["accuracy"].to_numpy(float)
    return y - np.polyval(np.polyfit(x, y, 1), x) if len(np.unique(x)) > 2 else np.zeros(0)


def _pooled_deviation(groups: list[np.ndarray], used: int = 1) -> float:
    """Standard deviation within groups, each of which has spent `used` degrees of freedom; 0 where too few are left."""
    freedom = sum(max(len(group) - used, 0) for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group) > used)
    return float(np.sqrt(squares / freedom)) if freedom >= MIN_DEGREES_OF_FREEDOM else 0.0
