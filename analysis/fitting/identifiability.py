"""Whether the points determine each parameter of a law, and which further run would help most.

With J the Jacobian of log predictions by theta, J'J is the Gauss-Newton Hessian of the squared log residuals, and its
spectrum says which combinations of parameters the points determine: a small singular value of J is a direction of theta
along which the predictions hardly change. The residuals' own size turns the spectrum into a standard error of each
parameter. An exponent or a floor (the irreducible loss) that is uncertain by half its value is not a result: the
warning then names the parameters whose estimates trade against each other, the reason, and a run to add.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.fitting.newton import log_prediction_jacobian, values_from_theta
from analysis.laws.law import Law

# Smallest over largest singular value of the scaled Jacobian: below it the Jacobian counts as singular.
MIN_CONDITION_RATIO = 1e-5
MAX_ERROR = 0.5  # standard error of theta (a logarithm, or a signed exponent) above which a parameter is undetermined
HIGH_CORRELATION = 0.95  # correlation of estimates, or of log params and log tokens, that the warning names
MAX_EXTRAPOLATION = 8.0  # a proposed run lies within this factor of the points' own ranges of params and tokens
MAX_LINE_SPREAD = 0.01  # standard deviation of log tokens around a line in log params: below it they are one variable
NEGLIGIBLE = 1e-12  # relative to the largest: shorter columns and smaller singular values are rounding errors


def condition_ratio(slopes: np.ndarray) -> float:
    """Smallest over largest singular value of a Jacobian [points, parameters], its columns scaled to unit length.

    1 where parameters are determined independently of each other, 0 where a combination of them is not determined.
    """
    length = np.linalg.norm(slopes, axis=0)
    if slopes.size == 0 or not np.isfinite(slopes).all() or not np.all(length > 0):
        return 0.0
    singular = np.linalg.svd(slopes / length, compute_uv=False)
    return float(singular[-1] / singular[0])


def describe_unidentified(
    law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray], y: np.ndarray, free: np.ndarray
) -> str:
    """Names the parameters that the points do not determine, why, and a run to add; empty when all are determined.

    Args:
      theta: search coordinates of the optimum, [parameters].
      x: the law's columns, [points] each.
      y: response, [points].
      free: [parameters], False where a parameter is fixed or at a bound.
    """
    names = np.asarray(law.parameters)[free]
    slopes = log_prediction_jacobian(law, theta, x)[:, free]
    if len(names) < 2 or not np.isfinite(slopes).all():
        return ""
    length = np.linalg.norm(slopes, axis=0)
    length = np.maximum(length, NEGLIGIBLE * length.max())
    # J / length = U diag(singular) V': rows of `directions` (V') are combinations of scaled parameters, the last the
    # least determined. The covariance of theta, noise^2 (J'J)^-1, is spread spread' with
    # spread = noise diag(1/length) V diag(1/singular).
    _, singular, directions = np.linalg.svd(slopes / length, full_matrices=False)
    residual = np.log(y / law(_values_by_name(law, theta), x))
    noise = max(float(np.sqrt(np.sum(residual**2) / max(len(y) - len(names), 1))), NEGLIGIBLE)
    spread = noise * (directions / np.maximum(singular, NEGLIGIBLE * singular[0])[:, None]).T / length[:, None]
    error = np.linalg.norm(spread, axis=1)
    undetermined = _needs_small_error(law)[free] & (error > MAX_ERROR)
    is_singular = singular[-1] / singular[0] <= MIN_CONDITION_RATIO
    if not is_singular and not undetermined.any() and not (free.all() and _tokens_follow_params(x)):
        return ""
    in_weak_direction = np.abs(directions[-1]) > 0.1
    if is_singular:
        blamed = [str(name) for name in names[in_weak_direction | undetermined]]
    else:
        blamed = _correlated_with_worst(names, spread)
    proposal = _propose_run(law, theta, x, free, directions[-1] / length)
    return f"{' and '.join(blamed)} not separable: {_describe_cause(x)}{proposal}"


def _values_by_name(law: Law, theta: np.ndarray) -> dict[str, float]:
    return dict(zip(law.parameters, values_from_theta(law, theta), strict=True))


def _needs_small_error(law: Law) -> np.ndarray:
    """Whether each parameter must have a small error, [parameters]: exponents and floors must, which have bounds of at
    most 1e3. A prefactor may be uncertain by a factor though its exponent is determined, because it is the loss at
    N = 1, far from any run."""
    return np.array([law.bounds[name][1] <= 1e3 for name in law.parameters])


def _correlated_with_worst(names: np.ndarray, spread: np.ndarray) -> list[str]:
    """Names of the parameter of largest error and of those whose estimates are correlated with its estimate.

    spread: [parameters, parameters], a square root of the covariance: covariance = spread spread'.
    """
    covariance = spread @ spread.T
    error = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(error, error)
    worst = int(np.argmax(error))
    return [str(name) for name, c in zip(names, np.abs(correlation[worst]), strict=True) if c > HIGH_CORRELATION]


def _tokens_follow_params(x: Mapping[str, np.ndarray]) -> bool:
    """Whether log tokens are so nearly a line in log params that the terms of the two cannot be told apart."""
    if not {"params", "tokens"} <= set(x):
        return False
    n, d = np.log(x["params"]), np.log(x["tokens"])
    if np.ptp(n) == 0 or np.ptp(d) == 0:
        return False
    return bool(np.std(d - np.polyval(np.polyfit(n, d, 1), n)) < MAX_LINE_SPREAD)


def _describe_cause(x: Mapping[str, np.ndarray]) -> str:
    """Why parameters are undetermined: params and tokens are correlated, or their ranges are short."""
    if not {"params", "tokens"} <= set(x):
        return "the points span too little"
    n, d = np.log(x["params"]), np.log(x["tokens"])
    if np.std(n) > 0 and np.std(d) > 0 and abs(np.corrcoef(n, d)[0, 1]) > HIGH_CORRELATION:
        return "N and D move together"
    spans = ", ".join(f"{name} span {np.exp(np.ptp(v)):.3g}x" for name, v in (("params", n), ("tokens", d)))
    return f"the points span too little for their noise ({spans})"


def _propose_run(
    law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray], free: np.ndarray, weak_direction: np.ndarray
) -> str:
    """Text that proposes a run: of those with at most the FLOPs of the largest run, the one whose prediction changes
    most along the least determined direction of theta."""
    if set(law.columns) != {"params", "tokens"}:
        return "; add runs over a wider range"
    axes = [
        np.geomspace(x[name].min() / MAX_EXTRAPOLATION, x[name].max() * MAX_EXTRAPOLATION, 25)
        for name in ("params", "tokens")
    ]
    n, d = (axis.ravel() for axis in np.meshgrid(*axes))
    affordable = n * d <= np.max(x["params"] * x["tokens"]) * (1 + 1e-9)
    n, d = n[affordable], d[affordable]
    gain = np.abs(log_prediction_jacobian(law, theta, {"params": n, "tokens": d})[:, free] @ weak_direction)
    best = int(np.argmax(gain))
    return f"; add runs at about N = {n[best]:.2g}, D = {d[best]:.2g}"
