"""Alabdulmohsin et al. 2022, the language half of the benchmark: learning curves extrapolated by laws of one variable.

The published table was not available; the bounds are means that runs of the original algorithms
gave on the same files, as the public tables' README states them. So a verdict says that ours is no worse, not that it
agrees. Used by `scaling replicate`.
"""

from __future__ import annotations

from pathlib import Path

from analysis.fitting.curves import fit_curves, summarize_scores
from analysis.laws import curve
from analysis.replicate.study import Comparison, Replication, check_bound, read_csv

CURVE_KEYS = ("Domain", "Task", "Model")
COLUMN_NAMES = {"Seen Examples": "x", "Loss": "y", "Training": "train"}
BOUNDS = {  # mean RMSLE of forecasts on translation, language modelling, BIG-Bench
    "m1": {"NMT": 0.2217, "LM": 0.01397, "BB": 0.01481},
    "m2": {"NMT": 0.0341, "LM": 0.00102, "BB": 0.0148},
    "m4": {"NMT": 0.0208, "LM": 0.00094, "BB": 0.0123},
    "bnsl": {"NMT": 0.0102, "LM": 0.0008, "BB": 0.0163},
}


def run(data: Path) -> list[Comparison]:
    """Fits each law to the first part of every curve and compares the mean error of its forecasts with the bound."""
    table = read_csv(data, "benchmark.lang.csv").rename(columns=COLUMN_NAMES)
    laws = (curve.m1, curve.m2, curve.m3, curve.m4, curve.bnsl)
    means = summarize_scores(fit_curves(table, laws, by=CURVE_KEYS), CURVE_KEYS)
    rows = []
    for law, bounds in BOUNDS.items():
        for domain, bound in bounds.items():
            scores = means[(means["law"] == law) & (means["domain"] == domain)].iloc[0]
            note = f"{scores['curves']:.0f} curves, median {scores['median']:.4g}"
            rows.append(check_bound("alabdulmohsin", f"{law}, {domain}", bound, float(scores["mean"]), note))
    return rows


STUDY = Replication(
    "alabdulmohsin",
    "Alabdulmohsin et al. 2022, arXiv 2209.06640; IBM/ColPret at 16f23bbe holds the same bytes",
    run,
    folder="alabdulmohsin_language",
    why_not_fetched="the original repository is a gigabyte; give --data",
)
