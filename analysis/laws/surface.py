"""Laws of loss in parameters and tokens: Chinchilla, Kaplan, Farseer, and forms with interaction, saturation, repeated
data or over-training.

Loss is in nats per token. In formulas N stands for the column params, D for tokens and U for unique_tokens; C = 6 N D
is training FLOPs.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from analysis.laws.law import Law, all_combinations

_EXPONENTS = (0.08, 0.16, 0.25, 0.35, 0.45, 0.6, 0.9, 1.4)
_FEW = (0.15, 0.3, 0.5, 0.9)
_POSITIVE = (1e-9, 1e30)
_EXPONENT = (1e-3, 5.0)
_FLOOR = (1e-6, 1e3)
_ADDITIVE = {"E": _FLOOR, "A": _POSITIVE, "B": _POSITIVE, "alpha": _EXPONENT, "beta": _EXPONENT}


def _chinchilla_optimum(p: Any) -> tuple[Any, Any]:
    """(G, a) of N* = G (C/6)^a: a = beta/(alpha + beta), G = (alpha A / (beta B))^(1/(alpha + beta)) (Hoffmann et al.
    2022, eq. 4)."""
    a = p.beta / (p.alpha + p.beta)
    return (p.alpha * p.A / (p.beta * p.B)) ** (1 / (p.alpha + p.beta)), a


chinchilla = Law(
    "chinchilla",
    formula="L = E + A N^-alpha + B D^-beta",
    parameters=("E", "A", "B", "alpha", "beta"),
    columns=("params", "tokens"),
    predict=lambda p, x: p.E + p.A * x.params**-p.alpha + p.B * x.tokens**-p.beta,
    source="Hoffmann et al. 2022, eq. 2",
    linear_in=("E", "A", "B"),
    bounds=_ADDITIVE,
    starts={"alpha": _EXPONENTS, "beta": _EXPONENTS},
    optimum=_chinchilla_optimum,
    format_values=lambda p: f"L(N, D) = {p.E:.4g} + {p.A:.4g}/N^{p.alpha:.3f} + {p.B:.4g}/D^{p.beta:.3f}",
)


kaplan = Law(
    "kaplan",
    formula="L = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D",
    parameters=("Nc", "Dc", "alpha_N", "alpha_D"),
    columns=("params", "tokens"),
    predict=lambda p, x: ((p.Nc / x.params) ** (p.alpha_N / p.alpha_D) + p.Dc / x.tokens) ** p.alpha_D,
    source="Kaplan et al. 2020, eq. 1.5; published with params_non_embedding",
    bounds={"Nc": (1.0, 1e40), "Dc": (1.0, 1e40), "alpha_N": _EXPONENT, "alpha_D": _EXPONENT},
    starts=lambda x, y: _kaplan_starts(x, y),
)


def _kaplan_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts at which each term alone makes a share of the median loss at the median point: (Nc/N)^alpha_N = share_N L
    and (Dc/D)^alpha_D = share_D L, solved for Nc and Dc."""
    s = all_combinations(alpha_N=(*_FEW[:3], 0.07), alpha_D=(*_FEW[:3], 0.07), share_N=(0.5, 0.9), share_D=(0.5, 0.9))
    n, d, loss = np.median(x.params), np.median(x.tokens), np.median(y)
    return {
        "Nc": n * (s["share_N"] * loss) ** (1 / s["alpha_N"]),
        "Dc": d * (s["share_D"] * loss) ** (1 / s["alpha_D"]),
        "alpha_N": s["alpha_N"],
        "alpha_D": s["alpha_D"],
    }


interaction = Law(
    "interaction",
    formula="L = E + A N^-alpha + B N^gamma D^-beta",
    parameters=("E", "A", "B", "alpha", "beta", "gamma"),
    columns=("params", "tokens"),
    predict=lambda p, x: p.E + p.A * x.params**-p.alpha + p.B * x.params**p.gamma * x.tokens**-p.beta,
    source="ours: Farseer (2025) reduced to one parameter more than Chinchilla, which it is at gamma = 0",
    linear_in=("E", "A", "B"),
    bounds=_ADDITIVE | {"gamma": (-3.0, 3.0)},
    starts={"alpha": (0.1, 0.2, 0.35, 0.6, 1.0), "beta": (0.1, 0.2, 0.35, 0.6, 1.0), "gamma": (-0.3, -0.1, 0.1, 0.3)},
    format_values=lambda p: (
        f"L(N, D) = {p.E:.4g} + {p.A:.4g}/N^{p.alpha:.3f} + {p.B:.4g} N^{p.gamma:.3f}/D^{p.beta:.3f}"
    ),
)


_SIZE = 1e8  # N at which Farseer's three functions are given by a value and a slope


def _bent(n: Any, power: Any) -> Any:
    """Box-Cox transform ((N/1e8)^power - 1)/power of the size; ln(N/1e8) at power 0."""
    log = jnp.log(n / _SIZE)
    t = power * log
    # expm1(t)/t is 0/0 at t = 0: near it its Taylor series stands in, and the other branch gets a harmless argument, so
    # that neither value nor derivative is NaN.
    small = jnp.abs(t) < 1e-4
    safe = jnp.where(small, 1.0, t)
    return log * jnp.where(small, 1 + t / 2 + t**2 / 6, jnp.expm1(safe) / safe)


def _farseer(p: Any, x: Any) -> Any:
    """L = E(N) + B(N) D^-beta(N), with each of E, B and beta = value at N = 1e8 times exp(slope * Box-Cox of N)."""
    exponent = p.beta * jnp.exp(p.beta1 * _bent(x.params, p.beta2))
    data = jnp.exp(p.B1 * _bent(x.params, p.B2) - exponent * jnp.log(x.tokens))
    return p.E * jnp.exp(p.E1 * _bent(x.params, p.E2)) + p.B * data


def _farseer_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts whose data term B(N) D^-beta(N) depends on N only through the B1 of the grid at the median token count: B1
    is shifted by beta beta1 ln D, which cancels the change of D^-beta(N) with N there."""
    s = all_combinations(
        E1=np.array([-0.05, -0.15]), E2=np.array([-0.3, 0.1]), B1=np.array([-0.3, 0.0, 0.2]), B2=np.array([-0.2, 0.2]),
        beta=_FEW[:3], beta1=np.array([-0.1, 0.1]), beta2=np.array([-0.2, 0.2]),
    )  # fmt: skip
    return s | {"B1": s["B1"] + s["beta"] * s["beta1"] * np.log(np.median(x.tokens))}


farseer = Law(
    "farseer",
    formula="L = E(N) + B(N) D^-beta(N); E(N) = E e^(E1 h), B and beta alike, h = ((N/1e8)^E2 - 1)/E2",
    parameters=("E", "E1", "E2", "B", "B1", "B2", "beta", "beta1", "beta2"),
    columns=("params", "tokens"),
    predict=_farseer,
    source="Farseer 2025 (Li et al., arXiv 2506.10972), eq. 1; s = E1/(E2 1e8^E2), S = ln E - E1/E2, the rest alike",
    linear_in=("E", "B"),
    bounds={"E": _FLOOR, "B": _POSITIVE, "beta": _EXPONENT}
    | dict.fromkeys(("E1", "B1", "beta1"), (-20.0, 20.0))
    | dict.fromkeys(("E2", "B2", "beta2"), (-2.0, 2.0)),
    starts=_farseer_starts,
)


def _saturating(p: Any, x: Any) -> Any:
    """L = E + (L0 - E) h/(1 + h): a sum of powers h for small h, and the loss L0 before training for large h."""
    h = p.a * x.params**-p.alpha + p.b * x.tokens**-p.beta + p.c * x.params**p.gamma * x.tokens**-p.delta
    return p.E + (p.L0 - p.E) * h / (1 + h)


def _saturating_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts at which h has a given value at the median point: half from each of its first two terms. The third term
    starts at a tenth of h."""
    s = all_combinations(alpha=_FEW, beta=_FEW, h=(0.1, 0.5), gamma=(-0.2, 0.2))
    n, d = np.median(x.params), np.median(x.tokens)
    return {
        "L0": np.full(len(s["h"]), 1.2 * np.max(y)),
        "a": s["h"] / 2 * n ** s["alpha"],
        "alpha": s["alpha"],
        "b": s["h"] / 2 * d ** s["beta"],
        "beta": s["beta"],
        "c": 0.1 * s["h"] * n ** -s["gamma"] * d ** s["beta"],
        "gamma": s["gamma"],
        "delta": s["beta"],
    }


saturating = Law(
    "saturating",
    formula="L = E + (L0 - E) h/(1 + h), h = a N^-alpha + b D^-beta + c N^gamma D^-delta; L0 = ln V unless fitted",
    parameters=("E", "L0", "a", "alpha", "b", "beta", "c", "gamma", "delta"),
    columns=("params", "tokens"),
    predict=_saturating,
    source="arXiv 2605.09189; hold L0 at ln(vocabulary) with --fix L0=...",
    linear_in=("E",),
    bounds={"E": _FLOOR, "L0": (1e-3, 30.0), "a": _POSITIVE, "b": _POSITIVE, "c": (1e-30, 1e30)}
    | {"alpha": _EXPONENT, "beta": _EXPONENT, "delta": _EXPONENT, "gamma": (-3.0, 3.0)},
    starts=_saturating_starts,
)


def _data_constrained(p: Any, x: Any) -> Any:
    """Chinchilla's form in effective parameters and tokens, where each repetition is worth less than the one before
    (Muennighoff et al. 2023, eqs. 5 and 6)."""
    g, a = _chinchilla_optimum(p)
    # U_D unique tokens are seen 1 + R_D times. U_N is the compute-optimal size for U_D: with N = G F^a and
    # D = F^(1-a) / G, where F = C/6, it is G (G U_D)^(a/(1-a)). R_N counts the parameters beyond it likewise.
    unique = jnp.minimum(x.tokens, x.unique_tokens)
    repeats = x.tokens / unique - 1
    useful = jnp.minimum(x.params, g * (g * unique) ** (a / (1 - a)))
    excess = x.params / useful - 1
    params = useful * (1 + p.R_N * (1 - jnp.exp(-excess / p.R_N)))
    tokens = unique * (1 + p.R_D * (1 - jnp.exp(-repeats / p.R_D)))
    return p.E + p.A * params**-p.alpha + p.B * tokens**-p.beta


data_constrained = Law(
    "data_constrained",
    formula="L = E + A N'^-alpha + B D'^-beta, D' = U (1 + R_D (1 - e^(-(D/U - 1)/R_D))), N' alike with R_N",
    parameters=("E", "A", "B", "alpha", "beta", "R_N", "R_D"),
    columns=("params", "tokens", "unique_tokens"),
    predict=_data_constrained,
    source="Muennighoff et al. 2023, eqs. 5 and 6; hold the first five at a fit of single-epoch runs with --fix",
    linear_in=("E",),
    bounds=_ADDITIVE | {"R_N": (1e-2, 1e4), "R_D": (1e-2, 1e4)},
    starts=lambda x, y: _data_constrained_starts(x, y),
)


def _data_constrained_starts(x: Any, y: np.ndarray) -> dict[str, np.ndarray]:
    """Starts at which each of the two terms is a tenth, or four tenths, of the median loss at the median point."""
    s = all_combinations(alpha=_FEW[:3], beta=_FEW[:3], share=(0.1, 0.4), R_N=(1.0, 5.0, 30.0), R_D=(3.0, 15.0, 100.0))
    scale = s["share"] * np.median(y)
    return {name: s[name] for name in ("alpha", "beta", "R_N", "R_D")} | {
        "A": scale * np.median(x.params) ** s["alpha"],
        "B": scale * np.median(x.unique_tokens) ** s["beta"],
    }


over_training = Law(
    "over_training",
    formula="L = E + a N^-eta + b 6^(-eta/2) (M N)^-eta, M = D/N",
    parameters=("E", "a", "b", "eta"),
    columns=("params", "tokens"),
    predict=lambda p, x: p.E + (p.a * x.params**-p.eta + p.b * 6 ** (-p.eta / 2) * x.tokens**-p.eta),
    source="Gadre et al. 2024, eq. 4, as their code states it: one exponent, so that M shifts the law and nothing else",
    linear_in=("E", "a", "b"),
    bounds={"E": _FLOOR, "a": _POSITIVE, "b": _POSITIVE, "eta": _EXPONENT},
    starts={"eta": (*_EXPONENTS, 0.12, 0.2, 0.3, 0.4)},
    optimum=lambda p: ((p.a / (p.b * 6 ** (-p.eta / 2))) ** (1 / (2 * p.eta)), 0.5 + 0 * p.eta),
)
