"""The best learning rate of each model size, from scans, and a power law through them (`scaling rates`).

A scan is a set of runs that are alike in everything but their learning rate. Its optimum is the vertex of the parabola
in log rate through its best run and both neighbours. Where the lowest or the highest rate tried is best, the scan has
no optimum and is left out of the law. A rate whose run diverged counts as tried. The method is ours, after Porian et
al. 2024, section 3.4, who also interpolate in log rate. The law in N alone holds for the token count of the scans. A
recipe reads it from the file that `scaling rates --out` writes (scaling/recipes/derive.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd

from analysis import files
from analysis.errors import TableError
from analysis.tables import curve_collapse, results, run_status

SCHEMA = 1
MIN_RATES = 3  # distinct learning rates that make a scan
ALL_DIVERGED = "all diverged"


class LawEntry(TypedDict):
    """The law in a file of learning rates: a RateLaw without its scans, null for NaN."""

    at: float
    rate: float
    exponent: float
    stderr: float | None
    rms: float | None


class ScanEntry(TypedDict):
    """A Scan in a file of learning rates, null for NaN."""

    params: float
    tokens: float
    width: float
    depth: float
    rates: list[float]
    losses: list[float | None]
    best: float | None
    loss: float | None
    at_bound: str


class RateDocument(TypedDict):
    """The content of a file of learning rates, as `rate_document` makes it."""

    schema: Literal[1]
    source: str
    table: str
    law: LawEntry
    scans: list[ScanEntry]


@dataclass(frozen=True)
class Scan:
    """The runs of one size at several learning rates.

    rates: ascending. losses: nats per token, NaN where a run diverged. best, loss: the best rate and the loss there,
    `best` NaN where there is no optimum. at_bound: why: "lowest" or "highest" rate tried is best, or ALL_DIVERGED; else
    empty.
    """

    params: float
    tokens: float
    width: int
    depth: int
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    best: float
    loss: float
    at_bound: str

    @property
    def name(self) -> str:
        """The scan in words: width, depth and tokens."""
        return f"w{self.width}-d{self.depth} at {self.tokens:,.0f} tokens"


@dataclass(frozen=True)
class RateLaw:
    """The power law best rate = rate (params / at)^exponent.

    stderr: standard error of the exponent. rms: root mean square of log2(optimum of a scan / law). Both are NaN where
    two scans leave no residual. scans: all scans, those without an optimum too.
    """

    at: float
    rate: float
    exponent: float
    stderr: float
    rms: float
    scans: tuple[Scan, ...]

    def __call__(self, params: Any) -> np.ndarray:
        return self.rate * (np.asarray(params, float) / self.at) ** self.exponent

    def __str__(self) -> str:
        text = f"best rate = {self.rate:.3g} (N / {self.at:.3g})^{self.exponent:.3f}"
        return text + ("" if np.isnan(self.stderr) else f" +- {self.stderr:.3f}, rms {self.rms:.2f} octaves")


def find_scans(table: pd.DataFrame, params_column: str = results.DEFAULT_PARAMS_COLUMN) -> tuple[Scan, ...]:
    """Finds the scans in a table of results: groups of runs with at least MIN_RATES learning rates, ordered by size.

    Raises TableError where a column lacks or there is no scan.
    """
    for name in ("learning_rate", "loss", "tokens", "width", "depth", params_column):
        if name not in table:
            raise TableError(f"the table lacks the column {name}: scans are read from the results table of a sweep")
    tried = table[run_status.read_statuses(table).isin(["done", "diverged"])]
    groups = [
        group
        for _, group in tried.groupby(curve_collapse.scan_ids(tried))
        if group["learning_rate"].nunique() >= MIN_RATES
    ]
    if not groups:
        raise TableError(
            f"no {MIN_RATES} runs are alike in everything but learning_rate: there is no scan in the table"
        )
    return tuple(sorted((_scan(group, params_column) for group in groups), key=lambda scan: (scan.params, scan.tokens)))


def _scan(group: pd.DataFrame, params_column: str) -> Scan:
    rows = group.sort_values("learning_rate")
    if twice := rows["learning_rate"][rows["learning_rate"].duplicated()].tolist():
        raise TableError(f"learning_rate = {twice[0]:g} twice in one scan: the rows differ in what no column says")
    rates, losses = rows["learning_rate"].to_numpy(float), rows["loss"].to_numpy(float)
    losses = np.where(run_status.read_statuses(rows) == "done", losses, np.nan)
    first = rows.iloc[0]
    best, loss, bound = best_rate(rates, losses)
    return Scan(
        params=float(first[params_column]),
        tokens=float(rows["tokens"].max()),
        width=int(first["width"]),
        depth=int(first["depth"]),
        rates=tuple(rates.tolist()),
        losses=tuple(losses.tolist()),
        best=best,
        loss=loss,
        at_bound=bound,
    )


def best_rate(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float, str]:
    """(best rate, loss there, why there is none or "") of one scan: the vertex of the parabola in log rate.

    The parabola goes through the best run and both neighbours. Beside a run that diverged, the best run itself is the
    optimum.

    Args:
      rates, losses: [runs], rates ascending, losses NaN where a run diverged.
    """
    if not np.isfinite(losses).any():
        return np.nan, np.nan, ALL_DIVERGED
    at = int(np.nanargmin(losses))
    if at in (0, len(rates) - 1):
        return np.nan, float(losses[at]), "lowest" if at == 0 else "highest"
    x, y = np.log(rates[at - 1 : at + 2]), losses[at - 1 : at + 2]
    if not np.isfinite(y).all():
        return float(rates[at]), float(losses[at]), ""
    square, slope, level = np.polyfit(x - x[1], y, 2)
    away = float(np.clip(-slope / (2 * square), x[0] - x[1], x[2] - x[1])) if square > 0 else 0.0
    return float(np.exp(x[1] + away)), float(level + slope * away + square * away**2), ""


def fit_rate_law(scans: Sequence[Scan]) -> RateLaw:
    """Fits the power law to the optima of scans, by least squares in logarithms; scans without an optimum are left out.

    Raises TableError when fewer than two sizes have an optimum.
    """
    used = [scan for scan in scans if not scan.at_bound]
    if len({scan.params for scan in used}) < 2:
        bounds = ", ".join(f"{scan.name}: {why_no_optimum(scan)}" for scan in scans if scan.at_bound)
        raise TableError(f"a law needs the optima of two sizes, {len(used)} found; without one: {bounds or 'none'}")
    x, y = np.log([scan.params for scan in used]), np.log([scan.best for scan in used])
    middle = float(x.mean())  # centred, so that the errors of level and exponent are uncorrelated
    exponent, level = np.polyfit(x - middle, y, 1)
    residual = y - level - exponent * (x - middle)
    freedom = len(used) - 2
    spread = float(np.sqrt(residual @ residual / freedom)) if freedom else np.nan
    stderr = spread / float(np.sqrt(np.sum((x - middle) ** 2)))
    return RateLaw(
        float(np.exp(middle)), float(np.exp(level)), float(exponent), stderr, spread / float(np.log(2)), tuple(scans)
    )


def why_no_optimum(scan: Scan) -> str:
    """Says why a scan has no optimum."""
    return scan.at_bound if scan.at_bound == ALL_DIVERGED else f"best at the {scan.at_bound} tried"


def rate_document(law: RateLaw, sweep: str, table_hash: str) -> dict[str, Any]:
    """The law as JSON for a recipe to read (scaling/recipes/derive.py, `load_measured_rate`); numbers to four digits.

    Args:
      sweep: name of the sweep, for the text that says where the law comes from.
      table_hash: sha256 of the table of results.
    """

    def number(value: float) -> float | None:
        return float(f"{value:.4g}") if np.isfinite(value) else None

    used = [scan for scan in law.scans if not scan.at_bound]
    horizons = sorted({scan.tokens for scan in used})
    over = f"{horizons[0]:,.0f}" + (f" to {horizons[-1]:,.0f}" if len(horizons) > 1 else "")
    source = f"{sweep}: {len(used)} sizes x {max(len(scan.rates) for scan in used)} rates at {over} tokens"
    rows = [
        {key: list(map(number, value)) if isinstance(value, tuple) else value for key, value in asdict(scan).items()}
        | {"best": number(scan.best), "loss": number(scan.loss)}
        for scan in law.scans
    ]
    fitted = {name: number(getattr(law, name)) for name in ("at", "rate", "exponent", "stderr", "rms")}
    return {"schema": SCHEMA, "source": source, "table": table_hash, "law": fitted, "scans": rows}


def read_rate_law(path: Path) -> RateLaw:
    """Reads the law and its scans from a file that holds a `rate_document`. Raises TableError for any other file."""
    remedy = "give a file that `scaling rates TABLE --out FILE` wrote"
    document = files.read_json(path, RateDocument, remedy=remedy)
    for number, row in enumerate(document["scans"]):
        if not len(row["rates"]) == len(row["losses"]) > 0:
            raise TableError(
                f"{path}: scans[{number}] has {len(row['rates'])} rates and {len(row['losses'])} losses: "
                f"must have as many, at least one; {remedy}"
            )
    law = {name: document["law"][name] for name in ("at", "rate", "exponent", "stderr", "rms")}
    if not min(law["at"], law["rate"]) > 0:
        raise TableError(f"{path}: law.at = {law['at']}, law.rate = {law['rate']}: must be above zero; {remedy}")
    numbers = {name: np.nan if value is None else float(value) for name, value in law.items()}
    return RateLaw(**numbers, scans=tuple(_read_scan(row) for row in document["scans"]))


def _read_scan(row: dict[str, Any]) -> Scan:
    ends = (row["best"], row["loss"])
    rates, losses, (best, loss) = (np.array(each, float) for each in (row["rates"], row["losses"], ends))
    return Scan(
        params=row["params"],
        tokens=row["tokens"],
        width=row["width"],
        depth=row["depth"],
        rates=tuple(rates.tolist()),
        losses=tuple(losses.tolist()),
        best=float(best),
        loss=float(loss),
        at_bound=row["at_bound"],
    )
