"""Whether points can tell a law's parameters apart, and which run would help most.

The spread that a fit's own residuals imply for each parameter (Gauss-Newton, in the parameters as searched) is
compared with what a reader may quote: an exponent or a floor that is uncertain by half its value is not a result, and
the verdict says which parameters trade against each other, why, and which run would tell them apart.

Not in the design's list of modules: a fit needs the verdict, and none of fit.py's other concepts does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.fitting.newton import log_prediction_jacobian, values_from_theta
from analysis.laws.law import Law

MIN_CONDITION_RATIO = (
    1e-5  # smallest over largest singular value of the scaled Jacobian below which nothing can be said
)
MAX_ERROR = 0.5  # standard error of a logarithm (or of a signed exponent) that is no result
HIGH_CORRELATION = 0.95  # correlation between estimates, or between log params and log tokens, that is named
MAX_EXTRAPOLATION = 8.0  # how far beyond the points' own sizes and horizons a run is proposed
MAX_LINE_SPREAD = 0.01  # spread of log tokens around a line in log params below which they are one variable
NEGLIGIBLE = 1e-12


def condition_ratio(slopes: np.ndarray) -> float:
    """Smallest over largest singular value of a Jacobian [points, parameters], columns scaled to one length."""
    length = np.linalg.norm(slopes, axis=0)
    if slopes.size == 0 or not np.isfinite(slopes).all() or not np.all(length > 0):
        return 0.0
    singular = np.linalg.svd(slopes / length, compute_uv=False)
    return float(singular[-1] / singular[0])


def describe_unidentified(
    law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray], y: np.ndarray, free: np.ndarray
) -> str:
    """What the points leave open: empty when every free parameter is determined.

    Args:
      theta: [parameters] as searched, at the optimum.
      free: [parameters], False where a parameter is held or at a bound.
    """
    names = np.asarray(law.parameters)[free]
    slopes = log_prediction_jacobian(law, theta, x)[:, free]
    if len(names) < 2 or not np.isfinite(slopes).all():
        return ""
    length = np.linalg.norm(slopes, axis=0)
    length = np.maximum(length, NEGLIGIBLE * length.max())
    _, singular, directions = np.linalg.svd(slopes / length, full_matrices=False)
    residual = np.log(y / law(_named(law, theta), x))
    noise = max(float(np.sqrt(np.sum(residual**2) / max(len(y) - len(names), 1))), NEGLIGIBLE)
    spread = noise * (directions / np.maximum(singular, NEGLIGIBLE * singular[0])[:, None]).T / length[:, None]
    error = np.linalg.norm(spread, axis=1)
    loose = _judged(law)[free] & (error > MAX_ERROR)
    if singular[-1] / singular[0] > MIN_CONDITION_RATIO and not loose.any() and not (free.all() and _on_a_line(x)):
        return ""
    weak = np.abs(directions[-1]) > 0.1
    blamed = (
        [str(n) for n in names[weak | loose]]
        if singular[-1] / singular[0] <= MIN_CONDITION_RATIO
        else _traded(names, spread)
    )
    return f"{' and '.join(blamed)} not separable: {_cause(x)}{_advice(law, theta, x, free, directions[-1] / length)}"


def _named(law: Law, theta: np.ndarray) -> dict[str, float]:
    return dict(zip(law.parameters, values_from_theta(law, theta), strict=True))


def _judged(law: Law) -> np.ndarray:
    """Which parameters' errors are judged: exponents and floors.

    A prefactor may be uncertain by a factor when its exponent is sound: it is the loss at N = 1, far from any run.
    """
    return np.array([law.bounds[name][1] <= 1e3 for name in law.parameters])


def _traded(names: np.ndarray, spread: np.ndarray) -> list[str]:
    """The parameter that is worst determined for its kind, and those whose estimates move with it."""
    covariance = spread @ spread.T
    error = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(error, error)
    worst = int(np.argmax(error))
    return [str(name) for name, c in zip(names, np.abs(correlation[worst]), strict=True) if c > HIGH_CORRELATION]


def _on_a_line(x: Mapping[str, np.ndarray]) -> bool:
    """Whether tokens follow params so closely that their terms could change places."""
    if not {"params", "tokens"} <= set(x):
        return False
    n, d = np.log(x["params"]), np.log(x["tokens"])
    if np.ptp(n) == 0 or np.ptp(d) == 0:
        return False
    return bool(np.std(d - np.polyval(np.polyfit(n, d, 1), n)) < MAX_LINE_SPREAD)


def _cause(x: Mapping[str, np.ndarray]) -> str:
    if not {"params", "tokens"} <= set(x):
        return "the points span too little"
    n, d = np.log(x["params"]), np.log(x["tokens"])
    if np.std(n) > 0 and np.std(d) > 0 and abs(np.corrcoef(n, d)[0, 1]) > HIGH_CORRELATION:
        return "N and D move together"
    spans = ", ".join(f"{name} span {np.exp(np.ptp(v)):.3g}x" for name, v in (("params", n), ("tokens", d)))
    return f"the points span too little for their noise ({spans})"


def _advice(law: Law, theta: np.ndarray, x: Mapping[str, np.ndarray], free: np.ndarray, weak: np.ndarray) -> str:
    """The affordable run (no more FLOPs than the largest) to which the undetermined direction matters most."""
    if set(law.columns) != {"params", "tokens"}:
        return "; add runs over a wider range"
    axes = [
        np.geomspace(x[name].min() / MAX_EXTRAPOLATION, x[name].max() * MAX_EXTRAPOLATION, 25)
        for name in ("params", "tokens")
    ]
    n, d = (axis.ravel() for axis in np.meshgrid(*axes))
    affordable = n * d <= np.max(x["params"] * x["tokens"]) * (1 + 1e-9)
    n, d = n[affordable], d[affordable]
    gain = np.abs(log_prediction_jacobian(law, theta, {"params": n, "tokens": d})[:, free] @ weak)
    best = int(np.argmax(gain))
    return f"; add runs at about N = {n[best]:.2g}, D = {d[best]:.2g}"
