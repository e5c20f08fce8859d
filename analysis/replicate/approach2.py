"""The bias of Chinchilla approach 2 on noise-free surfaces, as the width of the grid grows."""

from __future__ import annotations

from pathlib import Path

from analysis.fitting.isoflop import symmetric_bias
from analysis.replicate.study import Row, Study, compare

PUBLISHED = {2: -0.33, 4: -1.30, 8: -2.90, 16: -5.10}  # span each way -> error of D* at 1e24 FLOPs, percent
SIZES = 15


def run(_: Path) -> list[Row]:
    """Budgets of 15 sizes in equal ratios around the true optimum, alpha .34, beta .28; held to the printed digits."""
    rows = []
    for span, published in PUBLISHED.items():
        ours = 100 * symmetric_bias(span, SIZES).tokens
        rows.append(compare("approach2", f"D* at 1e24, grid +-{span}x, %", published, ours, 0.005))
    return rows


STUDY = Study("approach2", "noise-free Chinchilla surfaces, alpha .34, beta .28 (Hoffmann et al. 2022, table A3)", run)
