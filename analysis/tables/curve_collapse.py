"""Scaling collapse: the normalised loss curves of a sweep lie on one another, and that of a badly scaled cell does not.

A curve is normalised as by Qiu et al. 2025 ("Scaling collapse reveals universal dynamics in compute-optimally trained
neural networks"): reduced loss, L - L0, over its own end, against the share of the run's tokens. Such curves fall on
one another where every size trains on the same multiple of its compute-optimal tokens under a schedule of one shape.
A sweep for a law varies that multiple on purpose, so curves are compared here up to a trend (ours): at each share, the
log of the reduced loss is linear in log params and log tokens and quadratic in log tokens per parameter, as that of a
Chinchilla law is to second order about its optimum. Cells of other schedules, optimizers or parametrizations are
compared apart; cells that saw the same batches have an offset of their own, because they share those batches' noise.

The normalisation hides a learning rate that is far too low: that stretches time, which a power law does not show. So a
cell is judged by two numbers: the shape of its normalised curve, and the height of its end beside that of the others.

Not in the design's list of modules: it judges curves, which `results` does not hold, before any law is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

RUN_SHARES = np.linspace(0.1, 0.9, 17)
"""Of a run's tokens: where curves are compared. Earlier, warm-up and the frequencies of tokens rule."""
WINDOW = 0.1
"""Share of a run over which its training loss is averaged; a line of the log holds the loss of one batch."""
MIN_LINES = 40
MIN_SAME_BATCHES = 3
MAX_BATCH_SETS, MAX_FLOOR_CELLS = 64, 1_000
"""Sets of cells that saw the same batches, each with an offset; cells by which the floor is found. More cost time that
grows faster than the number of cells."""
MIN_FREE_CELLS = 6
"""Cells to compare with, beyond the parameters of the trend."""
ALARM_SIGMAS = 3.5
"""What raises the alarm: one clean cell in 2,000 would, were its deviations normal."""
MIN_SIGMA = 0.01
"""Log reduced loss: the least that a sigma is taken to be, however quiet the cells."""
GROUP_COLUMNS = ("schedule", "optimizer", "parametrization", "repeats")
"""Cells that differ in one of these are not compared. A run that repeats its tokens is not like one that does not."""
FLOOR_SHARES = np.linspace(0.0, 0.9, 10)
"""Candidates for L0, as shares of the lowest loss, where no fit says it."""
_SAME_BATCHES = ("tokens", "batch_tokens", "seed", "unique_tokens")
_SAME_BUT_RATE = (*_SAME_BATCHES, "width", "depth", "weight_decay", *GROUP_COLUMNS)
_ASKED = {"tokens": "budget_tokens", "unique_tokens": "unique_limit"}
"""What a run was to do, which one that diverged did not."""
_END = np.array([1 - WINDOW / 2])
_TUNING, _SHRINKS = 4.685, 0.910
"""Of the bisquare: its width in sigmas; and the standard deviation of a normal law under its weights."""
_ROUNDS, _SETTLED, _LEAST_LEFT = 20, 0.01, 0.05


@dataclass(frozen=True)
class Curve:
    """What a run logged: tokens seen, training loss (nats per token, of one batch), learning rate; each [lines]."""

    tokens: np.ndarray
    loss: np.ndarray
    learning_rate: np.ndarray

    def smooth(self, shares: np.ndarray = RUN_SHARES) -> np.ndarray:
        """Mean loss in a window of WINDOW about each share of the run; nan where no line falls in it: [shares]."""
        sums = np.concatenate([[0.0], np.cumsum(self.loss)])
        ends = [(shares + side * WINDOW / 2) * self.tokens[-1] * (1 + 1e-9) for side in (-1, 1)]
        low, high = (np.searchsorted(self.tokens, end, "right") for end in ends)
        return (sums[high] - sums[low]) / np.where(high > low, high - low, np.nan)


@dataclass(frozen=True)
class Collapse:
    """The curves of the cells that could be compared, in the order of the table.

    cells: one row a cell: run_id, params, tokens, group; `expected`, the loss at which the other cells' trend has it
      end; `away`, its end over that, and `bend`, the widest gap between its normalised curve and the others', both in
      logs of the reduced loss; `height` and `shape`, the same by the spread of the others: the sigmas of a normal law
      that are as rare. nan where a cell lies so far from the others in size and tokens that they say nothing of it.
    floor: L0, nats per token. raw: smoothed loss, nats per token: [cells, shares]. normalised: reduced loss over that
      at the end that the trend expects, the trend of the shape taken out: [cells, shares].
    left_out: why cells were not compared -> how many.
    """

    cells: pd.DataFrame
    floor: float
    smoothed: np.ndarray
    normalised: np.ndarray
    left_out: Mapping[str, int]

    def explain_outliers(self) -> dict[str, str]:
        """run_id -> why the cell is off the collapse, in one sentence."""
        found = {}
        for cell in self.cells.to_dict("records"):
            said = []
            if cell["shape"] > ALARM_SIGMAS:
                said.append(
                    f"its normalised curve bends up to {abs(np.expm1(cell['bend'])):.0%} "
                    f"{'above' if cell['bend'] > 0 else 'below'} the others ({cell['shape']:.1f} sigmas)"
                )
            if abs(cell["height"]) > ALARM_SIGMAS:
                said.append(
                    f"it ends {abs(np.expm1(cell['away'])):.0%} {'above' if cell['away'] > 0 else 'below'} the reduced "
                    f"loss of the others' trend ({abs(cell['height']):.1f} sigmas)"
                )
            if said:
                found[cell["run_id"]] = " and ".join(said)
        return found


def scan_ids(table: pd.DataFrame) -> pd.Series:
    """One number for all rows that are alike in everything but their learning rate."""
    asked = [_ASKED.get(name, name) for name in _SAME_BUT_RATE]
    names = [new if new in table else old for new, old in zip(asked, _SAME_BUT_RATE, strict=True)]
    same = [name for name in (*names, "params_matmul", "params") if name in table]
    return table.groupby(same, dropna=False, sort=False).ngroup() if same else pd.Series(0, table.index)


def compare_curves(table: pd.DataFrame, curves: Mapping[str, Curve], floor: float | None = None) -> Collapse:
    """Every cell that is done beside the others of its group.

    What the others do is told by the best rate of each scan of learning rates; each cell is judged without itself.

    Args:
      table: columns run_id, tokens, params_matmul (or params), loss (nats per token); and of a sweep's other columns
        those that it has.
      curves: run_id -> curve.
      floor: L0, as the E of a fit; the shared value that collapses the curves best unless given. Curves tell it poorly.
    """
    rows = table[table["status"] == "done"] if "status" in table else table
    rows = rows[np.isfinite(rows["loss"].astype(float))]
    known = [_whole(curves.get(run), tokens) for run, tokens in zip(rows["run_id"], rows["tokens"], strict=True)]
    cells = _cells(rows[np.array(known, bool)])
    enough = cells.groupby("group", sort=False)["best"].transform("sum") >= 4 + MIN_FREE_CELLS
    left_out = {"without a whole curve": len(rows) - len(cells), "with too few to compare with": int((~enough).sum())}
    cells = cells[enough].reset_index(drop=True)
    raw = np.array([curves[run].smooth() for run in cells["run_id"]]).reshape(-1, len(RUN_SHARES))
    ends = np.array([curves[run].smooth(_END)[0] for run in cells["run_id"]])
    lowest = float(min([*raw.ravel(), *ends, *cells["loss"]], default=1.0))
    groups = [_group(cells, np.asarray(at)) for at in cells.groupby("group", sort=False).indices.values()]
    loss = cells["loss"].to_numpy()
    if floor is None or floor >= lowest:
        candidates, few = (FLOOR_SHARES * lowest).tolist(), _thinned(cells)
        some = [_group(cells, at) for at in few]
        floor = min(candidates, key=lambda at: _looseness(some, *_logs(raw[:, ::4], ends, loss, at)))
    found, normalised = _judged(cells, groups, *_logs(raw, ends, loss, floor))
    found["expected"] = floor + (loss - floor) * np.exp(-found["away"])
    return Collapse(found, floor, raw, normalised, {why: n for why, n in left_out.items() if n})


def _whole(curve: Curve | None, tokens: float) -> bool:
    """Whether the log tells of the whole run, in enough lines."""
    if curve is None or len(curve.loss) < MIN_LINES or curve.tokens[-1] < 0.99 * tokens:
        return False
    return bool(np.isfinite(curve.smooth()).all() and np.isfinite(curve.smooth(_END)).all())


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """run_id, params, tokens, loss; group: who is compared with whom; batches: who saw the same; best: of its scan."""
    if "unique_tokens" in rows:
        rows = rows.assign(repeats=rows["unique_tokens"] < rows["tokens"])

    def numbered(names: tuple[str, ...]) -> np.ndarray:
        there = [name for name in names if name in rows]
        return rows.groupby(there, dropna=False, sort=False).ngroup().to_numpy() if there else np.zeros(len(rows), int)

    params = rows["params" if "params" in rows else "params_matmul"].to_numpy(np.float64)
    tokens, loss = (rows[name].to_numpy(np.float64) for name in ("tokens", "loss"))
    best = loss == pd.Series(loss).groupby(scan_ids(rows).to_numpy()).transform("min").to_numpy()
    known = {"run_id": rows["run_id"].to_numpy(), "params": params, "tokens": tokens, "loss": loss, "best": best}
    return pd.DataFrame(known | {"group": numbered(GROUP_COLUMNS), "batches": numbered(_SAME_BATCHES)})


@dataclass(frozen=True)
class _Group:
    """Cells that are compared with one another. at: their rows: [cells]. known: which tell the trends: [cells].
    of_shapes, of_heights: orthonormal bases of what is expected to differ between them: [cells, parameters]."""

    at: np.ndarray
    known: np.ndarray
    of_shapes: np.ndarray
    of_heights: np.ndarray


def _group(cells: pd.DataFrame, at: np.ndarray) -> _Group:
    """The group in these rows. Its shapes have an offset for each set of cells that saw the same batches, unless that
    leaves too few cells, or there are so many that each would cost more than it tells."""
    known, params, tokens, batches = (cells[name].to_numpy()[at] for name in ("best", "params", "tokens", "batches"))
    params, tokens = np.log(params), np.log(tokens)
    ratio = tokens - params - np.median(tokens - params)
    surface = [np.ones(len(at)), params - params.mean(), tokens - tokens.mean(), ratio**2]
    sets, size = np.unique(batches, return_counts=True)
    alike = sets[size >= MIN_SAME_BATCHES] if (size >= MIN_SAME_BATCHES).sum() <= MAX_BATCH_SETS else []
    offset = _basis([*surface, *((batches == one).astype(float) for one in alike)])
    plain = _basis(surface)
    return _Group(at, known, offset if known.sum() - offset.shape[1] >= MIN_FREE_CELLS else plain, plain)


def _thinned(cells: pd.DataFrame) -> list[np.ndarray]:
    """The rows of each group, or so many of them, evenly through the table, as tell the floor well enough."""
    rows = [np.asarray(at) for at in cells.groupby("group", sort=False).indices.values()]
    return [at[:: -(-len(at) // MAX_FLOOR_CELLS)] for at in rows]


def _basis(columns: list[np.ndarray]) -> np.ndarray:
    """An orthonormal basis of what columns span: [cells, parameters]."""
    basis, size, _ = np.linalg.svd(np.stack(columns, 1), full_matrices=False)
    return basis[:, size > 1e-9 * size[0]]


def _deleted(basis: np.ndarray, values: np.ndarray, known: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """How far each value lies from the trend of the others, and the same in robust sigmas: [cells, columns] each.

    Tukey's bisquare, its weights from the deleted residuals: a cell that pulls the trend to itself still stands out.
    Sigma is that of the residuals under these weights. nan where hardly anything but the cell itself tells the trend.

    Args:
      basis: [cells, parameters]. values: [cells, columns]. known: which cells tell the trend: [cells].
      least: of a sigma.
    """
    weights = np.tile(known[:, None].astype(float), values.shape[1])
    for _ in range(_ROUNDS):
        away, scaled = _weighted(basis, values, weights)
        size = np.abs(np.nan_to_num(scaled))
        sigma = np.maximum(1.4826 * np.median(size[known], 0), least)
        before, weights = weights, known[:, None] * np.maximum(1 - (size / sigma / _TUNING) ** 2, 1e-3) ** 2
        if np.abs(weights - before).max() < _SETTLED:
            break
    spread = np.sqrt((weights * size**2).sum(0) / weights.sum(0)) / _SHRINKS
    return away, scaled / np.maximum(spread, least)


def _weighted(basis: np.ndarray, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deleted residuals under weights, nan where nothing else tells the trend, and the same scaled to one variance:
    [cells, columns] each."""
    weighed = weights.T[:, :, None] * basis
    inverse = np.linalg.inv(weighed.transpose(0, 2, 1) @ basis + 1e-9 * np.eye(basis.shape[1]))
    vectors = inverse @ (weighed.transpose(0, 2, 1) @ values.T[:, :, None])
    leverage = ((basis @ inverse) * basis).sum(-1).T
    left = np.maximum(1 - weights * leverage, 1e-9)
    away = np.where(left > _LEAST_LEFT, (values - (basis @ vectors)[:, :, 0].T) / left, np.nan)
    return away, away / np.sqrt(1 + leverage / left)


def _rarity(score: np.ndarray, free: int) -> np.ndarray:
    """The sigmas of a normal law that are as rare as a score that was scaled by the spread of few: Student's t."""
    return np.sign(score) * special.ndtri(np.minimum(special.stdtr(free, np.abs(score)), 1 - 1e-16))


def _judged(
    cells: pd.DataFrame, groups: list[_Group], shapes: np.ndarray, heights: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """Collapse.cells but for `expected`, and Collapse.normalised."""
    away, sigmas, pooled = np.zeros_like(shapes), np.full_like(shapes, np.nan), np.zeros_like(shapes)
    above, height, shape = np.zeros_like(heights), np.zeros_like(heights), np.zeros(len(cells))
    for group in groups:
        at, known = group.at, group.known
        away[at], sigmas[at] = _deleted(group.of_shapes, shapes[at], known, MIN_SIGMA)
        above[at], scores = _deleted(group.of_heights, heights[at], known, MIN_SIGMA)
        height[at] = _rarity(scores, known.sum() - group.of_heights.shape[1])
        shape[at] = _rarity(np.sqrt(np.mean(sigmas[at] ** 2, 1)), known.sum() - group.of_shapes.shape[1])
        pooled[at] = np.median(shapes[at][known], 0)
    widest = np.argmax(np.nan_to_num(np.abs(sigmas)), 1)[:, None]
    bend = np.take_along_axis(away, widest, 1)[:, 0]
    found = cells.assign(shape=shape, bend=bend, height=height[:, 0], away=above[:, 0])
    return found, np.exp(pooled + away + above)


def _looseness(groups: list[_Group], shapes: np.ndarray, heights: np.ndarray) -> float:
    """How far the cells lie from their trends in units of what these span, so that no mere scale of L0 helps it: the
    shapes' share and that of the heights, which tells L0 far better, summed."""
    found = 0.0
    for group in groups:
        known = group.known
        apart, _ = _deleted(group.of_shapes, shapes[group.at], known, 1e-9)
        found += np.median(np.abs(apart[known])) / max(np.std(np.median(shapes[group.at][known], 0)), 1e-9)
        apart, _ = _deleted(group.of_heights, heights[group.at], known, 1e-9)
        found += np.median(np.abs(apart[known])) / max(np.std(heights[group.at][known]), 1e-9)
    return float(found)


def _logs(raw: np.ndarray, ends: np.ndarray, loss: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Log reduced loss: along the curve, over its own end: [cells, shares]; and validated at the end: [cells, 1]."""
    return np.log((raw - floor) / (ends - floor)[:, None]), np.log(loss - floor)[:, None]
