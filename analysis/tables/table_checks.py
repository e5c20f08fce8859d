"""What is wrong with the points of a fit, before it and after it, in lines that name rows and columns.

Not in the design's list of modules: `results` reads and refuses what is no number, this judges whether the numbers can
be what they say they are. What cannot be is a TableError; what is only odd comes back as warnings, one line each. The
bounds are ours: each lies beyond every public table that the project reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.tables.results import Points

MAX_EQUAL_RATIO = 1.01
IMPOSSIBLY_FEW = 1e3
SMALL_MEDIAN, LARGE_MEDIAN = 1e4, 1e6
MAX_LOSS = math.log(2**18)
OUTLIER_SIGMAS = 5.0
MIN_OUTLIER = 1e-3
MAX_LISTED = 5
_UNITS = {3: "thousands", 6: "millions", 9: "billions", 12: "trillions"}
_FLOPS = {-9: "gigaFLOPs", -12: "teraFLOPs", -15: "petaFLOPs", -18: "exaFLOPs", -21: "zettaFLOPs"}
_PRODUCTS = {
    15: "one of params and tokens in millions, the other in billions",
    18: "params and tokens both in billions",
}
_DAY = math.log10(1e15 * 86400)


def check_points(points: Points | pd.DataFrame, columns: Sequence[str] = ("params", "tokens")) -> list[str]:
    """Warnings about the points that a law is about to be fitted to.

    Args:
      points: params, tokens (counts) and loss (nats per token), all finite and above zero; run_id and flops if there.
        Of points that lack one of these, as curves do, only the columns of the law are judged.
      columns: those that the law is a function of.
    Raises:
      TableError: a column of the law has one value, or counts that no run can have: 1,000 tokens or fewer for a
        million parameters or more, 1,000 parameters or fewer for a billion tokens or more.
    """
    table = points.table if isinstance(points, Points) else points
    named = table.assign(run_id=name_rows(table)).reset_index(drop=True)
    if not {"params", "tokens", "loss"} <= set(named):
        return [*_distinct(named, columns), *flag_warnings(table)]
    _impossible(named)
    found = [
        *_distinct(named, columns),
        *flag_warnings(table),
        *_duplicates(named),
        *_small(named),
        *_mixed(named),
        *_losses(named),
    ]
    return found + (_flops(named) if "flops" in named else [])


def name_rows(table: pd.DataFrame) -> list[str]:
    """What to call each row: "run ID" by its run_id, else "row N" by its place in the table, from 1."""
    if "run_id" in table:
        return [name if name.startswith("row ") else f"run {name}" for name in table["run_id"].astype(str)]
    places = table.index if table.index.dtype.kind == "i" else range(len(table))
    return [f"row {place + 1}" for place in places]


def shorten(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def flag_warnings(table: pd.DataFrame, what: str = "points") -> list[str]:
    """A warning that names the rows that `analysis.tables.flags` flagged, and how to leave them out.

    Args:
      table: run_id and, of a sweep, flags; without flags, no warning.
      what: what the rows are called.
    """
    said = [f"{name} ({why})" for name, why in flags_by_run(table.assign(run_id=name_rows(table))).items()]
    if not said:
        return []
    return [f'{shorten(said)}: {len(said)} of {len(table)} {what} are flagged; --where "flags==" leaves them out']


def count_rate_sources(table: pd.DataFrame) -> dict[str, int]:
    """How the learning rates of the rows were found -> number of rows, the most first; empty for a table that does not
    say, `not stated` for rows that do not."""
    if "learning_rate_from" not in table:
        return {}
    said = table["learning_rate_from"].fillna("").astype(str).replace("", "not stated")
    return {str(how): int(count) for how, count in said.value_counts().items()}


def flags_by_run(table: pd.DataFrame) -> dict[str, str]:
    """run_id -> flags, of the rows that have any."""
    flags = table["flags"].fillna("").astype(str) if "flags" in table else [""] * len(table)
    return {run: why for run, why in zip(table["run_id"], flags, strict=True) if why}


def _impossible(table: pd.DataFrame) -> None:
    for column, other, large in (("tokens", "params", LARGE_MEDIAN), ("params", "tokens", 1e9)):
        rows = table[(table[column] <= IMPOSSIBLY_FEW) & (table[other] >= large)]
        if len(rows):
            first = rows.iloc[0]
            raise TableError(
                f"{shorten(list(rows['run_id']))}: {column} = {first[column]:g} with {other} = {first[other]:g} cannot "
                f"be; {column} in {_unit(rows, column)}? give counts"
            )


def _unit(rows: pd.DataFrame, column: str) -> str:
    """The units of a column of counts that leave between half a token and 10,000 tokens a parameter."""
    tokens, params = (float(np.log10(rows[name].median())) for name in ("tokens", "params"))
    sign = 1 if column == "tokens" else -1
    fits = [name for power, name in _UNITS.items() if -0.3 <= tokens - params + sign * power <= 4]
    return " or ".join(fits) or "another unit"


def _distinct(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    found = []
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
            found.append(
                f"{column} has two distinct values, {values[0]:g} and {values[-1]:g}: they give no exponent and offset "
                f"at once; a law in {column} needs at least 3"
            )
    return found


def _duplicates(table: pd.DataFrame) -> list[str]:
    table = table.iloc[sorted(range(len(table)), key=lambda i: (len(table["run_id"][i]), table["run_id"][i]))]
    runs = [name if name.startswith("run ") else "" for name in table["run_id"]]
    keys = [table[name] for name in ("params", "tokens", "loss")] + [pd.Series(runs, table.index, name="run")]
    first = table["run_id"].groupby(keys, sort=False).transform("first")
    again = pd.concat(keys, axis=1).duplicated()
    if not again.any():
        return []
    pairs = [f"{name} repeats {before}" for name, before in zip(table["run_id"][again], first[again], strict=True)]
    return [f"{shorten(pairs)}: the same params, tokens and loss; {again.sum()} of {len(table)} rows may be copies"]


def _small(table: pd.DataFrame) -> list[str]:
    found = []
    for column, other in (("tokens", "params"), ("params", "tokens")):
        low, high = table[column].median(), table[other].median()
        if low < SMALL_MEDIAN and high > LARGE_MEDIAN:
            found.append(
                f"{column} has a median of {low:g} where {other} has {high:g}: {column} in {_unit(table, column)}?"
            )
        elif column == "tokens" and low < high / 1e4:
            found.append(f"tokens has a median of {low:g} where params has {high:g}: less than 1e-4 tokens a parameter")
    if table["params"].median() < IMPOSSIBLY_FEW and table["tokens"].median() < IMPOSSIBLY_FEW:
        found.append(
            "params and tokens have medians below 1,000: in millions or billions? fits and forecasts take counts"
        )
    return found


def _mixed(table: pd.DataFrame) -> list[str]:
    found = []
    for column in ("params", "tokens"):
        few, factor = _apart(table[column].to_numpy(np.float64), 2.7)
        if few.any():
            found.append(
                f"{shorten(list(table['run_id'][few]))}: {column} is {factor:.0e} times that of the other rows, with "
                f"nothing between: two units in one column?"
            )
    return found


def _apart(values: np.ndarray, decades: float) -> tuple[np.ndarray, float]:
    """Splits values at their widest gap, if it spans that many decades: which are the fewer, and how many times the
    others they are (ratio of medians)."""
    logs = np.sort(np.log10(values))
    gaps = np.diff(logs)
    if not len(gaps) or gaps.max() < decades:
        return np.zeros(len(values), bool), 1.0
    upper = np.log10(values) > logs[gaps.argmax()]
    few = upper if upper.sum() * 2 <= len(values) else ~upper
    return few, float(np.median(values[few]) / np.median(values[~few]))


def _flops(table: pd.DataFrame) -> list[str]:
    ratio = (6 * table["params"] * table["tokens"] / table["flops"]).to_numpy(np.float64)
    few, factor = _apart(ratio, 2.0)
    if few.any():
        return [
            f"{shorten(list(table['run_id'][few]))}: 6 params tokens / flops is {factor:.0e} times that of the other "
            f"rows: two units in one column of params, tokens or flops?"
        ]
    middle = -float(np.median(np.log10(ratio)))
    if abs(middle) <= 2:
        return []
    power = 3 * round(middle / 3)
    if abs(middle + _DAY) < 0.5:
        guess = "flops in PFLOP/s-days"
    elif power > 0:
        either = f"params or tokens in {_UNITS[power]}" if power in _UNITS else ""
        guess = either or _PRODUCTS.get(power, "params, tokens and flops in different units")
    else:
        guess = f"flops in {_FLOPS[power]}" if power in _FLOPS else "params, tokens and flops in different units"
    return [f"flops is {10**middle:.1e} times 6 params tokens: {guess}?"]


def _losses(table: pd.DataFrame) -> list[str]:
    found = []
    middle, high = table["loss"].median(), table["loss"] > MAX_LOSS
    bound = f"a uniform guess among 2^18 tokens has {MAX_LOSS:.1f} nats"
    if middle > MAX_LOSS:
        found.append(
            f"loss has a median of {middle:g}, and {bound}: perplexity? its natural logarithm is nats per token"
        )
    elif high.any():
        said = f"{shorten(list(table['run_id'][high]))}: loss up to {table['loss'].max():g}"
        found.append(f"{said}, and {bound}: diverged, or a perplexity or another unit?")
    order = table[["loss"]].assign(size=table["params"] * table["tokens"]).rank()
    if len(table) >= 8 and order["loss"].std() > 0 and order["loss"].corr(order["size"]) > 0.5:
        found.append("loss rises with params x tokens: an accuracy, or another quantity that grows?")
    return found


def outlier_warnings(residuals: np.ndarray, names: Sequence[str]) -> list[str]:
    """A warning that names the points that a fit misses by more than five robust sigmas, the worst first.

    Sigma is 1.4826 times the median absolute deviation, the standard deviation of a normal law; a miss of less than
    0.1 % is none, however quiet the rest.

    Args:
      residuals: log measured over predicted: [points].
      names: what to call each, as from `row_names`: [points].
    """
    away = np.asarray(residuals, np.float64) - np.median(residuals)
    sigma = 1.4826 * float(np.median(np.abs(away)))
    far = np.flatnonzero(np.abs(away) > max(OUTLIER_SIGMAS * sigma, MIN_OUTLIER))
    if not len(far):
        return []
    worst = far[np.argsort(-np.abs(away[far]), kind="stable")]
    said = [f"{names[i]} ({np.expm1(residuals[i]):+.1%})" for i in worst.tolist()]
    return [
        f"{shorten(said)}: {len(far)} of {len(away)} points lie more than {OUTLIER_SIGMAS:g} robust sigmas "
        f"({sigma:.2g} in log loss) off the fit"
    ]


def floor_warnings(floor: float, loss: np.ndarray, names: Sequence[str]) -> list[str]:
    """A warning that names the points at or below the fitted irreducible loss E, which the law can never reach.

    Args:
      floor: E, nats per token.
      loss: measured, nats per token: [points].
      names: what to call each, as from `row_names`: [points].
    """
    under = np.flatnonzero(np.asarray(loss) <= floor)
    if not len(under):
        return []
    said = [f"{names[i]} ({loss[i]:.4g})" for i in under.tolist()]
    return [f"{shorten(said)}: loss at or below the fitted E = {floor:.4g}, which no run of this law reaches"]
