"""V-optimal design: which cells to train next, so that the noise of all runs moves a forecast least, within a budget.

At parameters theta, let j be the derivatives of log loss by theta at a cell, and M the information of the measured
points (the precision of a prior plus the sum of j j^T / s^2). The variance of the forecast at a target of derivatives g
is g^T M^-1 g. A new cell of variance s^2 lowers it by (g^T M^-1 j)^2 / (s^2 + j^T M^-1 j). Cells are chosen greedily
(V-optimality: Welch 1984; averaged over plausible parameters: Chaloner & Verdinelli 1995). The exponents of cost, the
prior and the drift are our own; benchmarks/README.md says how well the whole forecasts.

Two measures keep wrong assumptions from misleading it. Early fits are poor, so the variance is averaged over draws of
theta. And every law is wrong somewhere: a point is assumed to miss the law that holds at the target by `drift` per
e-fold of compute between them, so that cheap cells count for less, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.fitting.newton import padded_length, parameter_namespace, theta_from_values
from analysis.laws import Columns, Law
from analysis.tables.results import SURFACE_COLUMNS

Policy = Literal["v", "v-cost"]
COST_POWERS = {"v": (0.0,), "v-cost": (0.0, 0.5, 1.0)}
"""Policy -> powers of cost. Cells are ranked by reduction of log variance over cost^power; the best set is proposed."""

POSTERIOR_DRAWS = 12  # plausible values of the parameters
DRIFT = 0.01  # log loss per e-fold of compute; with 0 forecasts were worse where the law is wrong, with 0.03 no better
PRIOR_NOISE = 0.003  # prior guess of the standard deviation of one run's log loss
PRIOR_NOISE_WEIGHT = 4.0  # number of residuals that this guess counts for
EXPONENT_DEVIATION = 1.0  # standard deviation of the prior of exponents and floors, in the logarithm that fits search
PREFACTOR_DEVIATION = 10.0  # the same of prefactors
MAX_RESIDUAL = 0.05  # log loss; larger residuals count as this large in the estimate of the noise


@dataclass(frozen=True)
class Posterior:
    """Normal approximation of the posterior of a law's parameters, around several plausible values of them.

    thetas: [draws, parameters], transformed as for the search of a fit; the first is the fit.
    precision: [draws, parameters, parameters], of the measured points and the prior.
    target_gram: [draws, parameters, parameters], the mean over targets of g g^T, g the derivatives of log loss.
    noise: standard deviation of one run's log loss.
    drift: log loss per e-fold of compute between a point and the target.
    target_log_flops: natural logarithm of the targets' training FLOPs, their mean.
    """

    law: Law
    thetas: np.ndarray
    precision: np.ndarray
    target_gram: np.ndarray
    noise: float
    drift: float
    target_log_flops: float

    @property
    def standard_error(self) -> float:
        """Standard error of the forecast log loss: root mean square over targets, geometric mean over draws."""
        return float(np.exp(np.mean(np.log(_forecast_variance(np.linalg.inv(self.precision), self.target_gram))) / 2))

    def run_variance(self, flops: Any) -> np.ndarray:
        """Variance of runs' log losses around the law that holds at the target, [points]: noise and drift."""
        return _run_variance(self.noise, self.drift, self.target_log_flops, flops)

    def precision_with(self, cells: pd.DataFrame) -> np.ndarray:
        """The precision after these cells are measured too: [draws, parameters, parameters]."""
        return self.precision + _information(
            log_loss_gradients(self.law, self.thetas, cells), self.run_variance(cells["flops"])
        )


@dataclass(frozen=True)
class Proposal:
    """Cells in the order in which they are chosen.

    cells: their rows among the candidates, [chosen].
    standard_errors: of the forecast log loss before the first cell and after each, [chosen + 1].
    cost: training FLOPs of all of them.
    """

    cells: np.ndarray
    standard_errors: np.ndarray
    cost: float


def approximate_posterior(
    law: Law,
    values: np.ndarray,
    points: pd.DataFrame,
    targets: pd.DataFrame,
    *,
    drift: float = DRIFT,
    draws: int = POSTERIOR_DRAWS,
    seed: int = 0,
) -> Posterior:
    """Computes how uncertain a fit and its forecast are.

    Args:
      law: a law of loss in params and tokens.
      values: its parameters, fitted to the points, [parameters].
      points: columns params, tokens, flops and loss (nats per token) of the measured runs.
      targets: columns params, tokens, flops of the runs to forecast.
      drift: assumed error of the law, in log loss per e-fold of compute to the target; 0 trusts the law everywhere.
      draws: number of plausible values of the parameters: the fit, and draws from the normal approximation around it.
      seed: of the draws.
    Raises:
      TableError: a law of other columns or of another response, or a drift below zero.
    """
    if law.columns != SURFACE_COLUMNS or law.response != "loss":
        raise TableError(f"law {law.name}: must be a law of loss in params and tokens, such as chinchilla")
    if not drift >= 0:
        raise TableError(f"drift {drift}: must be zero or more, in log loss per e-fold of compute")
    target_log_flops = float(np.mean(np.log(targets["flops"])))
    flops, centre = points["flops"].to_numpy(float), theta_from_values(law, np.asarray(values, float))
    residuals = np.log(points["loss"].to_numpy(float) / law(dict(zip(law.parameters, values, strict=True)), points))
    noise = _estimate_noise(residuals, _run_variance(PRIOR_NOISE, drift, target_log_flops, flops), len(law.parameters))
    variance = _run_variance(noise, drift, target_log_flops, flops)
    prior = np.diag(_prior_deviations(law) ** -2.0)
    # draws of theta: normal around the fit, with the inverse of the precision at the fit as covariance; the fit first
    at_fit = prior + _information(log_loss_gradients(law, centre[None], points), variance)[0]
    normal = np.random.default_rng(seed).standard_normal((draws, len(centre)))
    normal[0] = 0.0
    low, high = np.array([law.bounds[name] for name in law.parameters]).T
    deviation = np.linalg.cholesky(np.linalg.inv(at_fit))
    thetas = np.clip(centre + normal @ deviation.T, theta_from_values(law, low), theta_from_values(law, high))
    gradients_KTP = log_loss_gradients(law, thetas, targets)  # K draws, T targets, P parameters
    target_gram = np.einsum("ktp,ktq->kpq", gradients_KTP, gradients_KTP) / len(targets)
    precision = prior + _information(log_loss_gradients(law, thetas, points), variance)
    return Posterior(law, thetas, precision, target_gram, noise, drift, target_log_flops)


def propose(
    posterior: Posterior, candidates: pd.DataFrame, budget: float, *, policy: Policy = "v", max_cells: int | None = None
) -> Proposal:
    """Chooses cells within a budget, greedily, so that they lower the variance of the forecast most.

    `v` chooses, one after another, the affordable cell that lowers it most. `v-cost` does the same also per FLOP and
    per square root of FLOPs, and keeps the set with the lowest final variance: ranked per FLOP alone, the budget goes
    to many tiny cells, and ranked per cell alone, to one large run.

    Args:
      candidates: columns params, tokens, flops; flops is the cost of a cell. A row is chosen once at most: list a cell
        twice to allow it two seeds.
      budget: training FLOPs of all chosen cells together.
      max_cells: the most cells to choose; as many as the budget buys unless given.
    Raises:
      TableError: no candidate is affordable.
    """
    cost = candidates["flops"].to_numpy(float)
    if not len(cost) or cost.min() > budget:
        reason = f"the cheapest of {len(cost)} candidates costs {cost.min():.3g}" if len(cost) else "there are none"
        raise TableError(f"budget {budget:.3g} FLOPs: buys no candidate; {reason}")
    slopes_KCP = log_loss_gradients(posterior.law, posterior.thetas, candidates)
    variance = posterior.run_variance(cost)
    proposals = [
        _greedy(posterior, slopes_KCP, variance, cost, budget, power, max_cells) for power in COST_POWERS[policy]
    ]
    return min(proposals, key=lambda proposal: proposal.standard_errors[-1])


def _greedy(
    posterior: Posterior,
    slopes_KCP: np.ndarray,
    variance: np.ndarray,
    cost: np.ndarray,
    budget: float,
    power: float,
    max_cells: int | None,
) -> Proposal:
    """Chooses, one by one, the affordable cell of the largest reduction of mean log variance over cost^power.

    Shapes: K draws, C candidates, P parameters. variance, cost: [candidates].
    """
    covariance = np.linalg.inv(posterior.precision)
    forecast_variance = _forecast_variance(covariance, posterior.target_gram)
    forecast_variances, chosen, remaining, is_free = [forecast_variance], [], budget, np.ones(len(cost), bool)
    while max_cells is None or len(chosen) < max_cells:
        open_C = np.flatnonzero(is_free & (cost <= remaining))
        if not len(open_C):
            break
        j_KCP = slopes_KCP[:, open_C]
        spread_KCP = j_KCP @ covariance
        # variance of a measurement of each cell as predicted: s^2 + j^T M^-1 j
        total = variance[open_C] + np.einsum("kcp,kcp->kc", spread_KCP, j_KCP)
        # reduction of the forecast variance: j^T M^-1 (mean of g g^T) M^-1 j over that
        reduction = np.einsum("kcp,kcp->kc", spread_KCP @ posterior.target_gram, spread_KCP) / total
        gain = -np.mean(np.log1p(-np.minimum(reduction / forecast_variance[:, None], 1 - 1e-12)), 0)
        best = int(np.argmax(np.log(np.maximum(gain, 1e-300)) - power * np.log(cost[open_C])))
        # Sherman-Morrison: the inverse of M + j j^T / s^2
        step = spread_KCP[:, best]
        covariance = covariance - step[:, :, None] * step[:, None, :] / total[:, best, None, None]
        forecast_variance = _forecast_variance(covariance, posterior.target_gram)
        chosen.append(int(open_C[best]))
        forecast_variances.append(forecast_variance)
        is_free[open_C[best]] = False
        remaining -= cost[open_C[best]]
    cells = np.array(chosen, int)
    return Proposal(cells, np.exp(np.mean(np.log(forecast_variances), 1) / 2), float(cost[cells].sum()))


def log_loss_gradients(law: Law, thetas: np.ndarray, columns: Columns) -> np.ndarray:
    """Derivatives of predicted log loss by theta, for every row of thetas: [draws, points, parameters].

    Points are padded to one of a few lengths, so that few programs are compiled.
    """
    count = len(columns[law.columns[0]])
    fill = padded_length(count) - count
    x = {name: np.pad(np.asarray(columns[name], np.float64), (0, fill), mode="edge") for name in law.columns}
    with jax.enable_x64(True):
        return np.asarray(_jitted_gradients(law, np.asarray(thetas), x))[:, :count]


@partial(jax.jit, static_argnums=0)
def _jitted_gradients(law: Law, thetas: Any, x: Any) -> jax.Array:
    def log_loss(theta: jax.Array) -> jax.Array:
        return jnp.log(law.predict(parameter_namespace(law, theta), SimpleNamespace(**x)))

    return jax.vmap(jax.jacfwd(log_loss))(thetas)


def _information(slopes_KCP: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Sum over cells of j j^T / s^2: [draws, parameters, parameters]."""
    return np.einsum("kcp,kcq,c->kpq", slopes_KCP, slopes_KCP, 1 / variance)


def _forecast_variance(covariance: np.ndarray, target_gram: np.ndarray) -> np.ndarray:
    """Mean over targets of g^T M^-1 g, [draws]."""
    return np.einsum("kpq,kpq->k", covariance, target_gram)


def _run_variance(noise: float, drift: float, target_log_flops: float, flops: Any) -> np.ndarray:
    """Posterior.run_variance: noise^2 + (drift * log distance in compute below the target)^2, [points]."""
    return noise**2 + (drift * np.maximum(target_log_flops - np.log(np.asarray(flops, float)), 0.0)) ** 2


def _estimate_noise(residuals: np.ndarray, variance: np.ndarray, parameters: int) -> float:
    """Standard deviation of one run's log loss, from residuals of the fit and the prior guess.

    residuals: log loss, [points]. variance: [points], expected of each, of noise and drift; a residual counts by the
    share of noise in it. parameters: number of parameters fitted.
    """
    share = PRIOR_NOISE**2 / variance
    degrees_of_freedom = max(float(share.sum()) * (1 - parameters / len(residuals)), 0.0)
    squares = float(share @ np.minimum(np.abs(residuals), MAX_RESIDUAL) ** 2)
    return float(np.sqrt((PRIOR_NOISE_WEIGHT * PRIOR_NOISE**2 + squares) / (PRIOR_NOISE_WEIGHT + degrees_of_freedom)))


def _prior_deviations(law: Law) -> np.ndarray:
    """Standard deviations of the prior, [parameters]: wide, a factor e for exponents and floors, e^10 for prefactors.

    Prefactors are the loss at N = 1, so they vary most; their bounds in the law are above 1e3.
    """
    return np.array(
        [EXPONENT_DEVIATION if law.bounds[name][1] <= 1e3 else PREFACTOR_DEVIATION for name in law.parameters]
    )
