"""Porian et al. 2024: the N exponent from Kaplan's .84 to Chinchilla's .50 in five steps, on two corpora.

Used by `scaling replicate`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.fitting.isoflop import akima
from analysis.replicate.study import Comparison, Replication, compare, read_csv

TOLERANCE = 0.005
STEPS = (  # what a step changes; values of hparams, warmup, decay and param_count that select its runs
    ("Kaplan's set-up", ("base", "long", "kaplan", "kaplan")),
    ("+ last layer counted", ("base", "long", "kaplan", "standard")),
    ("+ short warm-up", ("base", "short", "kaplan", "standard")),
    ("+ cosine decay to D", ("base", "short", "chinchilla", "standard")),
    ("+ tuned optimiser", ("tuned", "short", "const", "standard")),
)
CORPORA = (  # name, file, standard deviation of the loss between seeds, published exponents in the order of STEPS
    ("RefinedWeb", "summary_df_points.csv", 0.002, (0.8353, 0.7065, 0.6020, 0.5715, 0.4969)),
    ("OpenWebText2", "summary_df_owt2_points.csv", 0.010, (0.8635, 0.6985, 0.6032, 0.5743, 0.5185)),
)


def run(data: Path) -> list[Comparison]:
    """Compares the exponent of N* after each step with the published one, on both corpora.

    The optimum of a budget is the median of 1,000 minima of Akima splines through noisy losses; the exponent is a
    regression with the weights of the released code. The noise is that code's low level for every run: it compares log
    loss with thresholds meant for loss, so its high level never applies.
    """
    rows = []
    for corpus, file, noise, published in CORPORA:
        table = read_csv(data, file).rename(columns={"N": "params", "D": "tokens"})
        keys = table[["hparams", "warmup", "decay", "param_count"]]
        for (step, key), exponent in zip(STEPS, published, strict=True):
            points = table[np.all(keys.to_numpy() == key, axis=1)]
            ours = akima(points[["params", "tokens", "flops", "loss"]], noise=noise).params_law.exponent
            rows.append(compare("porian", f"N* exponent, {corpus}, {step}", exponent, ours, TOLERANCE))
    return rows


STUDY = Replication(
    "porian",
    "Porian et al. 2024, arXiv 2406.19146; formll/resolving-scaling-law-discrepancies at 0dc60d91",
    run,
    folder="porian",
    why_not_fetched="its tables were taken out of pickles, which run code when opened; give --data",
)
