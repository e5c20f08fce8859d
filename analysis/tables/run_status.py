"""How the runs of a table ended, read from its own words: a column `status` or `State`, or else its flags."""

from __future__ import annotations

import re
from typing import Literal

import pandas as pd

from analysis.errors import TableError

Status = Literal["done", "diverged", "failed", "unfinished"]

_WORDS: dict[Status, str] = {
    "done": "done, finished, finish, complete, completed, success, succeeded, successful, ok, passed",
    "diverged": "diverged, divergence, nan, inf",
    "failed": "failed, failure, fail, crashed, crash, killed, error, errored, aborted, cancelled, canceled, "
    "interrupted, preempted, stopped, terminated, timeout, timed out, oom, out of memory",
    "unfinished": "unfinished, incomplete, running, pending, queued, waiting, starting, scheduled, submitted, "
    "in progress",
}
"""Our word -> the usual words for it, in lower case."""
_STATUS_OF: dict[str, Status] = {word: status for status, words in _WORDS.items() for word in words.split(", ")}
_STATUS_NAMES = ("status", "state", "run status", "run state")
_NO_FLAG = {"", "0", "0.0", "false", "no", "none", "-", "good"} | {*_WORDS["done"].split(", ")}


def status_column(table: pd.DataFrame) -> str | None:
    """The column that says how the runs ended: `status`, or one of a like name that holds such words; None without."""
    if "status" in table:
        return "status"
    for name in table.columns:
        if _plain(name) in _STATUS_NAMES and any(word in _STATUS_OF for word in _words(table, name).unique()):
            return str(name)
    return None


def read_statuses(table: pd.DataFrame) -> pd.Series:
    """How each run ended, a Status; without a column of statuses by its flags, and done without either: [rows].

    Raises TableError for a word that is none of the usual ones.
    """
    name = status_column(table)
    if name is None or not (words := _words(table, name)).any():
        return _statuses_of_flags(table)
    unknown = table[name][~words.isin(_STATUS_OF)].value_counts(dropna=False)
    if len(unknown):
        values = ", ".join(f"{word!r} in {count} rows" for word, count in unknown.head(5).items())
        raise TableError(
            f"column {name}: {values}: no word that says whether a run is done or failed; name those to use, as in "
            f'--where "{name}=={unknown.index[0]}"'
        )
    return words.map(_STATUS_OF)


def name_statuses(table: pd.DataFrame) -> pd.Series:
    """The column `status` with our word where it holds a usual one, and as it is elsewhere; done without it: [rows]."""
    if "status" not in table:
        return pd.Series("done", table.index, dtype=object)
    own = table["status"].astype(object).where(table["status"].notna(), "").astype(str)
    return own.map(lambda word: _STATUS_OF.get(_plain(word), word))


def done_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that are done. Raises TableError as `read_statuses` does."""
    return table[read_statuses(table) == "done"]


def take_as_done(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `done` for statuses in words that are not known: for rows that the user chose by their status."""
    name = status_column(table)
    if name is None:
        return table
    is_known = _words(table, name).isin(_STATUS_OF)
    return table if is_known.all() else table.assign(**{name: table[name].where(is_known, "done")})


def read_flags(column: pd.Series) -> pd.Series:
    """A column of flags as text, "" where its word says that there is none, as 0, False and ok do: [rows]."""
    text = column.astype(object).where(column.notna(), "").astype(str)
    return text.mask(text.map(_plain).isin(_NO_FLAG), "")


def _statuses_of_flags(table: pd.DataFrame) -> pd.Series:
    """Failed and diverged where the flags say so, else done: [rows]."""
    flags = table["flags"] if "flags" in table else pd.Series("", table.index, dtype=object)

    def status_of(text: str) -> Status:
        words = [_STATUS_OF.get(_plain(part)) for part in re.split("[,;]", text)]
        return "diverged" if "diverged" in words else "failed" if "failed" in words else "done"

    return flags.fillna("").astype(str).map(status_of)


def _words(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name].astype(object).where(table[name].notna(), "").map(_plain)


def _plain(text: object) -> str:
    """In lower case, with spaces for - and _."""
    return re.sub(r"[\s_-]+", " ", str(text)).strip().lower()
