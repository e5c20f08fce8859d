"""StepLaw (Li et al. 2025): the optimal learning rate and batch size as power laws in N and D."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.replicate.study import File, Reason, Row, Study, compare, read_csv

WITHIN = 0.0025  # of the lowest smoothed loss of its (N, D): the released rule for a run that counts as optimal
SEQUENCE = 2048  # tokens; the table counts batches in sequences
DRAWS = 1000
RERUN_TOLERANCE = 0.01


@dataclass(frozen=True)
class Published:
    """A coefficient of the paper; the column of its bootstrap table; what a user got from the released script."""

    quantity: str
    column: str
    value: float
    tolerance: float
    rerun: float


EXPONENTS = (
    Published("learning rate ~ N^", "lr_coefN", -0.713, 5e-4, -0.7669),
    Published("learning rate ~ D^", "lr_coefD", 0.307, 1e-3, 0.1967),
    Published("batch ~ D^", "bs_coefD", 0.571, 5e-4, 0.6238),
)
COEFFICIENTS = (
    ("learning rate coefficient", "lr_intercept", 1.79),
    ("batch coefficient, tokens", "bs_intercept", 0.58),
)


def run(data: Path) -> list[Row]:
    """First the paper's law from its own 1,000 bootstrap fits, then the law that the released runs and rule give."""
    means = read_csv(data, "1004_fitted_lr_bs_scaling_model_parameters.csv").mean()
    rows = [
        compare("steplaw", f"{p.quantity}, mean of the published fits", p.value, means[p.column], p.tolerance)
        for p in EXPONENTS
    ]
    rows += [compare("steplaw", name, value, np.exp(means[column]), 0.01) for name, column, value in COEFFICIENTS]
    return rows + _rerun(read_csv(data, "dense_lr_bs_loss.csv"))


def near_optimal(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs within 0.25 % of the lowest smoothed loss of their (N, D)."""
    lowest = runs.groupby(["N", "D"])["smooth loss"].transform("min")
    return runs[runs["smooth loss"] / lowest - 1 < WITHIN].reset_index(drop=True)


def exponents(runs: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """[lr ~ N^, lr ~ D^, batch ~ N^, batch ~ D^, batch ~ D^ alone] by least squares on the given rows, in logs."""
    chosen = runs.iloc[rows]
    sizes = np.log(chosen[["N", "D"]].to_numpy())
    targets = np.log(np.stack([chosen["lr"], chosen["bs"] * SEQUENCE], axis=1))
    one = np.ones((len(sizes), 1))
    both = np.linalg.lstsq(np.hstack([one, sizes]), targets, rcond=None)[0]
    alone = np.linalg.lstsq(np.hstack([one, sizes[:, 1:]]), targets[:, 1], rcond=None)[0]
    return np.array([both[1, 0], both[2, 0], both[1, 1], both[2, 1], alone[1]])


def _rerun(runs: pd.DataFrame) -> list[Row]:
    """The law of the released rule on the released runs; a difference is explained where another's re-run agrees."""
    chosen = near_optimal(runs)
    random = np.random.default_rng(0)
    pairs = np.mean([exponents(chosen, random.integers(len(chosen), size=len(chosen))) for _ in range(DRAWS)], axis=0)
    cells = [np.array(rows) for rows in chosen.groupby(["N", "D"]).indices.values()]
    picks = (random.integers(len(cells), size=len(cells)) for _ in range(DRAWS))
    low, high = np.quantile(
        [exponents(chosen, np.concatenate([cells[i] for i in p])) for p in picks], [0.025, 0.975], axis=0
    )
    rows = []
    for published, rerun, ours in zip(EXPONENTS, (0, 1, 3), (0, 1, 4), strict=True):
        agrees = abs(pairs[rerun] - published.rerun) <= RERUN_TOLERANCE
        inside = "holds" if low[ours] <= published.value <= high[ours] else "does not hold"
        note = (
            f"a user's re-run of the released script (issue 10) got {published.rerun}, ours of the same regression is "
            f"{pairs[rerun]:.4f}: the published value rests on a selection that was not released; our 95 % interval "
            f"over (N, D) cells, {low[ours]:.3f} to {high[ours]:.3f}, {inside} it"
        )
        reason = Reason("explained", bool(agrees), note)
        quantity = f"{published.quantity}, from the released runs"
        rows.append(compare("steplaw", quantity, published.value, pairs[ours], 0.02, reason=reason))
    return rows


STUDY = Study(
    "steplaw",
    "Li et al. 2025, arXiv 2503.04715; step-law/steplaw at 32a8f4cc",
    run,
    folder="steplaw/data",
    repository="step-law/steplaw",
    commit="32a8f4cc50247695fb56cc6c9117abdf67c97763",
    files=(
        File(
            "data/1004_fitted_lr_bs_scaling_model_parameters.csv",
            "1004_fitted_lr_bs_scaling_model_parameters.csv",
            "2252afbba5530e6ba6167e8101bd2b9082a018a58cb5922cc8672891a7f4336c",
        ),
        File(
            "data/dense_lr_bs_loss.csv",
            "dense_lr_bs_loss.csv",
            "9e46181076c04d450294d75dfe6f72adc416e231e154a07b337e378f9410002c",
        ),
    ),
)
