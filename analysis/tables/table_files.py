"""Reads files of tables that other programs wrote: CSV and TSV, JSON and JSON lines, Parquet; perhaps gzipped.

What is a number is decided column by column, alike for all formats. A column is numbers where every entry is one, as
1e9, 70M or 70,000,000; whole numbers that do not fit 64 bits become floats. It stays text where an entry begins with a
zero and a digit, as the id 0012, or would be infinite, as the id 12345678e901. Dates stay the text that they are, or
the dates of a Parquet file.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.errors import TableError
from analysis.files import decode_json
from analysis.quantities import parse_quantity
from analysis.type_checks import MAX_FLOAT

_MISSING = {"", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
_INFINITE = {sign + word for sign in ("", "+", "-") for word in ("inf", "infinity")}
_ID = re.compile(r"[+-]?0\d")
_BOOLS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_DECIMAL_COMMA = re.compile(
    r"[+-]?(?:\d+,(?:\d\d?|\d{4,})|(?:0|\d{4,}),\d+|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,})(?:e[+-]?\d+)?", re.I
)
"""A number whose decimal mark is the comma for certain: in 1,234 it may also group digits."""
_SWAP_MARKS = str.maketrans(",.", ".,")


_DECODER = json.JSONDecoder()
"""Accepts NaN and Infinity too, as Python and pandas write them."""
UNREADABLE = (
    *(ValueError, OSError, EOFError, MemoryError, RecursionError),
    *(zlib.error, pd.errors.ParserWarning, pa.ArrowException),
)
"""What the readers raise on content that is no table of their kind."""


def read_file(path: Path, text_columns: Collection[str] = ()) -> pd.DataFrame:
    """The table of a file, in the order of its rows and columns. Fields of nested objects have dotted names.

    Args:
      text_columns: names of columns that are text, whatever they look like.
    Raises:
      TableError: a suffix of another kind of file, or content that does not fit the suffix.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in READERS:
        raise TableError(
            f"{path}: a table is a sweep folder, or a file ending in {', '.join(READERS)} or these and .gz"
        )
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
        table = READERS[suffix](content)
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TableError(f"{path}: not a readable {suffix[1:]} table ({reason})") from None
    return pd.DataFrame(
        {name: column if name in text_columns else _to_numbers(column) for name, column in _flat_columns(table)},
        index=table.index,
    )


def _decode(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark. Raises ValueError for other bytes."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not {error.encoding}; save the file as UTF-8 text") from None
    if "\0" in text:
        raise ValueError("it holds zero bytes; save the file as UTF-8 text")
    return text


def _read_delimited(content: bytes, usual: str) -> pd.DataFrame:
    """A table with a header, after leading lines that are empty or begin with #. usual: the separator of such files."""
    lines = _decode(content).splitlines(keepends=True)
    while lines and (not lines[0].strip() or lines[0].startswith("#")):
        del lines[0]
    separator = _find_separator(lines[:2], usual)
    options: dict[str, Any] = {"dtype": object, "skipinitialspace": True, "index_col": False, "low_memory": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows with more fields than the header
        table = pd.read_csv(io.StringIO("".join(lines)), sep=separator, **options)
    return _read_decimal_commas(table.rename(columns=lambda name: str(name).strip()), separator)


def _find_separator(lines: Sequence[str], usual: str) -> str:
    """The most frequent separator of the header, of those that it and the first row have equally often, if any."""
    header, *rows = [re.sub(r'"[^"]*"', "", line) for line in lines] or [""]
    separators = [sign for sign in (usual, ",", ";", "\t", "|") if sign in header] or [usual]
    equal = [sign for sign in separators if all(row.count(sign) == header.count(sign) for row in rows)]
    return max(equal or separators, key=header.count)


def _read_decimal_commas(table: pd.DataFrame, separator: str) -> pd.DataFrame:
    """A table of text with the numbers of those columns that have decimal commas, as 3,14 and 1.000.000, in place of
    their text."""
    texts: dict[str, list[str]] = {str(name): column.dropna().tolist() for name, column in table.items()}
    if not any("," in text for column in texts.values() for text in column):
        return table

    def has_decimal_commas(column: Sequence[str]) -> bool:
        return any(_DECIMAL_COMMA.fullmatch(text) for text in column)

    commas = {name: has_decimal_commas(column) for name, column in texts.items()}
    points = {name: has_decimal_commas([t.translate(_SWAP_MARKS) for t in column]) for name, column in texts.items()}
    # A comma that may also group digits, as in 3,141, is a decimal one in a file that has others, or does not separate
    # fields by commas; a point that is one for certain, as in 3.14, says otherwise.
    is_usual = (separator != "," or any(commas.values())) and not any(points.values())
    for name in [name for name in texts if not points[name] and (commas[name] or is_usual)]:
        swapped = table[name].map(lambda text: text.translate(_SWAP_MARKS), na_action="ignore")
        numbers = _to_numbers(swapped)
        table[name] = numbers if pd.api.types.is_numeric_dtype(numbers) else table[name]
    return table


def _read_json(content: bytes) -> pd.DataFrame:
    """One object a line, or one list of objects, or one object of columns."""
    text = _decode(content)
    try:
        data = decode_json(text, _DECODER)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":  # after a first object, as in lines of objects
            raise ValueError(f"{error}; must be an object a line, or one list of objects") from None
        data = [_parse_line(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if isinstance(data, Mapping) and data and all(isinstance(column, list | Mapping) for column in data.values()):
        if len({len(column) for column in data.values()}) > 1:
            raise ValueError(f"the columns {', '.join(map(str, data))} are of different lengths")
        columns = {name: pd.Series(column, dtype=object) for name, column in data.items()}
        return pd.DataFrame(columns).reset_index(drop=True)
    rows = [data] if isinstance(data, Mapping) else data
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("must be an object a line, or one list of objects, as [{...}, {...}]")
    return pd.DataFrame(rows, dtype=object)


def _parse_line(number: int, line: str) -> Any:
    try:
        return decode_json(line, _DECODER)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg} at character {error.colno}; a torn write?") from None


def _read_parquet(content: bytes) -> pd.DataFrame:
    # Pages that have a checksum are verified: a flipped bit would give another number.
    table = pd.read_parquet(io.BytesIO(content), page_checksum_verification=True)
    return table if table.index.names == [None] else table.reset_index()


READERS: Mapping[str, Callable[[bytes], pd.DataFrame]] = {
    ".csv": lambda content: _read_delimited(content, ","),
    ".tsv": lambda content: _read_delimited(content, "\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
}
"""Suffix -> reader of the bytes of such a file."""


def _flat_columns(table: pd.DataFrame, prefix: str = "") -> list[tuple[str, pd.Series]]:
    """(name, column) of a table; the fields of objects become columns with dotted names, and lists JSON text."""
    columns: list[tuple[str, pd.Series]] = []
    for label, column in table.items():
        name = f"{prefix}{label}"
        if column.dtype == object:
            objects = [entry if isinstance(entry, Mapping) else {} for entry in column]
            if any(objects):
                columns += _flat_columns(pd.DataFrame(objects, column.index, dtype=object), f"{name}.")
            column = column.map(_without_containers)
            if any(objects) and column.isna().all():
                continue
        columns.append((name, column))
    return columns


def _without_containers(entry: Any) -> Any:
    """None for an object, JSON text for a list, and any other entry as it is."""
    if isinstance(entry, list | np.ndarray):
        return json.dumps(entry, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))
    return None if isinstance(entry, Mapping) else entry


def _to_numbers(column: pd.Series) -> pd.Series:
    """The column as numbers or truth values where every entry that is not missing is one, else as it is."""
    if column.dtype != object and not pd.api.types.is_string_dtype(column):
        return column.astype(np.float64) if column.dtype == np.uint64 else column
    entries = column[column.notna() & ~column.isin(_MISSING)].astype(object)
    texts = [entry for entry in entries if isinstance(entry, str)]
    if entries.empty:
        return column.astype(np.float64) if column.isna().all() else column
    if all(isinstance(entry, bool) or entry in _BOOLS for entry in entries):
        return entries.map(lambda entry: _BOOLS.get(str(entry))).reindex(column.index).infer_objects()
    if any(_ID.match(text) for text in texts):
        return column
    try:
        numbers = pd.to_numeric(entries, errors="coerce")
    except OverflowError:  # a whole number that is too large for a float
        entries = entries.map(lambda entry: np.inf if isinstance(entry, int) and abs(entry) > MAX_FLOAT else entry)
        numbers = pd.to_numeric(entries, errors="coerce")
    try:
        others = entries[numbers.isna()].map(_parse_entry)
    except ValueError:
        return column
    if len(others):
        numbers = numbers.astype(object).where(numbers.notna(), others).infer_objects()
    if numbers.dtype not in (np.int64, np.float64):  # whole numbers beyond 64 bits
        numbers = numbers.astype(np.float64)
    if any(text.strip().lower() not in _INFINITE for text in entries[np.isinf(numbers)] if isinstance(text, str)):
        return column
    return numbers.reindex(column.index)


def _parse_entry(entry: Any) -> float:
    """The number of an entry. Raises ValueError for any other entry."""
    if isinstance(entry, str):
        return parse_quantity(entry)
    raise ValueError(f"{entry!r} is no number")
