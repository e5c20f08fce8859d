"""What a replication is made of: rows of published against ours with computed verdicts, and where the data are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.errors import TableError

Verdict = Literal["reproduced", "within bound", "inside interval", "not an optimum", "explained", "differs"]
UNEXPLAINED: Verdict = "differs"


@dataclass(frozen=True)
class Row:
    """One published number and ours. difference: ours - published, in the unit of the quantity."""

    study: str
    quantity: str
    published: float
    ours: float
    difference: float
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Reason:
    """Why a published number may not be ours. It only counts where `holds`, which a study computes."""

    verdict: Verdict
    holds: bool
    note: str


@dataclass(frozen=True)
class File:
    """A file of the study as its authors published it. sha256: of the bytes at that commit."""

    path: str
    local: str
    sha256: str


@dataclass(frozen=True)
class Study:
    """name: as on the command line. run: the data directory of this study -> rows.

    folder: the study's folder in the data directory, "" where it needs none. files: what --fetch can get from
    `repository` at `commit`; unfetched: why it cannot get all that the study reads.
    """

    name: str
    source: str
    run: Callable[[Path], list[Row]]
    folder: str = ""
    repository: str = ""
    commit: str = ""
    files: tuple[File, ...] = ()
    unfetched: str = ""


def compare(
    study: str,
    quantity: str,
    published: float,
    ours: float,
    tolerance: float,
    note: str = "",
    reason: Reason | None = None,
) -> Row:
    """`reproduced` within the tolerance, in the quantity's unit; else the reason's verdict where it holds.

    A difference without a reason, or with one that the numbers do not bear out, is `differs`.
    """
    ours = float(ours)
    if abs(ours - published) <= tolerance:
        return Row(study, quantity, published, ours, ours - published, "reproduced", note)
    if reason is not None and reason.holds:
        return Row(study, quantity, published, ours, ours - published, reason.verdict, reason.note)
    return Row(study, quantity, published, ours, ours - published, UNEXPLAINED, note)


def at_most(study: str, quantity: str, published: float, ours: float, note: str = "") -> Row:
    """`within bound` where ours is not above the published number, else `differs`."""
    ours = float(ours)
    verdict: Verdict = "within bound" if ours <= published else UNEXPLAINED
    return Row(study, quantity, published, ours, ours - published, verdict, note)


def holds(study: str, quantity: str, published: float, ours: float, interval: tuple[float, float], note: str) -> Row:
    """`inside interval` where our interval holds the published number, else `differs`. ours: the best value."""
    inside = interval[0] <= published <= interval[1]
    said = f"our interval is {interval[0]:.4g} to {interval[1]:.4g}; {note}"
    verdict: Verdict = "inside interval" if inside else UNEXPLAINED
    return Row(study, quantity, published, float(ours), float(ours) - published, verdict, said)


def read_csv(folder: Path, name: str) -> Any:
    """A table of a study. Raises TableError where it is absent."""
    import pandas as pd

    path = folder / name
    if not path.exists():
        raise TableError(
            f"{path}: no such file; --data names the folder of the public tables, --fetch gets some of them"
        )
    return pd.read_csv(path)
