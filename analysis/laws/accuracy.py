"""Laws of accuracy, and of error, in loss, compute, bits per byte, or samples drawn a problem."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import expit, gammaln

from analysis.laws.law import Law, all_combinations

exponential_error = Law(
    "exponential_error",
    formula="error = eps - k e^(-gamma L)",
    parameters=("eps", "k", "gamma"),
    columns=("loss",),
    predict=lambda p, x: p.eps - p.k * jnp.exp(-p.gamma * x.loss),
    source="Gadre et al. 2024, eq. 5",
    linear_in=("eps", "k"),
    bounds={"eps": (1e-3, 1.5), "k": (1e-6, 1e6), "gamma": (1e-3, 20.0)},
    starts={"gamma": (0.1, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0, 8.0)},
    response="error",
)

sigmoid_accuracy = Law(
    "sigmoid_accuracy",
    formula="accuracy = b + a/(1 + e^(k (x - x0))), x the task's bits per byte of the right answer",
    parameters=("a", "b", "k", "x0"),
    columns=("bits_per_byte",),
    predict=lambda p, x: p.b + p.a / (1 + jnp.exp(p.k * (x.bits_per_byte - p.x0))),
    source="Bhagia et al. 2024, the second of two steps (their k is ours negated)",
    linear_in=("a", "b"),
    bounds={"a": (1e-3, 1.5), "b": (1e-6, 1.0), "k": (1e-2, 200.0), "x0": (-5.0, 20.0)},
    starts=lambda x, y: _sigmoid_starts(x, y),
    response="accuracy",
)


def _sigmoid_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts with the midpoint x0 over the range of bits per byte and beyond both ends, and the steepness k in units of
    one over that range."""
    low, high = float(np.min(x.bits_per_byte)), float(np.max(x.bits_per_byte))
    spread = max(high - low, 1e-6)
    k, x0 = np.meshgrid(
        np.minimum(np.array([2.0, 5.0, 12.0]) / spread, 40.0),
        low + spread * np.array([-0.3, 0.0, 0.25, 0.5, 0.75, 1.0]),
    )
    return {"k": k.ravel(), "x0": x0.ravel()}


log_accuracy = Law(
    "log_accuracy",
    formula="-ln accuracy = A C^-alpha, at fixed tokens per parameter",
    parameters=("A", "alpha"),
    columns=("flops",),
    predict=lambda p, x: jnp.exp(-p.A * x.flops**-p.alpha),
    source="arXiv 2512.08894, one step",
    bounds={"A": (1e-12, 1e30), "alpha": (1e-3, 5.0)},
    starts=lambda x, y: {
        "alpha": np.array([0.03, 0.1, 0.2, 0.4, 0.8]),
        "A": -np.log(np.clip(np.median(y), 1e-6, 0.999)) * np.median(x.flops) ** np.array([0.03, 0.1, 0.2, 0.4, 0.8]),
    },
    response="accuracy",
)


def _rescale(x: Any, share: Any) -> Any:
    """Accuracy from the normalised accuracy: 0 at chance, 1 at the ceiling."""
    return x.chance + (x.ceiling - x.chance) * share


def _median_share(x: Any, y: np.ndarray) -> float:
    """Median of the normalised accuracy, clipped to 0.05..0.95, for starts to pass through."""
    return float(np.clip(np.median((y - x.chance) / (x.ceiling - x.chance)), 0.05, 0.95))


log_centred = Law(
    "log_centred",
    formula="-ln((accuracy - chance)/(ceiling - chance)) = A C^-alpha",
    parameters=("A", "alpha"),
    columns=("flops", "chance", "ceiling"),
    predict=lambda p, x: _rescale(x, jnp.exp(-p.A * x.flops**-p.alpha)),
    source="arXiv 2512.08894, eq. 2 on accuracy normalised by chance; ours: fitted as accuracy, so that runs at or "
    "below chance stay (their line through ln(-ln) drops them)",
    bounds={"A": (1e-12, 1e60), "alpha": (1e-3, 5.0)},
    starts=lambda x, y: _log_centred_starts(x, y),
    response="accuracy",
)


def _log_centred_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts of several slopes alpha that put -ln of normalised accuracy, at the median budget, at the median run's, at
    half of it and at twice it."""
    s = all_combinations(alpha=np.array([0.03, 0.1, 0.2, 0.4, 0.8, 1.5]), height=np.array([0.5, 1.0, 2.0]))
    return {"alpha": s["alpha"], "A": -np.log(_median_share(x, y)) * s["height"] * np.median(x.flops) ** s["alpha"]}


log_centred_surface = Law(
    "log_centred_surface",
    formula="-ln((accuracy - chance)/(ceiling - chance)) = A N^-alpha + B D^-beta",
    parameters=("A", "alpha", "B", "beta"),
    columns=("params", "tokens", "chance", "ceiling"),
    predict=lambda p, x: _rescale(x, jnp.exp(-p.A * x.params**-p.alpha - p.B * x.tokens**-p.beta)),
    source="arXiv 2512.08894, eq. 4 on accuracy normalised by chance; fitted as accuracy, as log_centred is",
    bounds={"A": (1e-12, 1e60), "alpha": (1e-3, 5.0), "B": (1e-12, 1e60), "beta": (1e-3, 5.0)},
    starts=lambda x, y: _surface_starts(x, y),
    response="accuracy",
)


def _surface_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts of several slopes at which -ln of normalised accuracy at the median run is split between the two terms."""
    slopes = np.array([0.1, 0.3, 0.7, 1.5])
    s = all_combinations(alpha=slopes, beta=slopes, n_share=np.array([0.1, 0.5, 0.9]))
    log_error = -np.log(_median_share(x, y))
    return {
        "A": log_error * s["n_share"] * np.median(x.params) ** s["alpha"],
        "alpha": s["alpha"],
        "B": log_error * (1 - s["n_share"]) * np.median(x.tokens) ** s["beta"],
        "beta": s["beta"],
    }


sigmoid_centred = Law(
    "sigmoid_centred",
    formula="accuracy = chance + (ceiling - chance)/(1 + e^(k (x - x0))), x the task's bits per byte",
    parameters=("k", "x0"),
    columns=("bits_per_byte", "chance", "ceiling"),
    predict=lambda p, x: _rescale(x, expit(p.k * (p.x0 - x.bits_per_byte))),
    source="Bhagia et al. 2024, the second of two steps; ours: its two levels held at chance and ceiling",
    bounds={"k": (1e-2, 50.0), "x0": (-20.0, 20.0)},
    starts=lambda x, y: _sigmoid_starts(x, y),
    response="accuracy",
)


pass_at_k = Law(
    "pass_at_k",
    formula="1 - pass@k = B(a, b + k)/B(a, b), about Gamma(a + b)/Gamma(b) k^-a",
    parameters=("a", "b"),
    columns=("samples",),
    predict=lambda p, x: jnp.exp(
        gammaln(p.b + x.samples) - gammaln(p.a + p.b + x.samples) + gammaln(p.a + p.b) - gammaln(p.b)
    ),
    source="analytic: a problem's chance p of a right sample is Beta(a, b) over problems",
    bounds={"a": (1e-3, 1e3), "b": (1e-3, 1e6)},
    starts={"a": (0.1, 0.3, 1.0, 3.0), "b": (0.3, 1.0, 5.0, 50.0)},
    response="failure",
)
