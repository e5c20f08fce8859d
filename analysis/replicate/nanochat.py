"""nanochat's isoFLOP optima of January 2026: three ways to count parameters, three exponents.

The runs are not published, only the optima that this module quotes. So it recomputes the exponents and the tokens per
parameter from these optima. Used by `scaling replicate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.fitting.isoflop import fit_power_law
from analysis.replicate.study import Comparison, Reason, Replication, compare

FLOPS = np.array([1e18, 2.15e18, 4.64e18, 1e19])  # the budgets of runs/scaling_laws.sh; the log rounds them to 1 digit


@dataclass(frozen=True)
class Optima:
    """params, tokens: [budgets]. exponents: published (a, b) of N* ~ C^a, D* ~ C^b, correct to `digits` decimals."""

    counting: str
    params: tuple[float, ...]
    tokens: tuple[float, ...]
    exponents: tuple[float, float]
    digits: int


MATMUL = Optima(
    "matmul parameters",
    (110_678_115, 167_797_457, 250_650_865, 381_758_347),
    (1_241_505_403, 1_785_336_422, 2_642_234_152, 3_806_871_243),
    (0.536, 0.489),
    3,
)
TOTAL = Optima(
    "all parameters",
    (416_320_605, 560_239_841, 741_495_903, 988_644_331),
    (1_232_157_011, 1_763_669_281, 2_629_909_368, 3_884_841_895),
    (0.37, 0.50),
    2,
)
BLOCKS = Optima(
    "blocks alone",
    (80_259_665, 131_488_566, 220_985_474, 401_213_504),
    (1_315_639_547, 1_864_134_141, 2_595_328_843, 3_328_704_512),
    (0.70, 0.41),
    2,
)
RATIOS = (11.2, 10.7, 10.8, 10.3)  # printed beside MATMUL as tokens per parameter


def run(_: Path) -> list[Comparison]:
    """Fits N* and D* as powers of C for each way of counting, and compares the exponents with the published ones."""
    rows = []
    for optima in (MATMUL, TOTAL, BLOCKS):
        for name, values, published in zip("ND", (optima.params, optima.tokens), optima.exponents, strict=True):
            ours = fit_power_law(FLOPS, np.array(values)).exponent
            quantity = f"{name}* exponent, {optima.counting}"
            rows.append(compare("nanochat", quantity, published, ours, 0.5 * 10**-optima.digits))
    return rows + _compare_ratios()


def _compare_ratios() -> list[Comparison]:
    """Compares D* / N* with the printed ratios; a printed ratio above ours is explained.

    The published notebook interpolates the tokens and their ratio to parameters between trained sizes, each linearly in
    log N. D/N falls as N^-2 along a budget, a convex curve, so the interpolated ratio is larger than D* / N*.
    """
    ours = np.array(MATMUL.tokens) / np.array(MATMUL.params)
    is_above = bool(np.all(np.array(RATIOS) >= ours - 0.05))
    reason = Reason(
        "explained", is_above, "the printed ratio is interpolated by itself, which overstates D*/N* between sizes"
    )
    return [
        compare("nanochat", f"tokens per parameter at {flops:.3g}", published, ratio, 0.05, reason=reason)
        for flops, published, ratio in zip(FLOPS, RATIOS, ours, strict=True)
    ]


STUDY = Replication(
    "nanochat", "karpathy/nanochat, dev/LOG.md, entry of 2026-01-27, and dev/scaling_analysis.ipynb", run
)
