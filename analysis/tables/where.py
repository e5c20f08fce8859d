"""Which rows of a table are meant: `--where "corpus==c4 and flops<1e21"`.

Not in the design's list of modules: `results` reads and writes tables, this chooses from them.
"""

from __future__ import annotations

import operator as op
import re

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.tables.results import MAX_LISTED, require_columns

_CLAUSE = re.compile(
    r"""(?P<column>'[^']*'|"[^"]*"|[^<>=!'"]+?)\s*(?P<sign>==|!=|<=|>=|<|>)"""
    r"""(?P<value>(?=$|\s+and\s)|\s*(?:'[^']*'|"[^"]*"|\S.*?))(?:$|\s+and\s+)"""
)
_COMPARE = {"==": op.eq, "!=": op.ne, "<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge}


def filter_rows(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    """The rows that an expression keeps, still named by their place in the table that was read.

    Args:
      expression: clauses joined by " and ", each `column==value`, or with !=, <, <=, >, >= for ==. Quotes around a
        column or a value are optional. A column of numbers compares as numbers, any other as text, which has no order.
        A missing entry equals only the empty value, as in `flags==`. Empty: every row.
    Raises:
      TableError: not such an expression, no such column, a value of the wrong kind, or one that leaves no row.
    """
    text, at = expression.strip(), 0
    while at < len(text):
        clause = _CLAUSE.match(text, at)
        if clause is None:
            raise TableError(f"--where {text[at:]}: write column==value (or != < <= > >=), several joined by ' and '")
        column, value = (clause[name].strip().strip("'\"") for name in ("column", "value"))
        require_columns(table, [column], f"--where {clause[0]}: the table")
        keep = _keeps(table[column], clause["sign"], value)
        if not keep.any():
            before = " left by the clauses before it" if at else ""
            raise TableError(f"--where {clause[0]}: no row{before} fits; {column} is {_what_is_there(table[column])}")
        table = table[keep]
        at = clause.end()
    return table


def _keeps(column: pd.Series, sign: str, value: str) -> np.ndarray:
    truths = pd.api.types.is_bool_dtype(column)
    if pd.api.types.is_numeric_dtype(column) and not truths and (value or column.notna().any()):
        try:
            return _COMPARE[sign](column.to_numpy(np.float64, na_value=np.nan), float(value))
        except ValueError:
            raise TableError(f"--where {column.name}{sign}{value}: {column.name} holds numbers") from None
    if sign not in ("==", "!="):
        raise TableError(f"--where {column.name}{sign}{value}: {column.name} holds text, which only == and != compare")
    same = column.notna() & (column.astype(str) == (value.title() if truths else value))
    same |= column.isna() & (value == "")
    return (same if sign == "==" else ~same).to_numpy(bool)


def _what_is_there(column: pd.Series) -> str:
    values = column.dropna().unique().tolist()
    if len(values) > MAX_LISTED and pd.api.types.is_numeric_dtype(column):
        return f"between {min(values):g} and {max(values):g}"
    return ", ".join(map(str, values[:MAX_LISTED])) + (
        f" and {len(values) - MAX_LISTED} more" if len(values) > MAX_LISTED else ""
    )
