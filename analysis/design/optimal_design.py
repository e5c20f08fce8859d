"""Which cells to train next, so that a forecast moves least with their noise: V-optimal design under a budget.

At parameters theta, with j the derivatives of log loss by theta at a cell and M the information that is at hand (a
prior plus j j^T / s^2 over the measured points), the variance of the forecast at a target of derivatives g is
g^T M^-1 g. A new cell of variance s^2 lowers it by (g^T M^-1 j)^2 / (s^2 + j^T M^-1 j). Cells are taken greedily
(V-optimality: Welch 1984; averaged over plausible parameters: Chaloner & Verdinelli 1995; the exponents of cost, the
prior and the drift are ours, benchmarks/README.md says what the whole brings).

Two things keep it from being misled. Early fits are poor, so the variance is averaged over draws of theta. And laws are
wrong: a point is taken to miss the law that holds at the target by `drift` per e-fold of compute between them, so that
cheap cells count for less, however many they are.

Not in the design's list of modules: fit.py says what the points say, this which points would say more.
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
"""Each policy's rankings, reduction of log variance over cost to one of these powers; the best set of them is taken."""

POSTERIOR_DRAWS = 12
DRIFT = 0.01  # log loss per e-fold of compute; with 0 forecasts were worse where the law is wrong, with 0.03 no better
PRIOR_NOISE, PRIOR_NOISE_WEIGHT = (
    0.003,
    4.0,
)  # log loss of one run before residuals are seen, and how many of them that counts for
EXPONENT_DEVIATION, PREFACTOR_DEVIATION = 1.0, 10.0  # standard deviations of the prior, of parameters as searched
MAX_RESIDUAL = 0.05  # log loss beyond which a residual no longer adds to the noise


@dataclass(frozen=True)
class Posterior:
    """What measured points leave open about a forecast, at several plausible values of the parameters.

    thetas: [draws, parameters] as searched; the first is the fit.
    precision: [draws, parameters, parameters], of the points at hand and the prior.
    target_gram: [draws, parameters, parameters], the mean over targets of g g^T.
    noise: standard deviation of one run's log loss.
    drift: log loss per e-fold of compute between a point and the target.
    target_log_flops: log of the target's training FLOPs, the mean over targets.
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
        """Of the forecast log loss: root mean square over targets, geometric mean over draws."""
        return float(np.exp(np.mean(np.log(_forecast_variance(np.linalg.inv(self.precision), self.target_gram))) / 2))

    def run_variance(self, flops: Any) -> np.ndarray:
        """Variance of a run's log loss as a witness of the law at the target, [points]."""
        return _run_variance(self.noise, self.drift, self.target_log_flops, flops)

    def precision_with(self, cells: pd.DataFrame) -> np.ndarray:
        """The precision once these cells are measured too: [draws, parameters, parameters]."""
        return self.precision + _information(
            log_loss_gradients(self.law, self.thetas, cells), self.run_variance(cells["flops"])
        )


@dataclass(frozen=True)
class Proposal:
    """Cells in the order in which they were taken.

    cells: their rows among the candidates, [taken].
    standard_errors: of the forecast log loss before any of them and after each, [taken + 1].
    cost: FLOPs of all of them.
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
    """What a fit is worth as a forecast.

    Args:
      law: of loss in params and tokens.
      values: [parameters], fitted to the points.
      points: columns params, tokens, flops and loss (nats per token) of the runs at hand.
      targets: columns params, tokens, flops of the runs to forecast.
      drift: log loss per e-fold of compute; 0 trusts the law everywhere.
      draws: plausible values of the parameters: the fit, and draws from the normal approximation around it.
    Raises:
      TableError: a law of other columns, or a drift below zero.
    """
    if law.columns != SURFACE_COLUMNS or law.response != "loss":
        raise TableError(f"law {law.name}: a design needs a law of loss in params and tokens, as chinchilla is")
    if not drift >= 0:
        raise TableError(f"drift {drift}: log loss per e-fold of compute, zero or more")
    target_log_flops = float(np.mean(np.log(targets["flops"])))
    flops, centre = points["flops"].to_numpy(float), theta_from_values(law, np.asarray(values, float))
    residuals = np.log(points["loss"].to_numpy(float) / law(dict(zip(law.parameters, values, strict=True)), points))
    noise = _estimate_noise(residuals, _run_variance(PRIOR_NOISE, drift, target_log_flops, flops), len(law.parameters))
    variance = _run_variance(noise, drift, target_log_flops, flops)
    prior = np.diag(_prior_deviations(law) ** -2.0)
    at_fit = prior + _information(log_loss_gradients(law, centre[None], points), variance)[0]
    normal = np.random.default_rng(seed).standard_normal((draws, len(centre)))
    normal[0] = 0.0
    low, high = np.array([law.bounds[name] for name in law.parameters]).T
    spread = np.linalg.cholesky(np.linalg.inv(at_fit))
    thetas = np.clip(centre + normal @ spread.T, theta_from_values(law, low), theta_from_values(law, high))
    towards = log_loss_gradients(law, thetas, targets)
    target_gram = np.einsum("ktp,ktq->kpq", towards, towards) / len(targets)
    precision = prior + _information(log_loss_gradients(law, thetas, points), variance)
    return Posterior(law, thetas, precision, target_gram, noise, drift, target_log_flops)


def propose(
    posterior: Posterior, candidates: pd.DataFrame, budget: float, *, policy: Policy = "v", max_cells: int | None = None
) -> Proposal:
    """The cells that lower the forecast's variance most for a budget, greedily.

    `v` takes, one after another, the affordable cell that lowers it most. `v-cost` also does so per FLOP and per root
    of FLOPs, and keeps the set that ends lowest: per FLOP alone buys crumbs, and per cell alone one large run.

    Args:
      candidates: columns params, tokens, flops; flops is what a cell costs. A row is taken once: list a cell twice to
        allow it two seeds.
      budget: FLOPs.
      max_cells: cells at most; as many as the budget buys unless given.
    Raises:
      TableError: no candidate is affordable.
    """
    cost = candidates["flops"].to_numpy(float)
    if not len(cost) or cost.min() > budget:
        least = f"the cheapest of {len(cost)} candidates costs {cost.min():.3g}" if len(cost) else "there are none"
        raise TableError(f"budget {budget:.3g} FLOPs buys no candidate: {least}")
    slopes_KCP = log_loss_gradients(posterior.law, posterior.thetas, candidates)
    variance = posterior.run_variance(cost)
    sets = [_greedy(posterior, slopes_KCP, variance, cost, budget, power, max_cells) for power in COST_POWERS[policy]]
    return min(sets, key=lambda proposal: proposal.standard_errors[-1])


def _greedy(
    posterior: Posterior,
    slopes_KCP: np.ndarray,
    variance: np.ndarray,
    cost: np.ndarray,
    budget: float,
    power: float,
    max_cells: int | None,
) -> Proposal:
    """One cell after another by reduction of mean log variance over cost^power, among those still affordable."""
    covariance = np.linalg.inv(posterior.precision)
    now = _forecast_variance(covariance, posterior.target_gram)
    errors, taken, left, free = [now], [], budget, np.ones(len(cost), bool)
    while max_cells is None or len(taken) < max_cells:
        open_C = np.flatnonzero(free & (cost <= left))
        if not len(open_C):
            break
        j_KCP = slopes_KCP[:, open_C]
        spread_KCP = j_KCP @ covariance
        total = variance[open_C] + np.einsum("kcp,kcp->kc", spread_KCP, j_KCP)
        fall = np.einsum("kcp,kcp->kc", spread_KCP @ posterior.target_gram, spread_KCP) / total
        gain = -np.mean(np.log1p(-np.minimum(fall / now[:, None], 1 - 1e-12)), 0)
        best = int(np.argmax(np.log(np.maximum(gain, 1e-300)) - power * np.log(cost[open_C])))
        step = spread_KCP[:, best]
        covariance = covariance - step[:, :, None] * step[:, None, :] / total[:, best, None, None]
        now = _forecast_variance(covariance, posterior.target_gram)
        taken.append(int(open_C[best]))
        errors.append(now)
        free[open_C[best]] = False
        left -= cost[open_C[best]]
    cells = np.array(taken, int)
    return Proposal(cells, np.exp(np.mean(np.log(errors), 1) / 2), float(cost[cells].sum()))


def log_loss_gradients(law: Law, thetas: np.ndarray, columns: Columns) -> np.ndarray:
    """Derivatives of log predictions by the parameters as searched, for every row of them: [draws, points, params]."""
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
    return np.einsum("kcp,kcq,c->kpq", slopes_KCP, slopes_KCP, 1 / variance)


def _forecast_variance(covariance: np.ndarray, target_gram: np.ndarray) -> np.ndarray:
    """Mean over targets of g^T M^-1 g, [draws]."""
    return np.einsum("kpq,kpq->k", covariance, target_gram)


def _run_variance(noise: float, drift: float, target_log_flops: float, flops: Any) -> np.ndarray:
    return noise**2 + (drift * np.maximum(target_log_flops - np.log(np.asarray(flops, float)), 0.0)) ** 2


def _estimate_noise(residuals: np.ndarray, variance: np.ndarray, parameters: int) -> float:
    """From residuals counted by how much of their expected variance is noise, and a guess worth a few of them."""
    share = PRIOR_NOISE**2 / variance
    freedom = max(float(share.sum()) * (1 - parameters / len(residuals)), 0.0)
    seen = float(share @ np.minimum(np.abs(residuals), MAX_RESIDUAL) ** 2)
    return float(np.sqrt((PRIOR_NOISE_WEIGHT * PRIOR_NOISE**2 + seen) / (PRIOR_NOISE_WEIGHT + freedom)))


def _prior_deviations(law: Law) -> np.ndarray:
    """Wide: a factor e for exponents and floors, e^10 for prefactors, which are the loss at N = 1."""
    return np.array(
        [EXPONENT_DEVIATION if law.bounds[name][1] <= 1e3 else PREFACTOR_DEVIATION for name in law.parameters]
    )
