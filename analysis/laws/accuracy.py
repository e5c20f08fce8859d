"""Right and wrong answers as a function of loss, compute, or samples."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from analysis.laws.law import Law

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
    """Middles over the range of bits per byte and beyond both ends, steepness in units of that range."""
    low, high = float(np.min(x.bits_per_byte)), float(np.max(x.bits_per_byte))
    spread = max(high - low, 1e-6)
    k, x0 = np.meshgrid(np.array([2.0, 5.0, 12.0]) / spread, low + spread * np.array([-0.3, 0.0, 0.25, 0.5, 0.75, 1.0]))
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
