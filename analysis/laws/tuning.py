"""Laws of the best settings of an optimiser: peak learning rate and batch size, in parameters and tokens."""

from __future__ import annotations

from analysis.laws.law import Law

_POSITIVE = (1e-30, 1e30)
_SLOPES = (-0.7, -0.3, 0.0, 0.3, 0.7)

learning_rate = Law(
    "learning_rate",
    formula="lr = k N^n D^d",
    parameters=("k", "n", "d"),
    columns=("params", "tokens"),
    predict=lambda p, x: p.k * x.params**p.n * x.tokens**p.d,
    source="StepLaw 2025 (Li et al., arXiv 2503.04715), eq. 1: 1.79 N^-.713 D^.307",
    linear_in=("k",),
    bounds={"k": _POSITIVE, "n": (-5.0, 5.0), "d": (-5.0, 5.0)},
    starts={"n": _SLOPES, "d": _SLOPES},
    response="learning_rate",
)

batch = Law(
    "batch",
    formula="batch = k D^d",
    parameters=("k", "d"),
    columns=("tokens",),
    predict=lambda p, x: p.k * x.tokens**p.d,
    source="StepLaw 2025, eq. 1: .58 D^.571; Power Lines 2025: D^.383",
    linear_in=("k",),
    bounds={"k": _POSITIVE, "d": (-5.0, 5.0)},
    starts={"d": _SLOPES},
    response="batch_tokens",
)
