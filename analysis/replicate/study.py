"""What every study uses: comparisons of a published number with ours, their verdicts, and where the data are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.errors import TableError

Verdict = Literal["reproduced", "within bound", "inside interval", "not an optimum", "explained", "differs"]
UNEXPLAINED: Verdict = "differs"


@dataclass(frozen=True)
class Comparison:
    """A published number and ours. difference: ours - published, in the unit of the quantity."""

    study: str
    quantity: str
    published: float
    ours: float
    difference: float
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Reason:
    """Why ours may differ from a published number. It counts only if `is_supported`, which a study computes."""

    verdict: Verdict
    is_supported: bool
    note: str


@dataclass(frozen=True)
class PinnedFile:
    """A file of the study's repository.

    path: in the repository. local_name: in the study's folder. sha256: hexadecimal, of the bytes at the pinned commit.
    """

    path: str
    local_name: str
    sha256: str


@dataclass(frozen=True)
class Replication:
    """A paper whose numbers are recomputed.

    name: as on the command line. source: the paper and its repository. run: maps the study's data folder to
    comparisons. folder: the study's folder in the data folder, "" if it needs none. files: what --fetch downloads from
    `repository` at `commit`. why_not_fetched: why --fetch does not get all that the study reads, "" if it does.
    """

    name: str
    source: str
    run: Callable[[Path], list[Comparison]]
    folder: str = ""
    repository: str = ""
    commit: str = ""
    files: tuple[PinnedFile, ...] = ()
    why_not_fetched: str = ""


def compare(
    study: str,
    quantity: str,
    published: float,
    ours: float,
    tolerance: float,
    note: str = "",
    reason: Reason | None = None,
) -> Comparison:
    """Compares two numbers: `reproduced` if they differ by at most `tolerance`, in the quantity's unit.

    Otherwise the verdict is the reason's if there is one and it is supported, else `differs`.
    """
    ours = float(ours)
    if abs(ours - published) <= tolerance:
        return Comparison(study, quantity, published, ours, ours - published, "reproduced", note)
    if reason is not None and reason.is_supported:
        return Comparison(study, quantity, published, ours, ours - published, reason.verdict, reason.note)
    return Comparison(study, quantity, published, ours, ours - published, UNEXPLAINED, note)


def check_bound(study: str, quantity: str, published: float, ours: float, note: str = "") -> Comparison:
    """Compares with an upper bound: `within bound` if ours is at most the published number, else `differs`."""
    ours = float(ours)
    verdict: Verdict = "within bound" if ours <= published else UNEXPLAINED
    return Comparison(study, quantity, published, ours, ours - published, verdict, note)


def check_interval(
    study: str, quantity: str, published: float, ours: float, interval: tuple[float, float], note: str
) -> Comparison:
    """Compares with our interval: `inside interval` if it contains the published number, else `differs`.

    ours: our best value.
    """
    is_inside = interval[0] <= published <= interval[1]
    full_note = f"our interval is {interval[0]:.4g} to {interval[1]:.4g}; {note}"
    verdict: Verdict = "inside interval" if is_inside else UNEXPLAINED
    return Comparison(study, quantity, published, float(ours), float(ours) - published, verdict, full_note)


def read_csv(folder: Path, name: str) -> Any:
    """Reads a table of a study as a DataFrame. Raises TableError if there is no such file."""
    import pandas as pd

    path = folder / name
    if not path.exists():
        raise TableError(
            f"{path}: no such file; give the folder of the public tables as --data, "
            "or download some of them with --fetch"
        )
    return pd.read_csv(path)
