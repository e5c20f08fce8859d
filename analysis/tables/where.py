"""Keeps the rows of a table that an expression selects, as in `--where "corpus==c4 and flops<1e21"`."""

from __future__ import annotations

import operator as op
import re

import numpy as np
import pandas as pd

from analysis.errors import TableError
from analysis.quantities import parse_quantity
from analysis.tables.results import MAX_LISTED, fill_flops, require_columns
from analysis.tables.run_status import status_column, take_as_done

_CLAUSE = re.compile(
    r"""(?P<column>'[^']*'|"[^"]*"|[^<>=!'"]+?)\s*(?P<sign>==|!=|<=|>=|<|>)"""
    r"""(?P<value>(?=$|\s+and\s)|\s*(?:'[^']*'|"[^"]*"|\S.*?))(?:$|\s+and\s+)"""
)
_OPERATORS = {"==": op.eq, "!=": op.ne, "<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge}


def filter_rows(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    """The rows for which an expression holds. They keep their index, which is their place in the table that was read.

    Args:
      expression: clauses joined by " and ", each `column==value`, or with !=, <, <=, >, >= in place of ==. Quotes
        around a column or a value are optional. A column of numbers compares as numbers, any other as text, which has
        no order. A missing entry equals only the empty value, as in `flags==`. flops are 6 params tokens where the
        table has none. Empty: every row.
    Raises:
      TableError: not such an expression, no such column, a value of the wrong kind, or no row left.
    """
    text, position = expression.strip(), 0
    while position < len(text):
        clause = _CLAUSE.match(text, position)
        if clause is None:
            raise TableError(
                f"--where {text[position:]}: must be column==value (or != < <= > >=), several joined by ' and '"
            )
        column, value = (clause[name].strip().strip("'\"") for name in ("column", "value"))
        values = fill_flops(table) if column == "flops" else None
        if values is None:
            require_columns(table, [column], f"--where {clause[0]}: the table")
            values = table[column]
        keep = _compare(values.rename(column), clause["sign"], value)
        if not keep.any():
            before = " left by the clauses before it" if position else ""
            raise TableError(f"--where {clause[0]}: no row{before} fits; {column} is {_describe_values(values)}")
        table = take_as_done(table[keep]) if column == status_column(table) else table[keep]
        position = clause.end()
    return table


def _compare(column: pd.Series, sign: str, value: str) -> np.ndarray:
    """For which entries `column sign value` holds: [rows] of bool."""
    is_bool = pd.api.types.is_bool_dtype(column)
    if pd.api.types.is_numeric_dtype(column) and not is_bool and (value or column.notna().any()):
        try:
            number = float(value if value in ("inf", "-inf") else parse_quantity(value))
        except ValueError as error:
            raise TableError(f"--where {column.name}{sign}{value}: {column.name} holds numbers; {error}") from None
        return _OPERATORS[sign](column.to_numpy(np.float64, na_value=np.nan), number)
    if sign not in ("==", "!="):
        raise TableError(f"--where {column.name}{sign}{value}: {column.name} holds text, which only == and != compare")
    is_equal = column.notna() & (column.astype(str) == (value.title() if is_bool else value))
    is_equal |= column.isna() & (value == "")
    return (is_equal if sign == "==" else ~is_equal).to_numpy(bool)


def _describe_values(column: pd.Series) -> str:
    """What a column holds, for an error: the range of many numbers, else the first values."""
    values = column.dropna().unique().tolist()
    if len(values) > MAX_LISTED and pd.api.types.is_numeric_dtype(column):
        return f"between {min(values):g} and {max(values):g}"
    return ", ".join(map(str, values[:MAX_LISTED])) + (
        f" and {len(values) - MAX_LISTED} more" if len(values) > MAX_LISTED else ""
    )
