"""Gadre et al. 2024: loss and error of two large models, predicted by laws fitted to five or six small runs.

Used by `scaling replicate`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.fitting.fit import Fit, fit_law, mse
from analysis.laws import accuracy, surface
from analysis.replicate.study import Comparison, Replication, compare, read_csv

SIZES = (10_569_312, 78_914_048, 153_677_376, 411_616_256, 1_439_795_200, 6_889_410_560)  # N, embeddings included
LOSS_RUNS = ((0, 20), (1, 20), (2, 20), (3, 20), (0, 320))  # index into SIZES, tokens per parameter
ERROR_RUNS = (*LOSS_RUNS, (4, 20))
TARGETS = (  # run, its name, published relative errors in percent of its C4 loss and of its mean error on 17 tasks
    ((4, 640), "1.4B, M = 640", 0.7103, 3.6365),
    ((5, 20), "6.9B, M = 20", 0.7320, 0.0464),
)
TOLERANCE = 5e-5  # percent: half a unit of the last digit printed


def run(data: Path) -> list[Comparison]:
    """Compares prediction errors on RedPajama, the corpus of the printed numbers; notes give those on the other two."""
    table = read_csv(data, "gadre_104_models.csv")
    laws = fit_laws(table, "rpj")
    largest = TARGETS[-1][0]
    others = [prediction_errors(table, name, fit_laws(table, name), largest) for name in ("c4_original", "rw_original")]
    notes = [
        f"five points for four parameters: the same protocol misses this run's {quantity} by {others[0][i]:.2f} % "
        f"on C4 and {others[1][i]:.2f} % on RefinedWeb"
        for i, quantity in enumerate(("loss", "error"))
    ]
    rows = []
    for target, name, *published in TARGETS:
        ours = prediction_errors(table, "rpj", laws, target)
        for metric, printed, value, note in zip(("C4 loss", "17-task error"), published, ours, notes, strict=True):
            quantity = f"{metric} of {name}, prediction error, %"
            rows.append(compare("gadre", quantity, printed, value, TOLERANCE, note if target == largest else ""))
    return rows


def fit_laws(table: pd.DataFrame, corpus: str) -> tuple[Fit, Fit]:
    """The loss law and the error law of a corpus, both fitted by least squares, as in the released code."""
    loss_runs, error_runs = (_select_runs(table, corpus, runs) for runs in (LOSS_RUNS, ERROR_RUNS))
    loss = fit_law(surface.over_training, _columns(loss_runs), loss_runs["loss_c4_val"], mse)
    error = fit_law(accuracy.exponential_error, {"loss": error_runs["loss_c4_val"]}, error_runs["err_avg_subset"], mse)
    return loss, error


def prediction_errors(
    table: pd.DataFrame, corpus: str, laws: tuple[Fit, Fit], target: tuple[int, int]
) -> tuple[float, float]:
    """Errors, in percent, of a run's predicted loss and of its error rate, which follows from that loss."""
    actual = _select_runs(table, corpus, (target,))
    loss = laws[0].predict(_columns(actual))
    error = laws[1].predict({"loss": loss})
    percents = [
        float(100 * abs(predicted / actual[column].to_numpy() - 1)[0])
        for predicted, column in ((loss, "loss_c4_val"), (error, "err_avg_subset"))
    ]
    return percents[0], percents[1]


def _select_runs(table: pd.DataFrame, corpus: str, runs: tuple[tuple[int, int], ...]) -> pd.DataFrame:
    rows = table[table["dataset_name"] == corpus].set_index(["N", "tok_mult"])
    return rows.loc[[(SIZES[size], float(ratio)) for size, ratio in runs]].reset_index()


def _columns(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    return {"params": runs["N"].to_numpy(np.float64), "tokens": runs["D"].to_numpy(np.float64)}


STUDY = Replication(
    "gadre",
    "Gadre et al. 2024, arXiv 2403.08540; mlfoundations/scaling at a003c491",
    run,
    folder="gadre_overtrain",
    why_not_fetched="its table was joined from some 500 JSON files of the repository; give --data",
)
