"""How far Chinchilla's approach 2 is off on noise-free losses, as the range of model sizes grows.

Used by `scaling replicate`.
"""

from __future__ import annotations

from pathlib import Path

from analysis.fitting.isoflop import symmetric_bias
from analysis.replicate.study import Comparison, Replication, compare

PUBLISHED = {
    2: -0.33,
    4: -1.30,
    8: -2.90,
    16: -5.10,
}  # span to each side of the optimum -> error of D* at 1e24 FLOPs, percent
SIZES_PER_BUDGET = 15


def run(_: Path) -> list[Comparison]:
    """Compares the error of D* at 1e24 FLOPs with the printed one, to the digits printed.

    Each budget has 15 sizes in equal ratios around the true optimum; the law has alpha .34 and beta .28.
    """
    rows = []
    for span, published_percent in PUBLISHED.items():
        our_percent = 100 * symmetric_bias(span, SIZES_PER_BUDGET).tokens
        rows.append(compare("approach2", f"D* at 1e24, grid +-{span}x, %", published_percent, our_percent, 0.005))
    return rows


STUDY = Replication(
    "approach2", "noise-free Chinchilla surfaces, alpha .34, beta .28 (Hoffmann et al. 2022, table A3)", run
)
