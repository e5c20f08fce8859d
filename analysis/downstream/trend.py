"""Tests of one task before any law: does its spread exceed its noise, and does its accuracy rise with compute?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, studentized_range

Verdict = Literal["rises", "saturated", "no trend", "too noisy"]

SIGNIFICANCE = 0.05  # level of both tests: how often noise alone passes one
MAX_PERMUTATIONS = 1999  # most random orders of the runs
MAX_PAIR_COMPARISONS = 2e8  # most comparisons of two runs over all random orders
# "no trend" is said only if noise could hide no larger rise than this share of the way from chance to ceiling
MAX_HIDDEN_RISE = 0.25
SATURATED_SHARE = 0.95  # mean share of that way, over the largest runs, from which a task is saturated
TOP_FACTOR = 3.0  # the largest runs: those above the largest compute over this
LAST_CHECKPOINTS = 5  # checkpoints at the end of a run whose scatter estimates its noise
MIN_DEGREES_OF_FREEDOM = 3  # fewest degrees of freedom of a scatter that counts
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
        """Signal over noise; NaN if the noise is unknown."""
        return self.signal / self.noise


def judge(points: pd.DataFrame, checkpoints: pd.DataFrame | None = None, *, seed: int = 0) -> Trend:
    """Gives the verdict on one task, from its signal over noise and the rank correlation of accuracy with compute.

    Signal and noise are those of Heineman et al. 2025 ("Signal and Noise"): the largest difference between models, and
    the standard deviation of one model. They divide both by the mean accuracy, which cancels. Their noise is the
    scatter of a run's last checkpoints; here it is the largest of the measurement's standard error, that scatter, and
    the scatter of seeds. The threshold is the 95 % point of the studentised range of as many equally good models. If
    the table tells nothing of the noise, the rank correlation alone decides.

    Args:
      points: columns flops, params, tokens, settings (equal for seeds of a cell), cluster, accuracy, standard_error,
        chance, ceiling.
      checkpoints: columns run_id, tokens, accuracy of the same task at several checkpoints of some runs.
    """
    accuracy, flops = points["accuracy"].to_numpy(), points["flops"].to_numpy()
    noise, noise_source = _largest_noise(points, checkpoints)
    signal = float(np.ptp(accuracy))
    needed = _ratio_needed(len(points))
    tau, p, p_falls = kendall_test(flops, accuracy, points["cluster"].to_numpy(), seed=seed)
    trend = Trend("rises", "", signal, noise, noise_source, needed, tau, p)
    chance_to_ceiling = float((points["ceiling"] - points["chance"]).iloc[0])
    verdict, reason = _verdict(trend, points, chance_to_ceiling, p_falls)
    reason += "" if np.isfinite(noise) else f"; noise unknown: {NOISE_UNKNOWN}"
    return Trend(verdict, reason, signal, noise, noise_source, needed, tau, p)


def _verdict(trend: Trend, points: pd.DataFrame, chance_to_ceiling: float, p_falls: float) -> tuple[Verdict, str]:
    """(verdict, reason). p_falls: share of random orders of the runs with a tau at most as high."""
    share = ((points["accuracy"] - points["chance"]) / chance_to_ceiling).to_numpy()
    is_largest = points["flops"].to_numpy() > points["flops"].max() / TOP_FACTOR
    order = f"Kendall's tau {trend.tau:+.2f}, p = {trend.p:.2g}"
    is_noisy = trend.ratio < trend.ratio_needed  # False if the noise is unknown
    spread = f"spread {trend.signal:.3f} is {trend.ratio:.1f} times the noise, {trend.ratio_needed:.1f} needed"
    if share.max() <= 0:
        return "no trend", "no run is above chance"
    if share[is_largest].mean() >= SATURATED_SHARE:
        return (
            "saturated",
            f"the largest runs are at {share[is_largest].mean():.0%} of the way from chance to the ceiling",
        )
    if trend.p >= SIGNIFICANCE:
        hidden_rise = trend.ratio_needed * trend.noise / chance_to_ceiling
        if is_noisy and hidden_rise > MAX_HIDDEN_RISE:
            return (
                "too noisy",
                f"{spread}; noise could hide a rise of {hidden_rise:.0%} of the way from chance to ceiling",
            )
        falls = "accuracy falls with compute" if p_falls < SIGNIFICANCE else "accuracy does not rise with compute"
        return "no trend", f"{falls}: {order}"
    if is_noisy:
        return "too noisy", f"{spread}; {order}"
    return "rises", order


def rise_is_visible(points: pd.DataFrame) -> bool:
    """Whether some of a task's runs show a rise, by quicker tests than those of a verdict.

    The spread must exceed the noise if that is known, and scipy's p-value of Kendall's tau must be below SIGNIFICANCE.
    """
    accuracy = points["accuracy"].to_numpy()
    noise, _ = _largest_noise(points, None)
    correlation = kendalltau(points["flops"].to_numpy(), accuracy, alternative="greater")
    is_noisy = np.ptp(accuracy) <= _ratio_needed(len(points)) * noise  # False if the noise is unknown
    return bool(not is_noisy and correlation.pvalue < SIGNIFICANCE)


def _ratio_needed(models: int) -> float:
    """Spread over noise that this many equally good models exceed in one table out of 20 (studentised range)."""
    return float(studentized_range.ppf(1 - SIGNIFICANCE, models, np.inf))


def kendall_test(
    flops: np.ndarray, accuracy: np.ndarray, cluster: np.ndarray, *, seed: int = 0
) -> tuple[float, float, float]:
    """Kendall's tau-b of accuracy with compute, and a permutation test: (tau, p of a rise, p of a fall).

    The p-values are the shares of random orders with a tau at least, and at most, as high; the observed order counts as
    one of them. The errors of runs of one trunk go together, so whole trunks of equally many runs are exchanged, and
    then the runs within each trunk: orders that are equally likely if compute has no effect.

    Args:
      flops, accuracy, cluster: [runs]; cluster names the trunk of a run.
    """
    # tau-b is sum(sign_x * sign_y) / scale over all pairs of runs; a permutation changes only the sum
    signs_x, signs_y = (np.sign(np.subtract.outer(v, v)).astype(np.float32) for v in (flops, accuracy))
    scale = float(np.sqrt((signs_x**2).sum() * (signs_y**2).sum()))
    if scale == 0:
        return 0.0, 1.0, 1.0
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(cluster == name) for name in pd.unique(cluster)]
    observed = float((signs_x * signs_y).sum())
    repeats = int(np.clip(MAX_PAIR_COMPARISONS / len(flops) ** 2, 199, MAX_PERMUTATIONS))
    orders = _permutations(generator, members, len(flops), repeats)
    permuted = np.array([np.vdot(signs_x, signs_y[np.ix_(order, order)]) for order in orders])
    tolerance = 1e-6 * scale
    at_least, at_most = np.sum(permuted >= observed - tolerance), np.sum(permuted <= observed + tolerance)
    return observed / scale, float(1 + at_least) / (1 + repeats), float(1 + at_most) / (1 + repeats)


def _permutations(generator: np.random.Generator, members: list[np.ndarray], count: int, repeats: int) -> np.ndarray:
    """Random orders of runs: the index of the run whose accuracy each run receives, [repeats, runs].

    members: indices of the runs of each trunk. count: number of runs.
    """
    orders = np.empty((repeats, count), int)
    for length in sorted({len(runs) for runs in members}):
        trunks = np.stack([runs for runs in members if len(runs) == length])  # [trunks, length]
        trunk_orders = generator.permuted(np.tile(np.arange(len(trunks)), (repeats, 1)), axis=1)
        orders[:, trunks] = generator.permuted(trunks[trunk_orders], axis=2)
    return orders


def _largest_noise(points: pd.DataFrame, checkpoints: pd.DataFrame | None) -> tuple[float, str]:
    """(largest estimate of the standard deviation of one run's accuracy, its name); (NaN, "unknown") without any.

    The estimates: the median standard error, the scatter of seeds of one cell, the scatter of a run's last checkpoints
    around a straight line in log tokens.
    """
    estimates = {"standard error": float(np.median(points["standard_error"])) if "standard_error" in points else 0.0}
    cells = points.groupby([name for name in ("params", "tokens", "settings") if name in points])["accuracy"]
    estimates["scatter of seeds"] = _pooled_deviation([group.to_numpy() for _, group in cells])
    if checkpoints is not None and len(checkpoints):
        runs = checkpoints.sort_values("tokens", kind="stable").groupby("run_id")
        estimates["scatter of checkpoints"] = _pooled_deviation(
            [_detrend(run.tail(LAST_CHECKPOINTS)) for _, run in runs], 2
        )
    name = max(estimates, key=lambda key: estimates[key])
    return (estimates[name], name) if estimates[name] > 0 else (np.nan, "unknown")


def _detrend(run: pd.DataFrame) -> np.ndarray:
    """Accuracy minus a straight line in log tokens, [checkpoints]; empty for fewer than 3 different tokens."""
    x, y = np.log(run["tokens"].to_numpy(float)), run["accuracy"].to_numpy(float)
    return y - np.polyval(np.polyfit(x, y, 1), x) if len(np.unique(x)) > 2 else np.zeros(0)


def _pooled_deviation(groups: list[np.ndarray], used: int = 1) -> float:
    """Pooled standard deviation within groups; 0 for fewer than MIN_DEGREES_OF_FREEDOM in all.

    used: degrees of freedom that each group has spent: 1 for its mean, 2 for a line.
    """
    freedom = sum(max(len(group) - used, 0) for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group) > used)
    return float(np.sqrt(squares / freedom)) if freedom >= MIN_DEGREES_OF_FREEDOM else 0.0
