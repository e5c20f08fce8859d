"""Checks of the points of a fit, before and after it: wrong units, copies, outliers, flagged runs.

A table that cannot be right raises a TableError; one that is only unusual gives warnings, one line each, which name
rows and columns. The bounds are ours: every public table that the project reads lies within them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.tables.results import Points, shorten

MAX_EQUAL_RATIO = 1.01  # values of a column closer than this count as one
IMPOSSIBLY_FEW = 1e3  # parameters or tokens
SMALL_MEDIAN, LARGE_MEDIAN = 1e4, 1e6
MAX_LOSS = math.log(2**18)  # nats per token of a uniform guess among the tokens of a very large vocabulary
OUTLIER_SIGMAS = 5.0
MIN_OUTLIER = 1e-3  # log loss
MIN_SWAPPED_SHARE = 0.7  # share of points with fewer tokens than parameters: no public table has more than a quarter
MIN_PUBLISHED_TOKENS = 1e8  # median tokens from which losses are compared with those of published models
BITS_RATIOS = (1.25, 1.7)  # median ratio to the loss of published models between which a loss may be in bits
MAX_RATIO_SPREAD = 1.25  # largest ratio of the 90th to the 10th percentile of those ratios in one unit
_OTHER_UNIT = re.compile(r"bits|\bbp[bct]\b|_bp[bct]|perplexity|(?:\b|_)ppl(?:\b|_)", re.IGNORECASE)
# Guesses at units, by the power of ten by which a column is off.
UNITS = {3: "thousands", 6: "millions", 9: "billions", 12: "trillions"}
_FLOPS = {-9: "gigaFLOPs", -12: "teraFLOPs", -15: "petaFLOPs", -18: "exaFLOPs", -21: "zettaFLOPs"}
_PRODUCTS = {
    15: "one of params and tokens in millions, the other in billions",
    18: "params and tokens both in billions",
}
_PFLOPS_DAY = math.log10(1e15 * 86400)


def check_points(points: Points | pd.DataFrame, columns: Sequence[str] = ("params", "tokens")) -> list[str]:
    """Warnings about the points that a law is about to be fitted to.

    Args:
      points: columns params, tokens (counts) and loss (nats per token), all finite and above zero, and perhaps run_id
        and flops. If one of the first three is missing, as in learning curves, only the columns of the law are checked.
      columns: the columns that the law is a function of.
    Raises:
      TableError: a column of the law has only one value, or counts that no run can have: 1,000 tokens or fewer for a
        million parameters or more, 1,000 parameters or fewer for a billion tokens or more.
    """
    table = points.table if isinstance(points, Points) else points
    rows = table.assign(run_id=name_rows(table)).reset_index(drop=True)
    notes = table.attrs.get("notes", [])  # those of results.done_points
    if not {"params", "tokens", "loss"} <= set(rows):
        return [*notes, *_distinct_warnings(rows, columns), *flag_warnings(table)]
    _refuse_impossible_counts(rows)
    return [
        *notes,
        *_distinct_warnings(rows, columns),
        *flag_warnings(table),
        *_duplicate_warnings(rows),
        *_small_count_warnings(rows),
        *_swap_warnings(rows),
        *_mixed_unit_warnings(rows),
        *_loss_warnings(rows),
        *_bits_warnings(rows),
        *(_flops_warnings(rows) if "flops" in rows else []),
    ]


def name_rows(table: pd.DataFrame) -> list[str]:
    """The name of each row in messages: "run ID" by its run_id, else "row N" by its place in the table, from 1."""
    if "run_id" in table:
        return [name if name.startswith("row ") else f"run {name}" for name in table["run_id"].astype(str)]
    places = table.index if table.index.dtype.kind == "i" else range(len(table))
    return [f"row {place + 1}" for place in places]


def flag_warnings(table: pd.DataFrame, what: str = "points") -> list[str]:
    """A warning that names the flagged rows (analysis.tables.flags), and how to leave them out; none without any.

    Args:
      table: columns run_id and, for a sweep, flags.
      what: the name of the rows in the message.
    """
    flagged = [f"{name} ({flags})" for name, flags in flags_by_run(table.assign(run_id=name_rows(table))).items()]
    if not flagged:
        return []
    return [f'{shorten(flagged)}: {len(flagged)} of {len(table)} {what} are flagged; --where "flags==" leaves them out']


def count_rate_sources(table: pd.DataFrame) -> dict[str, int]:
    """Where the learning rates of the rows come from -> number of rows, the most frequent first; `not stated` for rows
    without an entry; empty for a table without the column."""
    if "learning_rate_from" not in table:
        return {}
    sources = table["learning_rate_from"].fillna("").astype(str).replace("", "not stated")
    return {str(source): int(count) for source, count in sources.value_counts().items()}


def flags_by_run(table: pd.DataFrame) -> dict[str, str]:
    """run_id -> flags, of the rows that have any."""
    flags = table["flags"].fillna("").astype(str) if "flags" in table else [""] * len(table)
    return {run_id: names for run_id, names in zip(table["run_id"], flags, strict=True) if names}


def _refuse_impossible_counts(table: pd.DataFrame) -> None:
    """Raises TableError for rows of so few tokens (parameters) and so many parameters (tokens) that a unit is wrong."""
    for column, other, large in (("tokens", "params", LARGE_MEDIAN), ("params", "tokens", 1e9)):
        rows = table[(table[column] <= IMPOSSIBLY_FEW) & (table[other] >= large)]
        if len(rows):
            first = rows.iloc[0]
            raise TableError(
                f"{shorten(list(rows['run_id']))}: {column} = {first[column]:g} with {other} = {first[other]:g} cannot "
                f"be; {column} in {_unit(rows, column)}? give counts"
            )


def _unit(rows: pd.DataFrame, column: str) -> str:
    """The units in which a column of counts would give between half a token and 10,000 tokens a parameter."""
    tokens, params = (float(np.log10(rows[name].median())) for name in ("tokens", "params"))
    sign = 1 if column == "tokens" else -1
    fits = [name for power, name in UNITS.items() if -0.3 <= tokens - params + sign * power <= 4]
    return " or ".join(fits) or "another unit"


def _distinct_warnings(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Warns of a column of the law with two distinct values; raises TableError for one. Values within 1 % count as
    equal."""
    warnings = []
    for column in columns:
        values = np.unique(table[column].to_numpy(np.float64))
        count, last = 0, 0.0
        for value in values:
            if value > last * MAX_EQUAL_RATIO:
                count, last = count + 1, value
        if count == 1:
            spread = f"one distinct value, {values[0]:g}" if len(values) == 1 else (
                f"values within 1 %, {values[0]:g} to {values[-1]:g}"
            )  # fmt: skip
            raise TableError(f"{column} has {spread}: a law in {column} needs at least 3 that differ")
        if count == 2:
            warnings.append(
                f"{column} has two distinct values, {values[0]:g} and {values[-1]:g}: they give no exponent and offset "
                f"at once; a law in {column} needs at least 3"
            )
    return warnings


def _duplicate_warnings(table: pd.DataFrame) -> list[str]:
    """Warns of rows with equal params, tokens and loss, which may be copies of one run."""
    # in order of run_id ("row 9" before "row 10"), so that the later row is named as the copy
    names = table["run_id"].tolist()
    table = table.iloc[sorted(range(len(names)), key=lambda i: (len(names[i]), names[i]))]
    runs = [name if name.startswith("run ") else "" for name in table["run_id"]]
    keys = [table[name] for name in ("params", "tokens", "loss")] + [pd.Series(runs, table.index, name="run")]
    first = table["run_id"].groupby(keys, sort=False).transform("first")
    is_copy = pd.concat(keys, axis=1).duplicated()
    if not is_copy.any():
        return []
    pairs = [
        f"{name} repeats {earlier}" for name, earlier in zip(table["run_id"][is_copy], first[is_copy], strict=True)
    ]
    return [f"{shorten(pairs)}: the same params, tokens and loss; {is_copy.sum()} of {len(table)} rows may be copies"]


def _small_count_warnings(table: pd.DataFrame) -> list[str]:
    """Warns of counts whose medians suggest thousands, millions or billions in place of plain counts."""
    warnings = []
    for column, other in (("tokens", "params"), ("params", "tokens")):
        low, high = table[column].median(), table[other].median()
        if low < SMALL_MEDIAN and high > LARGE_MEDIAN:
            warnings.append(
                f"{column} has a median of {low:g} where {other} has {high:g}: {column} in {_unit(table, column)}?"
            )
        elif column == "tokens" and low < high / 1e4:
            warnings.append(
                f"tokens has a median of {low:g} where params has {high:g}: less than 1e-4 tokens a parameter"
            )
    if table["params"].median() < IMPOSSIBLY_FEW and table["tokens"].median() < IMPOSSIBLY_FEW:
        warnings.append(
            "params and tokens have medians below 1,000: in millions or billions? fits and forecasts take counts"
        )
    return warnings


def _swap_warnings(table: pd.DataFrame) -> list[str]:
    """Warns of a table in which runs have fewer tokens than parameters, as where the two columns are swapped."""
    ratio = (table["tokens"] / table["params"]).to_numpy(np.float64)
    few = ratio < 1
    if (
        len(few) < 3
        or few.mean() < MIN_SWAPPED_SHARE
        or np.median(ratio) > 0.5
        or table["params"].median() < LARGE_MEDIAN
    ):
        return []
    return [
        f"{few.sum()} of {len(few)} points have fewer tokens than parameters (median {np.median(ratio):.2g} tokens a "
        f"parameter): params and tokens swapped? if so, swap the names in --columns params=...,tokens=..."
    ]


def _bits_warnings(table: pd.DataFrame) -> list[str]:
    """Warns of losses that stand to those of published language models of the same size as bits to nats do.

    The published models are those of Hoffmann et al. 2022, equation 10. The median ratio of every public table in nats
    lies between 0.86 and 1.13; in bits it would be 1.44 times that.
    """
    if table["params"].median() < LARGE_MEDIAN or table["tokens"].median() < MIN_PUBLISHED_TOKENS:
        return []
    published = 1.69 + 406.4 / table["params"] ** 0.34 + 410.7 / table["tokens"] ** 0.28
    low, middle, high = np.quantile(table["loss"] / published, [0.1, 0.5, 0.9])
    if not (BITS_RATIOS[0] <= middle <= BITS_RATIOS[1] and high < low * MAX_RATIO_SPREAD):
        return []
    return [
        f"loss is {middle:.2f} times that of published models of these sizes, in nats per token: in bits per token "
        f"({1 / math.log(2):.2f} times as many)? multiply it by ln 2 = {math.log(2):.4f}"
    ]


def unit_of_name_warnings(source: str) -> list[str]:
    """A warning where the column that `loss` was read from is named as one in bits, or as a perplexity.

    source: the name in the file, as in --columns loss=SOURCE.
    """
    if not _OTHER_UNIT.search(source):
        return []
    return [
        f"loss is the column {source}: E and every forecast are in its unit, not in nats per token (bits times ln 2 "
        f"are nats, as is the natural logarithm of a perplexity)"
    ]


def _mixed_unit_warnings(table: pd.DataFrame) -> list[str]:
    """Warns of counts that fall into two groups far apart, as two units in one column do."""
    warnings = []
    for column in ("params", "tokens"):
        few, factor = _split_at_gap(table[column].to_numpy(np.float64), 2.7)
        if few.any():
            warnings.append(
                f"{shorten(list(table['run_id'][few]))}: {column} is {factor:.0e} times that of the other rows, with "
                f"nothing between: two units in one column?"
            )
    return warnings


def _split_at_gap(values: np.ndarray, decades: float) -> tuple[np.ndarray, float]:
    """Splits values at their widest gap, if that spans so many decades. Returns which values are in the smaller group,
    [values] of bool, and the ratio of its median to that of the others; none and 1 without such a gap."""
    logs = np.sort(np.log10(values))
    gaps = np.diff(logs)
    if not len(gaps) or gaps.max() < decades:
        return np.zeros(len(values), bool), 1.0
    upper = np.log10(values) > logs[gaps.argmax()]
    few = upper if upper.sum() * 2 <= len(values) else ~upper
    return few, float(np.median(values[few]) / np.median(values[~few]))


def _flops_warnings(table: pd.DataFrame) -> list[str]:
    """Warns if flops is not within a factor of 100 of 6 params tokens, and guesses the unit that is wrong."""
    ratio = (6 * table["params"] * table["tokens"] / table["flops"]).to_numpy(np.float64)
    few, factor = _split_at_gap(ratio, 2.0)
    if few.any():
        return [
            f"{shorten(list(table['run_id'][few]))}: 6 params tokens / flops is {factor:.0e} times that of the other "
            f"rows: two units in one column of params, tokens or flops?"
        ]
    middle = -float(np.median(np.log10(ratio)))
    if abs(middle) <= 2:
        return []
    power = 3 * round(middle / 3)
    if abs(middle + _PFLOPS_DAY) < 0.5:
        guess = "flops in PFLOP/s-days"
    elif power > 0:
        either = f"params or tokens in {UNITS[power]}" if power in UNITS else ""
        guess = either or _PRODUCTS.get(power, "params, tokens and flops in different units")
    else:
        guess = f"flops in {_FLOPS[power]}" if power in _FLOPS else "params, tokens and flops in different units"
    return [f"flops is {10**middle:.1e} times 6 params tokens: {guess}?"]


def _loss_warnings(table: pd.DataFrame) -> list[str]:
    """Warns of losses above those of a uniform guess, and of losses that rise with compute."""
    warnings = []
    middle, high = table["loss"].median(), table["loss"] > MAX_LOSS
    bound = f"a uniform guess among 2^18 tokens has {MAX_LOSS:.1f} nats"
    if middle > MAX_LOSS:
        warnings.append(
            f"loss has a median of {middle:g}, and {bound}: perplexity? its natural logarithm is nats per token"
        )
    elif high.any():
        rows = f"{shorten(list(table['run_id'][high]))}: loss up to {table['loss'].max():g}"
        warnings.append(f"{rows}, and {bound}: diverged, or a perplexity or another unit?")
    order = table[["loss"]].assign(size=table["params"] * table["tokens"]).rank()
    if len(table) >= 8 and order["loss"].std() > 0 and order["loss"].corr(order["size"]) > 0.5:
        warnings.append("loss rises with params x tokens: an accuracy, or another quantity that grows?")
    return warnings


def outlier_warnings(residuals: np.ndarray, names: Sequence[str]) -> list[str]:
    """A warning that names the points that a fit misses by more than five robust sigmas, the worst first.

    Sigma is 1.4826 times the median absolute deviation, which for a normal distribution is its standard deviation. A
    miss of less than MIN_OUTLIER is not reported, however small sigma is.

    Args:
      residuals: log of measured over predicted: [points].
      names: of the points, as from `name_rows`: [points].
    """
    deviations = np.asarray(residuals, np.float64) - np.median(residuals)
    sigma = 1.4826 * float(np.median(np.abs(deviations)))
    far = np.flatnonzero(np.abs(deviations) > max(OUTLIER_SIGMAS * sigma, MIN_OUTLIER))
    if not len(far):
        return []
    worst = far[np.argsort(-np.abs(deviations[far]), kind="stable")]
    outliers = [f"{names[i]} ({np.expm1(residuals[i]):+.1%})" for i in worst.tolist()]
    return [
        f"{shorten(outliers)}: {len(far)} of {len(deviations)} points lie more than {OUTLIER_SIGMAS:g} robust sigmas "
        f"({sigma:.2g} in log loss) off the fit"
    ]


def floor_warnings(floor: float, loss: np.ndarray, names: Sequence[str]) -> list[str]:
    """A warning that names the points at or below the fitted irreducible loss E, which no run of the law can reach.

    Args:
      floor: E, nats per token.
      loss: measured, nats per token: [points].
      names: of the points, as from `name_rows`: [points].
    """
    below = np.flatnonzero(np.asarray(loss) <= floor)
    if not len(below):
        return []
    points = [f"{names[i]} ({loss[i]:.4g})" for i in below.tolist()]
    return [f"{shorten(points)}: loss at or below the fitted E = {floor:.4g}, which no run of this law reaches"]
