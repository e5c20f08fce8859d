"""Scaling collapse: normalised loss curves of well-scaled runs coincide, so a curve that does not marks a bad run.

A curve is normalised as by Qiu et al. 2025 ("Scaling collapse reveals universal dynamics in compute-optimally trained
neural networks"): the reduced loss L - L0, divided by its value at the end, against the share of the run's tokens.
These curves coincide if every size trains on the same multiple of its compute-optimal tokens with a schedule of the
same shape. A sweep for a law varies that multiple on purpose, so curves are compared here after a trend is removed
(ours): at each share, the log of the reduced loss is linear in log params and log tokens and quadratic in log tokens
per parameter, as that of a Chinchilla law is to second order about its optimum. Runs are compared only with runs of the
same schedule, optimizer and parametrization. Runs that saw the same batches share an offset, because they share the
batches' noise.

The normalisation hides a learning rate that is far too low: that stretches time, which does not change the shape of a
power law. So a run is judged by two numbers: the shape of its normalised curve, and the height of its end, both
compared with what the trend of the other runs expects. A run is called a cell here, as in a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from analysis.tables import run_status

RUN_SHARES = np.linspace(0.1, 0.9, 17)
"""Shares of a run's tokens at which curves are compared. Before them the warm-up and the learning of token frequencies
determine the curve."""
WINDOW = 0.1
"""Share of a run over which its training loss is averaged; a line of the log holds the loss of one batch."""
MIN_LINES = 40
"""Logged lines that a curve needs."""
MIN_SAME_BATCHES = 3
"""Cells that must have seen the same batches for these to have an offset."""
MAX_BATCH_SETS, MAX_FLOOR_CELLS = 64, 1_000
"""The most sets of same batches that have offsets, and the most cells from which the floor L0 is estimated: the time
that both take grows faster than the number of cells."""
MIN_FREE_CELLS = 6
"""Cells that a group needs beyond the number of parameters of its trend."""
ALARM_SIGMAS = 3.5
"""Deviation beyond which a cell is an outlier: one good cell in 2,000 is, if deviations are normal."""
MIN_SIGMA = 0.01
"""The least standard deviation assumed, in log reduced loss, however little the cells scatter."""
GROUP_COLUMNS = ("schedule", "optimizer", "parametrization", "repeats")
"""Cells that differ in one of these columns are not compared; `repeats` is whether a run sees a token twice."""
FLOOR_SHARES = np.linspace(0.0, 0.9, 10)
"""Candidates for L0, as shares of the lowest loss, if no fit gives it."""
_SAME_BATCHES = ("tokens", "batch_tokens", "seed", "unique_tokens")
_SAME_BUT_RATE = (*_SAME_BATCHES, "width", "depth", "weight_decay", *GROUP_COLUMNS)
_PLANNED = {"tokens": "budget_tokens", "unique_tokens": "unique_limit"}
"""What was done -> what was planned, which differs for a run that diverged."""
_END = np.array([1 - WINDOW / 2])
_TUNING, _SHRINKAGE = 4.685, 0.910
"""Of Tukey's bisquare: its width in sigmas, and the standard deviation of a standard normal under its weights."""
_MAX_ROUNDS, _TOLERANCE, _MIN_REMAINDER = 20, 0.01, 0.05
"""Of the reweighting: rounds, change of the weights at which it stops; share of the trend that other cells must
carry."""


@dataclass(frozen=True)
class Curve:
    """The logged steps of a run: tokens trained on, training loss (nats per token, of one batch), learning rate; each
    [lines]."""

    tokens: np.ndarray
    loss: np.ndarray
    learning_rate: np.ndarray

    def smooth(self, shares: np.ndarray = RUN_SHARES) -> np.ndarray:
        """Mean loss in a window of WINDOW about each share of the run, nan without a line in it: [shares]."""
        # a difference of cumulative sums; the factor keeps a line at the very end of a window inside
        sums = np.concatenate([[0.0], np.cumsum(self.loss)])
        ends = [(shares + side * WINDOW / 2) * self.tokens[-1] * (1 + 1e-9) for side in (-1, 1)]
        low, high = (np.searchsorted(self.tokens, end, "right") for end in ends)
        return (sums[high] - sums[low]) / np.where(high > low, high - low, np.nan)


@dataclass(frozen=True)
class Collapse:
    """The curves of the cells that could be compared, in the order of the table.

    Attributes:
      cells: one row per cell, with columns run_id, params, tokens, loss and group, and
        expected: the final loss that the trend of the other cells gives, nats per token;
        away: log of its reduced final loss over the expected one;
        bend: the widest gap between its normalised curve and the trend's, in log reduced loss;
        height, shape: `away` and the gaps in units of the others' spread, as standard deviations of a normal
        distribution; nan if a cell lies so far from the others in size and tokens that they give no trend for it.
      floor: L0, nats per token.
      smoothed: smoothed loss, nats per token: [cells, shares].
      normalised: reduced loss over that which the trend expects at the end, without the trend of the shape: [cells,
        shares].
      left_out: reason why cells were not compared -> their number.
    """

    cells: pd.DataFrame
    floor: float
    smoothed: np.ndarray
    normalised: np.ndarray
    left_out: Mapping[str, int]

    def explain_outliers(self) -> dict[str, str]:
        """run_id -> why the cell is off the collapse, in one sentence, of the cells that are."""
        explanations = {}
        for cell in self.cells.to_dict("records"):
            reasons = []
            if cell["shape"] > ALARM_SIGMAS:
                reasons.append(
                    f"its normalised curve bends up to {abs(np.expm1(cell['bend'])):.0%} "
                    f"{'above' if cell['bend'] > 0 else 'below'} the others ({cell['shape']:.1f} sigmas)"
                )
            if abs(cell["height"]) > ALARM_SIGMAS:
                reasons.append(
                    f"it ends {abs(np.expm1(cell['away'])):.0%} {'above' if cell['away'] > 0 else 'below'} the reduced "
                    f"loss of the others' trend ({abs(cell['height']):.1f} sigmas)"
                )
            if reasons:
                explanations[cell["run_id"]] = " and ".join(reasons)
        return explanations


def scan_ids(table: pd.DataFrame) -> pd.Series:
    """The number of the learning-rate scan of each row: equal for rows that differ only in their learning rate."""
    planned = [_PLANNED.get(name, name) for name in _SAME_BUT_RATE]
    names = [new if new in table else old for new, old in zip(planned, _SAME_BUT_RATE, strict=True)]
    same = [name for name in (*names, "params_matmul", "params") if name in table]
    return table.groupby(same, dropna=False, sort=False).ngroup() if same else pd.Series(0, table.index)


def compare_curves(table: pd.DataFrame, curves: Mapping[str, Curve], floor: float | None = None) -> Collapse:
    """Compares every finished cell with the others of its group.

    The trend comes from the best learning rate of each scan, and each cell is judged by a trend without itself.

    Args:
      table: columns run_id, tokens, params_matmul (or params), loss (nats per token), and perhaps others of the results
        table.
      curves: run_id -> curve.
      floor: L0, such as the E of a fit. Default: the value for which the curves coincide best, a poor estimate.
    """
    rows = run_status.done_rows(table)
    rows = rows[np.isfinite(rows["loss"].astype(float))]
    has_curve = [
        _is_complete(curves.get(run), tokens) for run, tokens in zip(rows["run_id"], rows["tokens"], strict=True)
    ]
    cells = _cells(rows[np.array(has_curve, bool)])
    # the trend of a group has four parameters
    enough = cells.groupby("group", sort=False)["best"].transform("sum") >= 4 + MIN_FREE_CELLS
    left_out = {"without a whole curve": len(rows) - len(cells), "with too few to compare with": int((~enough).sum())}
    cells = cells[enough].reset_index(drop=True)
    smoothed = np.array([curves[run].smooth() for run in cells["run_id"]]).reshape(-1, len(RUN_SHARES))
    ends = np.array([curves[run].smooth(_END)[0] for run in cells["run_id"]])
    lowest = float(min([*smoothed.ravel(), *ends, *cells["loss"]], default=1.0))
    groups = [_group(cells, np.asarray(at)) for at in cells.groupby("group", sort=False).indices.values()]
    loss = cells["loss"].to_numpy()
    if floor is None or floor >= lowest:
        candidates = (FLOOR_SHARES * lowest).tolist()
        samples = [_group(cells, rows_of_group) for rows_of_group in _sample_groups(cells)]
        floor = min(candidates, key=lambda at: _looseness(samples, *_log_reduced(smoothed[:, ::4], ends, loss, at)))
    judged, normalised = _judge(cells, groups, *_log_reduced(smoothed, ends, loss, floor))
    judged["expected"] = floor + (loss - floor) * np.exp(-judged["away"])
    return Collapse(judged, floor, smoothed, normalised, {why: n for why, n in left_out.items() if n})


def _is_complete(curve: Curve | None, tokens: float) -> bool:
    """Whether the curve covers the whole run of so many tokens, with enough lines."""
    if curve is None or len(curve.loss) < MIN_LINES or curve.tokens[-1] < 0.99 * tokens:
        return False
    return bool(np.isfinite(curve.smooth()).all() and np.isfinite(curve.smooth(_END)).all())


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns run_id, params, tokens, loss; group: number of the group of cells that are compared; batches: number of
    the set of cells that saw the same batches; best: whether the cell is the best of its scan."""
    if "unique_tokens" in rows:
        rows = rows.assign(repeats=rows["unique_tokens"] < rows["tokens"])

    def numbered(names: tuple[str, ...]) -> np.ndarray:
        present = [name for name in names if name in rows]
        if not present:
            return np.zeros(len(rows), int)
        return rows.groupby(present, dropna=False, sort=False).ngroup().to_numpy()

    params = rows["params" if "params" in rows else "params_matmul"].to_numpy(np.float64)
    tokens, loss = (rows[name].to_numpy(np.float64) for name in ("tokens", "loss"))
    best = loss == pd.Series(loss).groupby(scan_ids(rows).to_numpy()).transform("min").to_numpy()
    columns = {"run_id": rows["run_id"].to_numpy(), "params": params, "tokens": tokens, "loss": loss, "best": best}
    return pd.DataFrame(columns | {"group": numbered(GROUP_COLUMNS), "batches": numbered(_SAME_BATCHES)})


@dataclass(frozen=True)
class _Group:
    """Cells that are compared with one another.

    Attributes:
      rows: their rows in the table of cells: [cells].
      in_trend: which of them determine the trends: [cells] of bool.
      shape_basis, height_basis: orthonormal bases of the trends: [cells, parameters].
    """

    rows: np.ndarray
    in_trend: np.ndarray
    shape_basis: np.ndarray
    height_basis: np.ndarray


def _group(cells: pd.DataFrame, rows: np.ndarray) -> _Group:
    """The group of these rows. The trend of its shapes has an offset for each set of cells that saw the same batches,
    unless that leaves too few cells, or there are more than MAX_BATCH_SETS such sets."""
    names = ("best", "params", "tokens", "batches")
    in_trend, params, tokens, batches = (cells[name].to_numpy()[rows] for name in names)
    params, tokens = np.log(params), np.log(tokens)
    ratio = tokens - params - np.median(tokens - params)
    surface = [np.ones(len(rows)), params - params.mean(), tokens - tokens.mean(), ratio**2]
    sets, sizes = np.unique(batches, return_counts=True)
    shared = sets[sizes >= MIN_SAME_BATCHES] if (sizes >= MIN_SAME_BATCHES).sum() <= MAX_BATCH_SETS else []
    with_offsets = _orthonormal_basis([*surface, *((batches == number).astype(float) for number in shared)])
    plain = _orthonormal_basis(surface)
    has_enough = in_trend.sum() - with_offsets.shape[1] >= MIN_FREE_CELLS
    return _Group(rows, in_trend, with_offsets if has_enough else plain, plain)


def _sample_groups(cells: pd.DataFrame) -> list[np.ndarray]:
    """The rows of each group: all of at most MAX_FLOOR_CELLS, else every k-th."""
    groups = [np.asarray(rows) for rows in cells.groupby("group", sort=False).indices.values()]
    return [rows[:: -(-len(rows) // MAX_FLOOR_CELLS)] for rows in groups]


def _orthonormal_basis(columns: list[np.ndarray]) -> np.ndarray:
    """An orthonormal basis of the span of columns: [cells, parameters]."""
    basis, singular_values, _ = np.linalg.svd(np.stack(columns, 1), full_matrices=False)
    return basis[:, singular_values > 1e-9 * singular_values[0]]


def _deleted_residuals(
    basis: np.ndarray, values: np.ndarray, in_trend: np.ndarray, min_sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far each value lies from the trend of the other cells, and the same in robust sigmas: [cells, columns] each.

    The trend is fitted with Tukey's bisquare, iteratively reweighted. The weights come from deleted residuals, so that
    a cell that pulls the trend towards itself is still seen. Sigma is that of the residuals under these weights. nan
    for a cell that alone determines the trend at its place.

    Args:
      basis: of the trend: [cells, parameters].
      values: [cells, columns], each column with a trend of its own.
      in_trend: which cells determine the trend: [cells] of bool.
      min_sigma: the least sigma.
    """
    weights = np.tile(in_trend[:, None].astype(float), values.shape[1])
    for _ in range(_MAX_ROUNDS):
        residuals, scaled = _weighted_residuals(basis, values, weights)
        size = np.abs(np.nan_to_num(scaled))
        # 1.4826 median |r| estimates the standard deviation of a normal distribution
        sigma = np.maximum(1.4826 * np.median(size[in_trend], 0), min_sigma)
        before, weights = weights, in_trend[:, None] * np.maximum(1 - (size / sigma / _TUNING) ** 2, 1e-3) ** 2
        if np.abs(weights - before).max() < _TOLERANCE:
            break
    spread = np.sqrt((weights * size**2).sum(0) / weights.sum(0)) / _SHRINKAGE
    return residuals, scaled / np.maximum(spread, min_sigma)


def _weighted_residuals(basis: np.ndarray, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deleted residuals of a weighted least-squares fit, and the same scaled to equal variance: [cells, columns] each.
    nan for a cell that alone determines the fit at its place."""
    # for each column c: coefficients (X' W_c X)^-1 X' W_c y_c, with a tiny ridge against singular weights
    weighted = weights.T[:, :, None] * basis
    inverse = np.linalg.inv(weighted.transpose(0, 2, 1) @ basis + 1e-9 * np.eye(basis.shape[1]))
    coefficients = inverse @ (weighted.transpose(0, 2, 1) @ values.T[:, :, None])
    leverage = ((basis @ inverse) * basis).sum(-1).T
    # a residual of the fit without the cell itself is r / (1 - w h), and its variance is 1 + h / (1 - w h)
    remainder = np.maximum(1 - weights * leverage, 1e-9)
    residuals = values - (basis @ coefficients)[:, :, 0].T
    deleted = np.where(remainder > _MIN_REMAINDER, residuals / remainder, np.nan)
    return deleted, deleted / np.sqrt(1 + leverage / remainder)


def _to_normal_sigmas(score: np.ndarray, free: int) -> np.ndarray:
    """The standard deviations of a normal distribution that are as improbable as a score of Student's t distribution
    with `free` degrees of freedom."""
    return np.sign(score) * special.ndtri(np.minimum(special.stdtr(free, np.abs(score)), 1 - 1e-16))


def _judge(
    cells: pd.DataFrame, groups: list[_Group], shapes: np.ndarray, heights: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """(Collapse.cells without `expected`, Collapse.normalised).

    Args:
      shapes: log reduced loss over its own end: [cells, shares].
      heights: log reduced loss at the end: [cells, 1].
    """
    gaps, sigmas, medians = np.zeros_like(shapes), np.full_like(shapes, np.nan), np.zeros_like(shapes)
    above, height, shape = np.zeros_like(heights), np.zeros_like(heights), np.zeros(len(cells))
    for group in groups:
        rows, in_trend = group.rows, group.in_trend
        gaps[rows], sigmas[rows] = _deleted_residuals(group.shape_basis, shapes[rows], in_trend, MIN_SIGMA)
        above[rows], scores = _deleted_residuals(group.height_basis, heights[rows], in_trend, MIN_SIGMA)
        height[rows] = _to_normal_sigmas(scores, in_trend.sum() - group.height_basis.shape[1])
        root_mean_square = np.sqrt(np.mean(sigmas[rows] ** 2, 1))
        shape[rows] = _to_normal_sigmas(root_mean_square, in_trend.sum() - group.shape_basis.shape[1])
        medians[rows] = np.median(shapes[rows][in_trend], 0)
    widest = np.argmax(np.nan_to_num(np.abs(sigmas)), 1)[:, None]
    bend = np.take_along_axis(gaps, widest, 1)[:, 0]
    judged = cells.assign(shape=shape, bend=bend, height=height[:, 0], away=above[:, 0])
    return judged, np.exp(medians + gaps + above)


def _looseness(groups: list[_Group], shapes: np.ndarray, heights: np.ndarray) -> float:
    """How far the cells lie from their trends, relative to the range of the trends, so that the scale of the reduced
    loss does not matter: the sum of the value of the shapes and that of the heights, which determines L0 far better."""
    looseness = 0.0
    for group in groups:
        in_trend, group_shapes, group_heights = group.in_trend, shapes[group.rows], heights[group.rows]
        gaps, _ = _deleted_residuals(group.shape_basis, group_shapes, in_trend, 1e-9)
        looseness += np.median(np.abs(gaps[in_trend])) / max(np.std(np.median(group_shapes[in_trend], 0)), 1e-9)
        gaps, _ = _deleted_residuals(group.height_basis, group_heights, in_trend, 1e-9)
        looseness += np.median(np.abs(gaps[in_trend])) / max(np.std(group_heights[in_trend]), 1e-9)
    return float(looseness)


def _log_reduced(
    smoothed: np.ndarray, ends: np.ndarray, loss: np.ndarray, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """(log reduced training loss over its own end: [cells, shares]; log reduced validation loss at the end: [cells,
    1])."""
    return np.log((smoothed - floor) / (ends - floor)[:, None]), np.log(loss - floor)[:, None]
